"""CaR with the small CLIP of the embedded world: the recurrence on a CLIP that was trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from car.config import named_config
from car.demo import main as demo
from car.segmenter import load_car
from openvocab.datasets import resolve
from openvocab.metrics.scores import ConfusionMatrix, scores
from openvocab.world import scene, world_names, world_vocabulary


def test_it_finds_what_is_there_and_drops_what_is_not():
    segmenter, matrix = load_car("world", device="cpu"), ConfusionMatrix(60, 255)
    right, said = 0, 0
    for index in range(10):
        image, label, _ = scene(index, "val")
        found = segmenter.segment(image, world_vocabulary()).labels
        matrix.update(found, label)
        there = set(np.unique(label)) - {255}
        named = set(np.unique(found)) - {-1}
        right, said = right + len(there & named), said + len(named)
    assert right > 0.5 * said  # by chance it would be a twelfth
    assert scores(matrix.matrix).miou > 15
    assert len(world_names()) == 60


def test_confidences_are_left_out_where_the_settings_are_not_those_they_were_fitted_for():
    settings = named_config("world").car
    assert load_car("world", device="cpu").calibration is not None
    assert load_car(config=settings, device="cpu").calibration is not None
    others = replace(settings, mask_threshold=settings.mask_threshold / 2)
    assert load_car("world", config=others, device="cpu").calibration is None


def test_demo_takes_its_configuration_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = resolve("world:tune").samples[0].image
    words = ["--config", "world", "--input", str(image), "--class-names", "dog", "grass", "sky"]
    assert demo([*words, "--output", str(tmp_path), "--device", "cpu"]) == 0
    assert list(tmp_path.rglob("*.png"))
