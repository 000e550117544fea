"""The training benchmark's parts that need no full-size model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1]


@pytest.fixture
def speed_training(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("speed_training", None)
    from benchmarks.speed import training_step as speed_training

    return speed_training


def test_scenes_have_as_many_classes_as_promised(speed_training) -> None:
    label = speed_training._label_map(3)
    assert label.shape == (640, 640) and len(label.unique()) == speed_training.PRESENT


def test_the_loader_alone_gives_samples(speed_training) -> None:
    assert speed_training.loader_rate(workers=0, samples=4, batch=2) > 0


def test_a_step_is_given_as_many_batches_as_it_was_promised(speed_training) -> None:
    with speed_training.loading(workers=0, steps=2, batch=2) as batches:
        shapes = [tuple(batch["images"].shape) for batch in batches]
    assert shapes == [(2, 3, 640, 640)] * 2


def test_the_clock_credits_all_time(speed_training) -> None:
    clock = speed_training.Clock()
    for name in ("a", "b", "a"):
        clock.stop(name)
    assert set(clock.seconds) == {"a", "b"} and min(clock.seconds.values()) >= 0
