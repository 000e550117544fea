"""The engine: order, schedules, checkpoints that survive a full disk, logs, processes."""

from __future__ import annotations

import errno
import io
import json
import resource
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset

from openvocab.datasets.samples import Sample
from openvocab.errors import InputError
from openvocab.training.checkpoints import Checkpoints
from openvocab.training.distributed import Processes, join_processes, launch
from openvocab.training.log import read_log
from openvocab.training.loop import NotFiniteError, Trainer
from openvocab.training.order import EndlessShuffle, StepBatches, generator_of, seed_of
from openvocab.training.schedule import PolySchedule, names_of_norms, parameter_groups, set_rates
from openvocab.training.segmentation_data import SegmentationData, open_training_set
from openvocab.training.settings import DataConfig, RunConfig
from openvocab.training.task import Task


class Points(Dataset[Tensor]):
    """Inputs whose noise depends on their position."""

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        position, index = key
        noise = generator_of(0, position).normal(size=3)
        return torch.tensor(noise, dtype=torch.float32) + index


class Regression(Task[Tensor]):
    """Fits the sum of three numbers, with dropout as a source of randomness."""

    def __init__(self, rate: float = 0.1) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1))
        self.module = _Loss(self.net)
        parameters = dict(self.net.named_parameters())
        groups = parameter_groups(parameters, rate=lambda _: rate, decay=lambda _: 0.0)
        self.optimizer = torch.optim.AdamW(groups)
        self.schedule = PolySchedule(20)
        self.data = Points()

    def collate(self, items: list[Tensor]) -> Tensor:
        return torch.stack(items)

    def state_dict(self) -> dict[str, Tensor]:
        return self.net.state_dict()

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:  # type: ignore[override]
        self.net.load_state_dict(tensors)


class _Loss(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Tensor, _: None) -> dict[str, Tensor]:
        error = self.net(batch)[:, 0] - batch.sum(1)
        return {"loss_square": error.square().mean(), "loss_absolute": error.abs().mean()}


def _config(folder: Path, **changes: object) -> RunConfig:
    settings = {"batch": 4, "workers": 0, "log_period": 1, "checkpoint_period": 5, "eval_period": 0}
    return RunConfig(output=folder, **{**settings, "clip_norm": None, **changes})


def _run(
    folder: Path, task: Regression | None = None, steps: int = 20, **changes: object
) -> Regression:
    task = task or Regression()
    trainer = Trainer(
        task, _config(folder, **changes), steps=steps, samples=7, processes=Processes()
    )
    trainer.resume()
    assert trainer.run() == 0
    return task


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(0, 5), st.integers(0, 3))
def test_every_epoch_has_every_sample_once(samples: int, epoch: int, seed: int) -> None:
    order = EndlessShuffle(samples, seed)
    seen = [order[position] for position in range(epoch * samples, (epoch + 1) * samples)]
    assert sorted(seen) == list(range(samples))
    other = EndlessShuffle(samples, seed)
    assert other[epoch * samples] == seen[0]  # without having walked there


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 4))
def test_processes_and_accumulation_split_the_same_batches(
    processes: int, accumulate: int, micro: int, start: int
) -> None:
    order, batch = EndlessShuffle(11, 0), processes * accumulate * micro
    alone = [*StepBatches(order, batch=batch, start=start, steps=6)]
    parts = [
        list(StepBatches(order, batch=batch, start=start, steps=6, rank=rank, processes=processes,
                         accumulate=accumulate))
        for rank in range(processes)
    ]  # fmt: skip
    for step, whole in enumerate(alone):
        of_step = [p[step * accumulate + part] for p in parts for part in range(accumulate)]
        assert [key for micro_batch in of_step for key in micro_batch] == whole
    assert [key[0] for key in alone[0]] == list(range(start * batch, (start + 1) * batch))


def test_seeds_differ_by_place_and_stay() -> None:
    seeds = {seed_of(0, step, rank) for step in range(50) for rank in range(4)}
    assert len(seeds) == 200 and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, 3, 1) == seed_of(0, 3, 1) != seed_of(1, 3, 1)


def test_schedules_reach_their_ends() -> None:
    poly = PolySchedule(100, warmup_steps=10)
    factors = [poly.factor(step) for step in range(101)]
    assert factors[0] == pytest.approx(1e-6) and factors[100] == 0
    assert max(factors) == factors[10] and poly.factor(500) == 0
    assert PolySchedule(60000).factor(1) == pytest.approx(0.9999849999874999, rel=1e-12)


