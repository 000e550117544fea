"""The small OVSeg that the package carries: it knows its world, and its training can go on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from openvocab.cli import run
from openvocab.datasets import resolve
from openvocab.metrics.scores import ConfusionMatrix, seen_unseen
from openvocab.weights.shipped import world_file
from openvocab.world import scene, seen_labels, world_vocabulary
from ovseg import load_ovseg
from ovseg.demo import main as predict
from ovseg.train import main as train


def test_it_names_scenes_that_it_never_saw():
    matrix, segmenter = ConfusionMatrix(60, 255), load_ovseg("world")
    for index in range(24):
        image, label, _ = scene(index, "val")
        matrix.update(segmenter.segment(image, world_vocabulary()).labels, label)
    found = seen_unseen(matrix.matrix, seen_labels())
    assert found.seen_miou > 35 and found.unseen_miou > 20


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_gives_nearly_the_same_labels(precision):
    exact, lower = load_ovseg("world"), load_ovseg("world", precision=precision)
    for index in range(3):
        image, _, _ = scene(index, "val")
        labels = [s.segment(image, world_vocabulary()).labels for s in (exact, lower)]
        assert (labels[0] == labels[1]).mean() > 0.98


def test_predict_takes_it_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = resolve("world:tune")
    words = ["--weights", "world", "--vocabulary", "world", "--input", str(data.samples[0].image)]
    assert predict([*words, "--output", str(tmp_path), "--device", "cpu"]) == 0
    assert list(tmp_path.rglob("*.png"))


def test_an_unknown_word_is_one_sentence(tmp_path, capsys):
    from openvocab.errors import InputError

    with pytest.raises(InputError, match="zebra"):
        load_ovseg("world").segment(np.zeros((64, 64, 3), np.uint8), ["dog", "zebra"])


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
    curve = json.loads(world_file("ovseg").with_suffix(".json").read_text())["stages"][0]["losses"]
    first, last = curve["loss"][0], np.mean(curve["loss"][-5:])
    assert np.mean(losses) < (first + 2 * last) / 3
