"""Controls and floors against numbers that are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from benchmarks.quality import controls

from openvocab.metrics.scores import scores


def test_exchanged_names_leave_nothing_of_perfect_masks() -> None:
    matrix = np.hstack([10 * np.eye(6, dtype=np.int64), np.zeros((6, 1), np.int64)])
    assert scores(matrix).miou == 100 and controls.shuffled_names(matrix) == 0
    assert controls.control_of(matrix, 100.0)["ratio"] is None


def test_exchanged_names_do_not_hurt_who_guesses() -> None:
    matrix = np.full((6, 7), 5, dtype=np.int64)  # the same for every name, and for nothing
    control = controls.control_of(matrix, scores(matrix).miou)
    assert control["ratio"] == pytest.approx(1) and control["permutations"] == 200
    assert (matrix == 5).all()


def test_two_names_can_be_exchanged_in_one_way() -> None:
    matrix = np.array([[8, 2, 0], [5, 5, 0]])
    assert controls.shuffled_names(matrix) == pytest.approx(scores(matrix[:, [1, 0, 2]]).miou)
    assert controls.shuffled_names(matrix[:1, [0, 2]]) is None


@pytest.mark.parametrize("count", [2, 3, 60])
def test_a_derangement_moves_everything(count) -> None:
    random = np.random.default_rng(0)
    found = {tuple(controls.derangement(count, random)) for _ in range(50)}
    assert all(sorted(p) == list(range(count)) for p in found)
    assert all(place != value for p in found for place, value in enumerate(p))
    assert len(found) == {2: 1, 3: 2, 60: 50}[count]


def test_floors_hold_or_not_or_are_not_decided() -> None:
    tree: dict = {"scores": {"ovseg": {"seen": 50.0, "unseen": 34.9}}, "one_step": {"low": 0.0}}

    def holds(images: int) -> dict:
        return {row["path"]: row["holds"] for row in controls.floor_rows(tree, images)}

    found = holds(256)
    assert found["scores.ovseg.seen"] is True and found["scores.ovseg.unseen"] is False
    assert found["one_step.low"] is False  # it must be above 0
    assert found["crops.unseen"] is None and set(holds(199).values()) == {None}


def test_floors_are_those_of_the_issue() -> None:
    floors = json.loads(controls.FLOORS.read_text())["floors"]
    assert [f.get("at_least", f.get("above")) for f in floors] == [
        90, 75, 50, 35, 45, 30, 20, 0, 5, 5, 5,
    ]  # fmt: skip
