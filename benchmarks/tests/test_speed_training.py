"""The training benchmark's parts that need no full-size model."""

from __future__ import annotations

from benchmarks.speed import training_step


def test_scenes_have_as_many_classes_as_promised() -> None:
    label = training_step._label_map(3)
    assert label.shape == (640, 640) and len(label.unique()) == training_step.PRESENT


def test_the_loader_alone_gives_samples() -> None:
    assert training_step.loader_rate(workers=0, samples=4, batch=2) > 0


def test_a_step_is_given_as_many_batches_as_it_was_promised() -> None:
    with training_step.loading(workers=0, steps=2, batch=2) as batches:
        shapes = [tuple(batch["images"].shape) for batch in batches]
    assert shapes == [(2, 3, 640, 640)] * 2


def test_the_clock_credits_all_time() -> None:
    clock = training_step.Clock()
    for name in ("a", "b", "a"):
        clock.stop(name)
    assert set(clock.seconds) == {"a", "b"} and min(clock.seconds.values()) >= 0
