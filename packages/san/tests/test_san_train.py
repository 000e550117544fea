"""Training SAN as a person would: from two folders to a checkpoint that segments, through kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openvocab.cli import run
from openvocab.clip.model import CLIP
from openvocab.config import load_config
from openvocab.datasets.samples import FolderDataset
from openvocab.training import segmentation
from openvocab.training.log import read_log
from openvocab.weights.training_names import training_names
from san import task, train
from san.config import VARIANTS, SANInference
from san.model import SAN
from san.segmenter import load_san
from san.train import main
from san.train_config import SANTrainConfig

SIZE = (100, 120)


def _scene(rng: np.random.Generator, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles whose colour tells their class, and a void strip."""
    label = np.full(SIZE, rng.integers(classes), dtype=np.uint8)
    for _ in range(2):
        top, left = rng.integers(0, 60, 2)
        label[top : top + 40, left : left + 50] = rng.integers(classes)
    image = (label[..., None] * np.array([31, 17, 43])).astype(np.uint8)
    label[:5] = 255
    return image, label


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, tiny_san) -> Path:
    """Six images with their label maps and the names of the labels."""
    root = tmp_path_factory.mktemp("scenes")
    names = tiny_san[1]
    (root / "names.txt").write_text("\n".join(names))
    rng = np.random.default_rng(0)
    for index in range(6):
        for folder, pixels in zip(("images", "labels"), _scene(rng, len(names)), strict=True):
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def command(scenes: Path, tiny_san):
    """Arguments of a small training run of 6 steps that writes to a folder."""

    def arguments(output: Path, *more: str) -> list[str]:
        settings = {
            "weights": tiny_san[0],
            "data.images": scenes / "images",
            "data.labels": scenes / "labels",
            "data.names": scenes / "names.txt",
            "transform.crop_size": 64,
            "criterion.points": 48,
            "schedule.steps": 6,
            "run.output": output,
            "run.batch": 4,
            "run.precision": "fp32",
            "run.workers": 0,
            "run.log_period": 1,
            "run.checkpoint_period": 2,
            "run.device": "cpu",
        }
        flags = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
        return [*flags, "--transform.min_sizes", "64", "96", *more]

    return arguments


def _losses(folder: Path) -> list[list[float]]:
    lines = [line for line in read_log(folder / "metrics.jsonl") if "loss" in line]
    assert [line["iteration"] for line in lines] == list(range(len(lines)))
    return [[v for k, v in line.items() if "loss" in k or k == "grad_norm"] for line in lines]


def test_a_run_writes_everything_and_its_checkpoint_segments(
    command, tmp_path: Path, tiny_san, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path)) == 0
    told = capsys.readouterr().err
    assert "batch 4 = 1 processes x 1 accumulated x 4 images, learning rate 0.0001" in told
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "losses.png", "model_final.pth"} <= names
    assert {"model_0000003.pth", "model_0000005.pth", "last_checkpoint"} <= names
    assert "model_0000001.pth" not in names  # only the last two are kept
    assert any(name.startswith("events.out.tfevents") for name in names)
    line = read_log(tmp_path / "metrics.jsonl")[-1]
    assert line["loss"] == pytest.approx(sum(v for k, v in line.items() if k[:5] == "loss_"))
    assert {"lr", "time", "data_time", "images_per_second", "memory_mb", "loss_dice_0"} <= set(line)
    for name in ("model_final.safetensors", "model_0000005.pth"):
        assert training_names(tmp_path / name) == tuple(tiny_san[1])
    segmenter = load_san(tmp_path / "model_final.safetensors")
    labels = segmenter.segment(scenes / "images" / "0.png", tiny_san[1]).labels
    assert labels.shape == SIZE
    state = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert "side_adapter_network.query_embed" in state["model"] and state["iteration"] == 5
    assert load_config(SANTrainConfig, tmp_path / "config.yaml").schedule.steps == 6


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main(command(folder)) == 0
    return folder


def test_a_killed_run_continues_to_the_bit(command, check_survival) -> None:
    check_survival("san.train", command)