def test_groups_share_rate_and_decay() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    norms = names_of_norms(net)
    assert norms == {"1.weight", "1.bias"}
    groups = parameter_groups(
        dict(net.named_parameters()),
        rate=lambda name: 0.1 if name.startswith("0") else 0.2,
        decay=lambda name: 0.0 if name in norms else 0.5,
    )
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [
        (0.1, 0.5, 2), (0.2, 0.0, 2), (0.2, 0.5, 2)
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups)
    set_rates(optimizer, 0.5)
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.1, 0.1]


def test_a_resumed_run_equals_an_undisturbed_one(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = _run(whole, keep=None)
    parts.mkdir()
    for name in ("model_0000009.pth", "metrics.jsonl"):
        (parts / name).write_bytes((whole / name).read_bytes())
    found = _run(parts)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name])
    keys = ("iteration", "loss", "loss_square", "lr", "grad_norm")
    lines = [[[line[k] for k in keys] for line in read_log(f / "metrics.jsonl")] for f in
             (whole, parts)]  # fmt: skip
    assert lines[0] == lines[1] and len(lines[0]) == 20


def test_a_resumed_run_obeys_the_settings_it_is_given(tmp_path: Path) -> None:
    _run(tmp_path, steps=10)
    half = torch.load(tmp_path / "model_0000009.pth", weights_only=True)
    lower, other = Regression(rate=0.01), Regression(rate=0.01)
    first, *rest = other.optimizer.param_groups[0]["names"]
    groups = parameter_groups(  # the names fall into other groups than before
        dict(other.net.named_parameters()),
        rate=lambda name: 0.01,
        decay=lambda name: float(name == first),
    )
    other.optimizer = torch.optim.AdamW(groups)
    for task in (lower, other):
        trainer = Trainer(task, _config(tmp_path, precision="fp16"), steps=20, samples=7,
                          processes=Processes())  # fmt: skip
        trainer.resume()  # a checkpoint in fp32 knows no scale of the loss
        assert {group["initial_lr"] for group in task.optimizer.param_groups} == {0.01}
        saved = half["optimizer"]["state"]
        for number, name in enumerate([first, *rest]):
            moments = task.optimizer.state[dict(task.net.named_parameters())[name]]
            assert torch.equal(moments["exp_avg"], saved[number]["exp_avg"]), name
    assert lower.optimizer.param_groups[0]["weight_decay"] == 0


