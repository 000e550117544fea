"""Training OVSeg's proposals as a person would: from two folders to a checkpoint that segments."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openvocab.cli import run
from openvocab.training import CosineSchedule, PolySchedule
from openvocab.training.command import load_settings, settings_of
from openvocab.training.log import read_log
from ovseg import train
from ovseg.model import OVSeg
from ovseg.train import OptimizerConfig, OVSegTrainConfig, main, make_optimizer
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
            ("images", label[..., None] * np.uint8([9, 30, 40])),
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


def test_a_run_gives_a_checkpoint_that_segments_and_resumes_to_the_bit(
    command, tmp_path: Path, tiny
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert main(command(whole)) == 0
    segmenter = load_ovseg(whole / "model_final.safetensors")
    labels = segmenter.segment(tmp_path / "images" / "0.png", tiny.class_names()).labels
    assert labels.shape == (90, 110)
    resumed.mkdir()
    shutil.copy(whole / "model_0000001.pth", resumed)
    shutil.copy(whole / "metrics.jsonl", resumed)
    assert main(command(resumed, "--resume", "--run.activation_checkpoints")) == 0
    ours, theirs = (
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (resumed, whole)
    )
    assert ours.keys() == tiny.state_dict().keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    lines = read_log(resumed / "metrics.jsonl")
    assert [line["iteration"] for line in lines] == [0, 1, 2, 3]
    changed = {n for n, t in tiny.state_dict().items() if not torch.equal(t, ours[n])}
    assert changed and all(name.startswith(train._TRAINED) for name in changed)


def test_groups_follow_the_published_rules(golden) -> None:
    model = OVSeg(golden.configs()[0])
    optimizer = make_optimizer(model, OptimizerConfig(1e-3, 0.01, 0.1))
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


def _settings(*argv: str):
    args = train.build_parser().parse_args(argv)
    found = settings_of(
        args, OVSegTrainConfig, package="ovseg", keys=train._KEYS, aliases=train._ALIASES
    )
    return load_settings(OVSegTrainConfig, found)


def test_the_originals_command_lines_give_the_published_recipes() -> None:
    swin = _settings("--config-file", "configs/ovseg_swinB_vitL_bs32_120k.yaml", "--num-gpu", "8",
                     "OUTPUT_DIR", "out")  # fmt: skip
    assert swin.run.output == Path("out") and swin.optimizer.base_lr == 6e-5
    assert swin.schedule == PolySchedule(120000, 0.9, 1500, 1e-6)
    assert swin.criterion.mask_weight == 20 and swin.transform.min_sizes[-1] == 1280
    resnet = _settings("--config-file", "R101c_vitB", "MODEL.WEIGHTS", "mine.pkl")
    assert resnet.weights == Path("mine.pkl") and resnet.optimizer.backbone_multiplier == 0.1
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
