"""Training OVSeg's proposals as a person would: from two folders to a checkpoint that segments."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from openvocab.cli import run
from openvocab.clip.model import CLIP
from openvocab.training.distributed import Processes
from openvocab.training.log import read_log
from openvocab.training.schedule import CosineSchedule, PolySchedule
from openvocab.vocabulary import Vocabulary
from ovseg import task, train
from ovseg.config import ResNetConfig
from ovseg.model import OVSeg
from ovseg.task import OVSegTask, make_optimizer
from ovseg.train import main
from ovseg.train_config import OVSegOptimizerConfig, OVSegTrainConfig
from ovseg.weights import load_ovseg, save_model


@pytest.fixture
def command(tmp_path: Path, tiny):
    """Arguments of a small training run of 4 steps that writes to a folder."""
    names = tiny.class_names()
    save_model(tiny.model(), tmp_path / "tiny.safetensors", tiny.configs()[1])
    (tmp_path / "names.txt").write_text("\n".join(names))
    rng = np.random.default_rng(0)
    for index in range(4):
        label = np.full((90, 110), index % len(names), dtype=np.uint8)
        label[20:60, 30:80] = rng.integers(len(names))
        for folder, pixels in (
            ("images", label[..., None] * np.uint8([9, 30, 40])),  # type: ignore[operator]
            ("labels", label),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")

    def arguments(output: Path, *more: str) -> list[str]:
        settings = {
            "weights": tmp_path / "tiny.safetensors",
            "data.images": tmp_path / "images",
            "data.labels": tmp_path / "labels",
            "data.names": tmp_path / "names.txt",
            "transform.min_sizes": 64,
            "transform.crop_size": 64,
            "schedule.steps": 4,
            "schedule.warmup_steps": 2,
            "run.output": output,
            "run.batch": 2,
            "run.workers": 0,
            "run.log_period": 1,
            "run.checkpoint_period": 2,
            "run.device": "cpu",
        }  # fmt: skip
        return [text for k, v in settings.items() for text in (f"--{k}", str(v))] + list(more)

    return arguments


def test_a_run_gives_checkpoints_that_segment(command, tmp_path: Path, tiny) -> None:
    out = tmp_path / "out"
    assert main(command(out)) == 0
    final = load_ovseg(out / "model_final.safetensors")
    labels = final.segment(tmp_path / "images" / "0.png", tiny.class_names()).labels
    assert labels.shape == (90, 110)
    numbered = load_ovseg(out / "model_0000003.pth")  # stores its configuration, too
    assert numbered.model.config == final.model.config and numbered.inference == final.inference
    state = torch.load(out / "model_final.pth", weights_only=True)
    assert state["model"].keys() == tiny.state_dict().keys() and state["iteration"] == 3
    trained = {n for n, t in tiny.state_dict().items() if not torch.equal(t, state["model"][n])}
    assert trained and all(name.startswith(task._TRAINED) for name in trained)


def test_a_killed_run_continues_to_the_bit(command, check_survival) -> None:
    check_survival("ovseg.train", command)


def _losses(folder: Path) -> list[list[float]]:
    lines = [line for line in read_log(folder / "metrics.jsonl") if "loss" in line]
    return [[v for k, v in line.items() if "loss" in k or k == "grad_norm"] for line in lines]


def _records(folder: Path) -> dict[str, str]:
    """Return the logged confusion matrix of each evaluated image."""
    lines = [x for log in folder.rglob("images-*.log") for x in log.read_text().splitlines()[1:]]
    records = [line[line.index("{") :] for line in lines]
    return {json.loads(record)["id"]: record for record in records}


def test_processes_and_accumulation_make_the_same_steps_as_one_and_evaluate_the_same(
    command, tmp_path: Path, tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, inference = tiny.configs()  # what is dropped at random would differ
    model = OVSeg(replace(config, dropout=0.0, backbone=replace(config.backbone, drop_path=0.0)))
    model.load_state_dict(tiny.state_dict())
    save_model(model, tmp_path / "tiny.safetensors", inference)
    one, two = tmp_path / "one", tmp_path / "two"
    tree = tmp_path / "coco"
    for kind in ("val2017", "stuffthingmaps_detectron2/val2017"):
        (tree / kind).mkdir(parents=True)
    for index in range(2):
        label = Image.open(tmp_path / "labels" / f"{index}.png")
        label.save(tree / "stuffthingmaps_detectron2" / "val2017" / f"{index:012d}.png")
        image = Image.open(tmp_path / "images" / f"{index}.png")
        image.save(tree / "val2017" / f"{index:012d}.jpg")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    more = ["--run.batch", "4", "--data.evaluate", "coco_2017_test_stuff_sem_seg"]
    more += ["--schedule.steps", "3", "--run.eval_period", "0"]
    assert main(command(one, *more)) == 0
    assert main(command(two, *more, "--run.grad_accum", "2", "--num-gpus", "2")) == 0
    ours, theirs = np.array(_losses(two)), np.array(_losses(one))
    assert ours.shape[0] == 3 and np.allclose(ours, theirs, rtol=1e-5)
    final = ["--weights", str(two / "model_final.safetensors"), "--eval-only"]
    for folder, count in ((tmp_path / "a", "1"), (tmp_path / "b", "2")):
        assert main(command(folder, *more, *final, "--num-gpus", count)) == 0
    first, second = (_records(tmp_path / name) for name in ("a", "b"))
    assert first == second and len(first) == 2


def test_fifty_steps_lower_every_loss(command, tmp_path: Path) -> None:
    more = ["--schedule.steps", "50", "--run.checkpoint_period", "50", "--run.batch", "4"]
    still = ["--transform.flip", "0", "--transform.color", "false", "--optimizer.base_lr", "1e-3"]
    assert main(command(tmp_path / "out", *more, *still)) == 0
    lines = read_log(tmp_path / "out" / "metrics.jsonl")
    for name in (key for key in lines[0] if key.startswith("loss")):
        values = [line[name] for line in lines]
        assert np.mean(values[-8:]) < np.mean(values[:8]), name


def test_the_training_vocabulary_is_embedded_once(command, tmp_path: Path, monkeypatch) -> None:
    texts, encode = [], CLIP.encode_text
    monkeypatch.setattr(
        CLIP, "encode_text", lambda clip, tokens: texts.append(len(tokens)) or encode(clip, tokens)
    )
    sums = []
    for steps in ("1", "4"):
        assert main(command(tmp_path / steps, "--schedule.steps", steps)) == 0
        sums.append(sum(texts))
        texts.clear()
    assert sums[0] == sums[1] > 0


def test_recomputed_blocks_change_nothing(command, tmp_path: Path) -> None:
    kept, recomputed = tmp_path / "kept", tmp_path / "recomputed"
    more = ["--schedule.steps", "2"]
    assert main(command(kept, *more)) == 0
    assert main(command(recomputed, *more, "--run.activation_checkpoints")) == 0
    ours, theirs = (
        [line["grad_norm"] for line in read_log(folder / "metrics.jsonl")]
        for folder in (recomputed, kept)
    )
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_a_resnet_learns_and_its_batch_norms_stay(tiny) -> None:
    config = replace(
        tiny.configs()[0],
        backbone=ResNetConfig(depths=(1, 1, 1, 3), freeze_at=2),
        dropout=0.0,
    )
    torch.manual_seed(0)
    model = OVSeg(config)
    model.clip_adapter.load_state_dict(tiny.model().clip_adapter.state_dict(), strict=False)
    labels = torch.full((2, 64, 64), -1)
    labels[:, 8:40, 8:40], labels[:, 40:, 20:] = 0, 1
    images = torch.randint(0, 99, (2, 3, 64, 64)) + 60 * (labels[:, None] == 0)
    batch = {"images": images.to(torch.uint8), "labels": labels, "ids": ["a", "b"], "seeds": [0, 1]}
    training = OVSegTrainConfig(optimizer=OVSegOptimizerConfig(2e-3, 1e-4, 0.1))
    vocabulary = Vocabulary(tuple(tiny.class_names()))
    task = OVSegTask(model, training, SimpleNamespace(samples=[], vocabulary=vocabulary))
    task.begin(torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    totals, history = task.prepare([batch], Processes()), []  # type: ignore[list-item]
    task.module.train()
    for _ in range(12):
        losses = task.module(batch, totals)
        task.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        task.optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    for name in history[0]:
        assert history[-1][name] < history[0][name] < np.inf, name
    moved = {n for n, t in model.backbone.state_dict().items() if not torch.equal(t, before[n])}
    assert any(name.startswith("res5.") for name in moved)
    assert not {name for name in moved if ".norm." in name or name.startswith(("stem", "res2"))}


def test_groups_follow_the_published_rules(golden) -> None:
    model = OVSeg(golden.configs()[0])
    optimizer = make_optimizer(model, OVSegOptimizerConfig(1e-3, 0.01, 0.1))
    rules = {name: group for group in optimizer.param_groups for name in group["names"]}
    assert "clip_adapter.non_object_embedding" in rules
    for name, group in rules.items():
        assert group["initial_lr"] == pytest.approx(1e-4 if name.startswith("backbone") else 1e-3)
        free = "norm" in name or "relative_position" in name or "query_embed" in name
        assert group["weight_decay"] == (0 if free else 0.01), name


def test_learning_rates_equal_the_recorded(tiny) -> None:
    misc = json.loads((tiny.folder.parent / "misc" / "misc.json").read_text())
    schedule = PolySchedule(120000, warmup_steps=1500)
    for name, base in (("poly_swinB", 6e-5), ("poly_R101c", 2e-4)):
        found = [base * schedule.factor(step) for step in misc["poly_iters"]]
        assert found == pytest.approx(misc[name], rel=1e-9)
    args = misc["cosine_args"]
    cosine = CosineSchedule(args["steps"], args["warmup"])
    found = [args["base"] * cosine.factor(step) for step in misc["cosine_iters"]]
    assert found == pytest.approx(misc["cosine_lr"], rel=1e-6, abs=1e-20)


def _settings(*argv: str) -> OVSegTrainConfig:
    return train.COMMAND.read(argv)[1]


def test_the_originals_command_lines_give_the_published_recipes() -> None:
    swin = _settings("--config-file", "configs/ovseg_swinB_vitL_bs32_120k.yaml", "--num-gpu", "8",
                     "OUTPUT_DIR", "out")  # fmt: skip
    assert swin.run.output == Path("out") and swin.optimizer.base_lr == 6e-5
    assert swin.schedule == PolySchedule(120000, 0.9, 1500, 1e-6)
    assert swin.criterion.mask_weight == 20 and swin.transform.min_sizes[-1] == 1280
    resnet = _settings("--config-file", "R101c_vitB", "MODEL.WEIGHTS", "mine.pkl")
    assert resnet.weights == "mine.pkl" and resnet.optimizer.backbone_multiplier == 0.1
    assert resnet.transform.min_sizes == (800,) and resnet.transform.crop_size == 512


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--weights", "missing.pth"], "missing.pth"),
        (["--config-file", "none.yaml"], "swinB_vitL"),
        (["SOLVER.MAX_ITERS", "3"], "SOLVER.MAX_ITER"),
    ],
)
def test_bad_input_is_one_sentence(
    command, tmp_path: Path, more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, command(tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and sentence in error


def test_labels_that_have_no_name_are_refused(
    command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.full((90, 110), 77, np.uint8)).save(tmp_path / "labels" / "3.png")
    assert run(main, command(tmp_path / "out")) == 2
    told = capsys.readouterr().err
    assert "3.png: the ground truth holds 77 (9900 pixels), which is no class" in told
    assert not (tmp_path / "out").exists()