class Scored(Regression):
    """Counts its evaluations; ends in the second one the first time."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def evaluate(self, folder: Path, processes: Processes) -> dict[str, float]:
        mark = self.folder / "was_here"
        if folder.name == "0000010" and not mark.exists():
            mark.touch()
            raise KeyboardInterrupt
        return {"score": -float(self.net.get_parameter("0.weight").detach().square().sum())}


def test_scores_that_a_killed_run_owes_are_made_up_for(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "was_here").touch()
    _run(whole, Scored(whole), eval_period=5)
    parts = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        _run(parts, Scored(parts), eval_period=5)
    _run(parts, Scored(parts), eval_period=5)
    scores = [
        [(line["iteration"], line["score"]) for line in read_log(f / "metrics.jsonl")
         if "score" in line] for f in (whole, parts)
    ]  # fmt: skip
    assert scores[0] == scores[1] and [step for step, _ in scores[0]] == [4, 9, 14, 19]
    best = [json.loads((folder / "best.json").read_text()) for folder in (whole, parts)]
    assert best[0] == best[1] and best[0]["score"] == max(score for _, score in scores[0])


def test_a_run_killed_right_behind_its_last_checkpoint_still_names_it(tmp_path: Path) -> None:
    _run(tmp_path)
    for name in ("model_final.pth", "last_checkpoint"):
        (tmp_path / name).unlink()
    _run(tmp_path)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000019.pth"
    last = Checkpoints(tmp_path).path(20)
    assert (tmp_path / "model_final.pth").read_bytes() == last.read_bytes()
    Checkpoints(tmp_path).mark(last, "model_final.pth")  # again: it is the same file by now
    assert not list(tmp_path.glob(".*"))


def test_accumulation_does_not_change_a_mean_loss(tmp_path: Path) -> None:
    tasks = [Regression(), Regression()]
    for task in tasks:
        task.net[1] = nn.Dropout(0.0)
        task.module = _Loss(task.net)
    one, two = _run(tmp_path / "1", tasks[0]), _run(tmp_path / "2", tasks[1], grad_accum=2)
    for name, tensor in one.state_dict().items():
        assert torch.allclose(tensor, two.state_dict()[name], atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains(tmp_path: Path, precision: str) -> None:
    _run(tmp_path, precision=precision, keep=None)
    losses = [line["loss"] for line in read_log(tmp_path / "metrics.jsonl")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    state = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert bool(state["scaler"]) == (precision == "fp16")


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    good = checkpoints.save(5, {"model": {"w": torch.zeros(10)}})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:  # the system refuses to write more than that
        assert checkpoints.save(10, {"model": {"w": torch.zeros(1_000_000)}}) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "could not be written" in told[0] and "training goes on" in told[0]
    assert checkpoints.numbered() == [good] and sorted(p.name for p in tmp_path.iterdir()) == [
        "last_checkpoint", "model_0000004.pth"
    ]  # fmt: skip
    assert checkpoints.save(15, {"model": {}}) is not None
    assert [p.name for p in checkpoints.numbered()] == ["model_0000014.pth"]


def test_a_run_whose_last_checkpoint_is_missing_does_not_end_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.save

    def full(state: Any, file: Any) -> None:
        if state["iteration"] == 19:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="the last checkpoint could not be written"):
        _run(tmp_path)
    monkeypatch.undo()
    _run(tmp_path)
    assert (tmp_path / "model_final.pth").is_file()


@pytest.mark.parametrize("write", range(1, 12))
def test_ctrl_c_while_a_checkpoint_is_written_is_no_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    """torch's writer in C++ turns an exception of the file's `write` into one of its own."""

    class Interrupted(io.FileIO):
        writes = 0

        def write(self, data: Any) -> int:
            self.writes += 1
            if self.writes == write:
                raise KeyboardInterrupt
            return super().write(data)

    monkeypatch.setattr(type(tmp_path), "open", lambda path, mode: Interrupted(path, mode))
    with pytest.raises(KeyboardInterrupt):
        Checkpoints(tmp_path).save(5, {"model": {"w": torch.zeros(100)}})
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_skipped_for_an_older_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=None)
    for steps in (3, 6, 9):
        checkpoints.save(steps, {"model": {"w": torch.full((50,), float(steps))}})
    whole = checkpoints.path(9).read_bytes()
    checkpoints.path(9).write_bytes(whole[: len(whole) // 2])
    checkpoints.path(6).write_bytes(b"")
    found = checkpoints.latest()
    assert found is not None and found[1]["iteration"] == 2 and found[1]["model"]["w"][0] == 3
    assert capsys.readouterr().err.count("is damaged") == 2
    checkpoints.path(3).unlink()
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoints.latest()
    assert Checkpoints(tmp_path / "empty").latest() is None


def test_a_gradient_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    task = Regression()
    task.net.get_parameter("0.weight").register_hook(lambda gradient: gradient * np.inf)
    with pytest.raises(NotFiniteError, match="the gradient of step 0"):
        _run(tmp_path, task)
    saved = torch.load(tmp_path / "not_finite_0000000_rank0.pt", weights_only=True)
    assert saved["batches"][0].shape == (4, 3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [0] and lines[0]["loss"] > 0


def test_with_fp16_too_large_a_gradient_is_skipped_and_one_that_stays_so_stops_the_run(
    tmp_path: Path,
) -> None:
    task = Regression()
    task.net.get_parameter("0.weight").register_hook(lambda gradient: gradient * np.nan)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    with pytest.raises(NotFiniteError, match="the gradient of step 16"):
        _run(tmp_path, task, precision="fp16")  # 2^16 is halved until it cannot be the reason
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.state_dict().items())
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and '"grad_norm": null' in text


class Unreadable(Regression):
    """Cannot read its third batch."""

    class Points(Points):
        def __getitem__(self, key: tuple[int, int]) -> Tensor:
            if key[0] > 8:
                raise InputError("points.csv cannot be read; write it anew")
            return super().__getitem__(key)

    def __init__(self) -> None:
        super().__init__()
        self.data = self.Points()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_used_is_one_sentence(tmp_path: Path, workers: int) -> None:
    with pytest.raises(InputError) as error:
        _run(tmp_path, Unreadable(), workers=workers)
    assert str(error.value) == "points.csv cannot be read; write it anew"


def test_batches_that_cannot_be_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="multiple of 3"):
        Trainer(
            Regression(), _config(tmp_path, grad_accum=3), steps=1, samples=5, processes=Processes()
        )
    with pytest.raises(InputError, match="no training samples"):
        Trainer(Regression(), _config(tmp_path), steps=1, samples=0, processes=Processes())
    for name, value in {"log_period": 0, "workers": -1, "keep": 0, "clip_norm": 0.0}.items():
        with pytest.raises(InputError, match=name):
            _config(tmp_path, **{name: value})


WORKER = """
import json, sys
import torch
from openvocab.training.distributed import gather_with_gradient, join_processes
with join_processes("cpu") as processes:
    x = torch.full((2, 3), float(processes.rank + 1), requires_grad=True)
    whole = gather_with_gradient(x, processes)
    (whole.square() * (processes.rank + 1)).sum().backward()
    found = {"sum": processes.sum([processes.rank + 1.0, 5.0]), "whole": whole[:, 0].tolist(),
             "gradient": x.grad[:, 0].tolist()}
    open(f"{sys.argv[1]}/{processes.rank}.json", "w").write(json.dumps(found))
    if len(sys.argv) > 2 and processes.rank == 1:
        sys.exit(7)