def test_two_processes_and_accumulation_make_the_same_steps_as_one(
    command, tmp_path: Path, scenes: Path, uninterrupted: Path
) -> None:
    folder = tmp_path / "two"
    arguments = command(folder, "--schedule.steps", "6", "--num-gpus", "2")
    finished = subprocess.run(
        [sys.executable, "-m", "san.train", *arguments, "--run.grad_accum", "2"],
        capture_output=True,
        text=True,
        timeout=1200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    assert "batch 4 = 2 processes x 2 accumulated x 1 images" in finished.stderr
    for two, one in zip(_losses(folder)[:3], _losses(uninterrupted)[:3], strict=True):
        assert two == pytest.approx(one, rel=1e-5)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_its_inputs(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = task.SANStep.forward

    def broken(self: task.SANStep, batch, totals):
        losses = forward(self, batch, totals)
        self.calls = getattr(self, "calls", 0) + 1  # type: ignore[assignment]
        return losses | ({"loss_mask": losses["loss_mask"] * np.nan} if self.calls == 3 else {})

    monkeypatch.setattr(task.SANStep, "forward", broken)
    assert run(main, command(tmp_path)) == 2
    assert "the loss of step 2 is not finite (loss, loss_mask)" in capsys.readouterr().err
    saved = torch.load(tmp_path / "not_finite_0000002_rank0.pt", weights_only=True)
    assert saved["batches"][0]["images"].shape == (4, 3, 64, 64)
    assert len(saved["batches"][0]["ids"]) == 4 and np.isnan(saved["losses"]["loss_mask"])
    assert [p.name for p in tmp_path.glob("model_*")] == ["model_0000001.pth"]


def test_fifty_steps_lower_every_loss(command, tmp_path: Path) -> None:
    arguments = ["--schedule.steps", "50", "--run.checkpoint_period", "50", "--transform.flip", "0"]
    rates = ["--optimizer.base_lr", "2e-3", "--transform.color", "false"]
    assert main(command(tmp_path, *arguments, *rates)) == 0
    lines = read_log(tmp_path / "metrics.jsonl")
    for name in (key for key in lines[0] if key.startswith("loss")):
        values = [line[name] for line in lines]
        assert np.mean(values[-8:]) < np.mean(values[:8]), name


def test_activation_checkpoints_and_workers_change_nothing(
    command, tmp_path: Path, uninterrupted: Path
) -> None:
    folder = tmp_path / "recomputed"
    arguments = command(folder, "--run.activation_checkpoints", "--run.workers", "1")
    assert main([*arguments, "--schedule.steps", "6"]) == 0
    for ours, theirs in zip(_losses(folder), _losses(uninterrupted), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_the_training_vocabulary_is_embedded_once(command, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OPENVOCAB_CACHE", "")
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


@pytest.mark.parametrize("name", ["configs/san_clip_vit_res4_coco.yaml", "san_vit_b_16"])
def test_the_originals_command_line_gives_the_published_recipe(name: str) -> None:
    arguments = (
        "--config-file", name, "--num-gpus", "1", "OUTPUT_DIR", "out", "SOLVER.BASE_LR", "3e-4",
        "DATASETS.TEST", "('ade20k_sem_seg_val',)", "WANDB.NAME", "mine", "SOLVER.AMP.ENABLED",
        "False",
    )  # fmt: skip
    config = train.COMMAND.read(arguments)[1]
    assert config.run.output == Path("out") and config.optimizer.base_lr == 3e-4
    assert config.data.evaluate == ("ade20k_sem_seg_val",)
    assert config.run.wandb_name == "mine" and config.run.precision == "fp32"
    assert config.criterion.points == 12544 and config.run.clip_norm == 0.01
    assert (config.schedule.steps, config.run.batch) == (60000, 32)
    assert config.data.dataset == "coco_2017_train_stuff_sem_seg"
    assert config.transform.min_sizes == tuple(range(320, 961, 64))


def test_a_configuration_of_the_original_is_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "MODEL:\n  SAN: {NUM_CLASSES: 5, TRAIN_NUM_POINTS: 100, CLASS_WEIGHT: 3.0}\n"
        "  SIDE_ADAPTER: {VIT_NAME: vit_w48n3d4_patch16, DEEP_SUPERVISION_IDXS: [3, 4],"
        " NUM_QUERIES: 9}\n"
        "SOLVER: {MAX_ITER: 7, CLIP_GRADIENTS: {CLIP_VALUE: 0.5}, AMP: {ENABLED: true}}\n"
        "INPUT:\n  MIN_SIZE_TRAIN: !!python/object/apply:eval ['[int(x*0.1*640) for x in range(5,"
        ' 7)]\']\n  CROP: {SIZE: [640, 640]}\nDATASETS: {TRAIN: ["voc_sem_seg_train"]}\n'
        "TEST: {EVAL_PERIOD: 3}\nVERSION: 2\n"
    )
    _, config, settings = train.COMMAND.read(["--config-file", str(file)])
    assert config.schedule.steps == 7 and config.run.clip_norm == 0.5
    assert config.run.precision == "fp16" and config.run.eval_period == 3
    assert config.transform.min_sizes == (320, 384) and config.data.dataset == "voc_sem_seg_train"
    assert (config.criterion.points, config.criterion.class_weight) == (100, 3.0)
    network, inference = task.build_network(config, settings.original, resumed=True)
    assert network.config.num_queries == 9 and network.config.supervised == (3, 4)
    assert inference == SANInference()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["SOLVER.BASE_LRR", "1"], "SOLVER.BASE_LR"),
        (["--run.batch", "5", "--run.grad_accum", "2"], "multiple of 2"),
        (["--run.precision", "fp8"], "fp16"),
        (["--data.names", "nothing.txt"], "nothing.txt"),
        (["--config-file", "no.yaml"], "san_vit_b_16"),
        (["OUTPUT_DIR"], "OUTPUT_DIR"),
        (["--weights", "missing.pth"], "missing.pth"),
    ],
)
def test_bad_input_is_one_sentence(
    command, tmp_path: Path, more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, command(tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and sentence in error


def test_help_tells_the_whole_published_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for word in ("points: 12544", "clip_norm: 0.01", "steps: 60000", "base_lr: 0.0001", "--resume"):
        assert word in text


def test_periodic_evaluation_keeps_the_best(
    command, tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = FolderDataset(scenes / "images", scenes / "labels", scenes / "names.txt")
    monkeypatch.setattr(segmentation, "open_named_set", lambda name, root: data)
    arguments = ["--data.evaluate", "scenes", "--run.eval_period", "3", "--run.keep", "1"]
    assert main(command(tmp_path, *arguments)) == 0
    scores = {
        line["iteration"]: line["mIoU images"]
        for line in read_log(tmp_path / "metrics.jsonl")
        if "mIoU images" in line
    }
    assert sorted(scores) == [2, 5]
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["score"] == max(scores.values()) == scores[best["iteration"]]
    state = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert state["iteration"] == best["iteration"]


@pytest.fixture
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with a few images of COCO-Stuff in the originals' layout."""
    rng = np.random.default_rng(0)
    for split in ("train2017", "val2017"):
        folders = ("coco", split), ("coco", "stuffthingmaps_detectron2", split)
        for folder in folders:
            tmp_path.joinpath(*folder).mkdir(parents=True)
        for index in range(3):
            image, label = _scene(rng, 7)
            Image.fromarray(image).save(tmp_path.joinpath(*folders[0], f"{index:012d}.jpg"))
            Image.fromarray(label).save(tmp_path.joinpath(*folders[1], f"{index:012d}.png"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def test_torchrun_trains_as_one_process_does_and_its_checkpoint_evaluates_the_same(
    command, coco: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    more = ["--data.evaluate", "coco_2017_test_stuff_sem_seg"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "san.train"]
    finished = subprocess.run(
        [sys.executable, "-m", *torchrun, *command(two, *more, "--run.eval_period", "6")],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert finished.returncode == 0, finished.stderr
    assert "batch 4 = 2 processes x 1 accumulated x 2 images" in finished.stderr
    for ours, theirs in zip(_losses(two)[:3], _losses(uninterrupted)[:3], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    # The numbered checkpoint stores its configuration, so nothing else is needed to evaluate it.
    weights = ["--weights", str(two / "model_0000005.pth")]
    assert main([*command(one, *more, *weights), "--eval-only"]) == 0
    logs = [_records(folder) for folder in (two / "evaluation", one / "inference")]
    assert logs[0] == logs[1] and len(logs[0]) == 3


def test_torchrun_ends_with_a_killed_process_and_the_run_goes_on(
    command, tmp_path: Path, uninterrupted: Path
) -> None:
    (tmp_path / "ov_killed.py").write_text(
        "import os, signal, sys\n"
        "from openvocab.training.loop import Trainer\n"
        "from san.train import main\n"
        "step = Trainer._step\n"
        "def killed(self, module, number, parts):\n"
        "    if number == 3 and self.world.rank == 1:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, module, number, parts)\n"
        "Trainer._step = killed\n"
        "sys.exit(main())\n"
    )
    folder = tmp_path / "out"
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    finished = subprocess.run(
        [sys.executable, "-m", *torchrun, str(tmp_path / "ov_killed.py"), *command(folder)],
        capture_output=True,
        text=True,
        env=os.environ | threads,
    )
    assert finished.returncode != 0 and (folder / "model_0000001.pth").is_file()
    assert main(command(folder, "--resume")) == 0
    for ours, theirs in zip(_losses(folder), _losses(uninterrupted), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def _records(folder: Path) -> dict[str, str]:
    """Return the logged confusion matrix of each evaluated image."""
    found = {}
    for log in folder.rglob("images-*.log"):
        for line in log.read_text().splitlines()[1:]:
            found[json.loads(line[line.index("{") :])["id"]] = line[line.index("{") :]
    return found


@pytest.mark.filterwarnings("ignore")
def test_the_originals_commands_train_and_evaluate_on_the_originals_tree(
    coco: Path, tiny_san, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    recipe = ["--config-file", "configs/san_clip_vit_res4_coco.yaml", "--num-gpus", "1"]
    small = {"transform.crop_size": 64, "criterion.points": 32, "run.log_period": 1,
             "run.device": "cpu"}  # fmt: skip
    flags = [text for key, value in small.items() for text in (f"--{key}", str(value))]
    pairs = {
        "OUTPUT_DIR": out, "SOLVER.IMS_PER_BATCH": 2, "SOLVER.MAX_ITER": 2,
        "INPUT.MIN_SIZE_TRAIN": "(64,)", "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.AMP.ENABLED": "False", "DATASETS.TEST": "('coco_2017_test_stuff_sem_seg',)",
    }  # fmt: skip
    opts = [text for key, value in pairs.items() for text in (key, str(value))]
    start = ["MODEL.WEIGHTS", str(tiny_san[0])]
    assert main([*recipe, *flags, *opts, *start]) == 0
    lines = read_log(out / "metrics.jsonl")
    assert any(key.startswith("mIoU") for key in lines[-1])
    capsys.readouterr()
    final = ["MODEL.WEIGHTS", str(out / "model_final.safetensors")]
    assert main([*recipe, "--eval-only", *flags, *opts, *final]) == 0
    assert "mIoU" in capsys.readouterr().out
    assert list((out / "inference").rglob("result.json"))


@pytest.mark.parametrize(
    ("variant", "millions"), [("san_vit_b_16", 8.37), ("san_vit_large_14", 9.32)]
)
def test_as_many_parameters_are_trained_as_in_the_authors_logs(
    variant: str, millions: float
) -> None:
    with torch.device("meta"):
        network = SAN(VARIANTS[variant]())
    count = sum(p.numel() for p in network.trainable_parameters().values())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


def test_labels_that_have_no_name_are_refused_before_anything_is_written(
    command, scenes: Path, tmp_path: Path, tiny_san, capsys: pytest.CaptureFixture[str]
) -> None:
    one_more = tmp_path / "labels"
    one_more.mkdir()
    for path in (scenes / "labels").iterdir():
        labels = np.array(Image.open(path))
        labels[labels != 255] += 1
        labels[0, 0] = len(tiny_san[1])  # so that the last class is somewhere
        Image.fromarray(labels).save(one_more / path.name)
    out = tmp_path / "out"
    assert run(main, command(out, "--data.labels", str(one_more))) == 2
    told = capsys.readouterr().err
    assert f"{one_more / '0.png'}: the ground truth holds" in told and "which is no class" in told
    assert "--label-offset -1" in told and not out.exists()
    start = ["--data.labels", str(one_more), "--schedule.steps", "1"]
    assert run(main, command(out, *start, "--label-offset", "-1")) == 0
