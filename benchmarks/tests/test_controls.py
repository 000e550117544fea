"""Controls and acceptance thresholds against numbers that are known."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.quality import acceptance, controls

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


def test_thresholds_hold_or_not_or_are_not_decided() -> None:
    tree: dict = {
        "scores": {"ovseg": {"seen": 50.0, "unseen": 34.9}, "car": {}},
        "diagnoses": {"car": {"one-step": {"paired": {"low": 0.0}}}},
    }

    def holds(images: int) -> dict:
        return {row["what"]: row["holds"] for row in acceptance.threshold_rows(tree, images)}

    found = holds(256)
    assert found["OVSeg, seen names"] is True and found["OVSeg, unseen names"] is False
    step = "CaR minus CaR after one step, lower end of the 95 % interval"
    assert found[step] is False  # it must be above 0
    crops = "CLIP, top-1 on crops of unseen names, %"
    assert found[crops] is None and set(holds(199).values()) == {None}
    assert not any(what.startswith("SAN") for what in found)  # it was not compared


def test_thresholds_are_those_of_the_issue() -> None:
    scores: dict = {"scores": {"san": {}, "ovseg": {}, "car": {}}}
    rows = acceptance.threshold_rows(scores, 200)
    assert {row["what"]: row.get("at_least", row.get("above")) for row in rows} == {
        "CLIP, top-1 on crops of unseen names, %": 90,
        "true masks, named by OVSeg's CLIP": 75,
        "OVSeg, seen names": 50,
        "OVSeg, unseen names": 35,
        "SAN, seen names": 45,
        "SAN, unseen names": 30,
        "CaR, all names": 20,
        "CaR minus CaR after one step, lower end of the 95 % interval": 0,
        "SAN, ratio to its shuffled-name control": 5,
        "OVSeg, ratio to its shuffled-name control": 5,
        "CaR, ratio to its shuffled-name control": 5,
    }
    assert [row["what"] for row in rows if "above" in row] == [
        "CaR minus CaR after one step, lower end of the 95 % interval"
    ]
