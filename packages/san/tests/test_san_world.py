"""The small SAN that the package carries: it knows its world, and its training can go on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from openvocab.cli import run
from openvocab.datasets import resolve
from openvocab.metrics.scores import ConfusionMatrix, seen_unseen
from openvocab.training.losses import totals_of
from openvocab.weights.shipped import world_file
from openvocab.world import scene, seen_labels, world_vocabulary
from san import load_san
from san.criterion import SANCriterion
from san.predict import main as predict
from san.task import SANStep, make_optimizer
from san.train import main as train
from san.train_config import SANCriterionConfig, SANOptimizerConfig


def test_it_names_scenes_that_it_never_saw():
    matrix, segmenter = ConfusionMatrix(60, 255), load_san("world")
    for index in range(24):
        image, label, _ = scene(index, "val")
        matrix.update(segmenter.segment(image, world_vocabulary()).labels, label)
    found = seen_unseen(matrix.matrix, seen_labels())
    assert found.seen_miou > 35 and found.unseen_miou > 20


def test_predict_takes_it_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = resolve("world:tune")
    words = ["--weights", "world", "--vocabulary", "world", "--input", str(data.samples[0].image)]
    assert predict([*words, "--output", str(tmp_path), "--device", "cpu"]) == 0
    assert list(tmp_path.rglob("*.png"))


def test_an_unknown_word_is_one_sentence(tmp_path, capsys):
    from openvocab.errors import InputError

    with pytest.raises(InputError, match="zebra"):
        load_san("world").segment(np.zeros((64, 64, 3), np.uint8), ["dog", "zebra"])


def test_overrides_change_the_stored_configuration_and_nothing_else(tmp_path, capsys):
    image = str(resolve("world:tune").samples[0].image)
    words = ["--weights", "world", "--vocabulary", "world", "--input", image, "--save", "json"]
    words += ["--device", "cpu", "--output", str(tmp_path)]
    assert run(predict, [*words, "--opts", "INPUT.MIN_SIZE_TEST", "96"]) == 0
    method = json.loads((tmp_path / f"{Path(image).stem}.json").read_text())["method"]
    assert "96" in method["resize_rule"]
    for pair, sentence in (
        (["INPUT.MIN_SIZE", "96"], "did you mean INPUT.MIN_SIZE_TEST"),
        (["INPUT.MIN_SIZE_TEST", "wide"], "is 'wide'; expected an integer"),
    ):
        assert run(predict, [*words, "--opts", *pair]) == 2
        assert sentence in capsys.readouterr().err
    data = ["--config-file", "world", "--run.output", str(tmp_path), "--data.dataset", "world:tune"]
    assert run(train, [*data, "MODEL.NOTHING", "1"]) == 2
    assert "'MODEL.NOTHING' is unknown to this command" in capsys.readouterr().err


def test_training_goes_on_with_a_low_loss(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--config-file", "world", "--weights", "world", "--data.dataset", "world:train:16"]
    run = ["--schedule.steps", "3", "--run.batch", "8", "--run.workers", "0"]
    train([*words, *run, "--optimizer.base-lr", "1e-5", "--run.log-period", "1",
           "--run.eval-period", "0", "--run.output", str(tmp_path)])  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    curve = json.loads(world_file("san").with_suffix(".json").read_text())["stages"][-1]["losses"]
    first, last = curve["loss"][0], np.mean(curve["loss"][-5:])
    assert np.mean(losses) < (first + 2 * last) / 3


def _losses_of_training(precision: str) -> list[float]:
    """Train the world's SAN on two scenes for three steps, and return the losses."""
    scenes = [scene(index, "train", size=96) for index in range(2)]
    images, labels = (
        torch.from_numpy(np.stack(part)) for part in list(zip(*scenes, strict=True))[:2]
    )
    segmenter, seeds = load_san("world", device="cpu"), [0, 1]
    step = SANStep(segmenter.network.train(), SANCriterion(SANCriterionConfig(points=2304)))
    step.text = segmenter.text.encode_names(world_vocabulary().words, "single").clone()
    optimizer = make_optimizer(segmenter.network, SANOptimizerConfig(base_lr=1e-5))
    batch = {"images": images.permute(0, 3, 1, 2), "labels": labels, "ids": [], "seeds": seeds}
    counts = [len(target.labels) for target in step.targets(batch)]
    totals = totals_of(counts, segmenter.config.num_queries, 0.1)
    losses = []
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = torch.stack(list(step(batch, totals).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_losses_in_bf16_follow_those_in_fp32():
    full, half = (_losses_of_training(precision) for precision in ("fp32", "bf16"))
    assert half != full  # autocast was at work
    assert half == pytest.approx(full, rel=0.02)