"""


def test_processes_sum_and_gather_with_gradient(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "ov_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launch("ov_worker", [str(tmp_path), "fail"], 2) == 7
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["sum"] == [3.0, 10.0] and found["whole"] == [1, 1, 2, 2]
        # Both processes' sums depend on the rows of each: 2 x (1 + 2).
        assert found["gradient"] == [2 * (rank + 1) * 3] * 2


def test_one_process_is_a_world(monkeypatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with join_processes("cpu") as processes:
        assert processes.is_main and processes.sum([1.0, 2.0]) == [1.0, 2.0]
    with pytest.raises(InputError, match="unknown"), join_processes("tpux"):
        pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="process 2 has no GPU: there are 2"), join_processes():
        pass
    with pytest.raises(InputError, match="dist-url"):
        launch("x", [], 1, machines=2)
    with pytest.raises(InputError, match="tcp://host:port"):
        launch("x", [], 1, address="nowhere")


EVALUATION = """
import sys
from pathlib import Path
from typing import Any
import numpy as np
from openvocab.datasets.samples import FolderDataset
from openvocab.segmenter import Segmentation
from openvocab.training.distributed import join_processes
from openvocab.training.evaluation import evaluate_in_processes

class Reddest:
    def segment(self, image, vocabulary, **_):
        return Segmentation((image[..., 0] > 99).astype(np.int32), vocabulary)
    def describe(self):
        return {"method": "reddest", "device": "cpu"}

root, out = map(Path, sys.argv[1:])
data = FolderDataset(root / "images", root / "labels", root / "names.txt")
with join_processes("cpu") as processes:
    result = evaluate_in_processes(Reddest(), [data], out, processes)[0]
    assert result.complete
    np.save(out / f"matrix{processes.rank}.npy", result.matrix)
"""


def test_evaluation_is_the_same_in_one_and_two_processes(tmp_path: Path, monkeypatch) -> None:
    _folders(tmp_path)
    (tmp_path / "ov_evaluation.py").write_text(EVALUATION)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    one, two = tmp_path / "one", tmp_path / "two"
    for out in (one, two):
        out.mkdir()
    monkeypatch.setattr(sys, "argv", ["ov_evaluation", str(tmp_path), str(one)])
    runpy.run_path(str(tmp_path / "ov_evaluation.py"), run_name="__main__")
    assert launch("ov_evaluation", [str(tmp_path), str(two)], 2) == 0
    files = (one / "matrix0.npy", two / "matrix0.npy", two / "matrix1.npy")
    matrices = [np.load(file) for file in files]
    assert all(np.array_equal(matrices[0], matrix) for matrix in matrices[1:])
    assert matrices[0].sum() == 5 * 20 * 30


def _folders(root: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for index in range(5):
        label = rng.integers(0, 2, (20, 30)).astype(np.uint8)
        image = np.stack([label * 90 + rng.integers(0, 60, (20, 30))] * 3, -1).astype(np.uint8)
        for name, pixels in (("images", image), ("labels", label)):
            (root / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    (root / "names.txt").write_text("dark\nred\n")


def test_training_data_marks_void_and_depends_on_position_only(tmp_path: Path) -> None:
    from openvocab.datasets.transforms import TransformConfig

    _folders(tmp_path)
    config = DataConfig(
        None, None, tmp_path / "images", tmp_path / "labels", tmp_path / "names.txt"
    )
    data = open_training_set(config)
    samples = SegmentationData(data, TransformConfig(min_sizes=(16,), crop_size=32), seed=1)
    first, again, other = samples[3, 0], samples[3, 0], samples[4, 0]
    assert first["image"].shape == (3, 32, 32) and first["image"].dtype == torch.uint8
    assert set(first["label"].unique().tolist()) == {-1, 0, 1}
    assert torch.equal(first["image"], again["image"]) and first["seed"] == again["seed"]
    assert first["seed"] != other["seed"] and isinstance(data.samples[0], Sample)
    with pytest.raises(InputError, match="names"):
        open_training_set(DataConfig(None, None, tmp_path, tmp_path, None))
    with pytest.raises(InputError, match="no training data"):
        open_training_set(DataConfig(None))
