"""The embedded world, scored by networks that know nothing: every number has its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.reporting.report import read_page

from openvocab.evaluation.results import Result
from openvocab.world import seen_labels


@pytest.fixture
def comparison(world_run) -> dict:
    return json.loads((world_run / "results" / "world--comparison.json").read_text())


def load(world_run: Path, *parts: str) -> Result:
    return Result.load(world_run / "results" / f"{'--'.join(('world', *parts))}.json")


def test_seen_names_are_those_of_the_world(comparison) -> None:
    assert comparison["seen"]["ids"] == list(seen_labels()) and comparison["seen"]["classes"] == 40
    for scores in comparison["scores"].values():
        assert scores["harmonic"] <= max(scores["seen"], scores["unseen"]) + 1e-9


def test_every_diagnosis_is_there_for_every_method(world_run, comparison) -> None:
    told = ["true-masks", "true-names", "known-presence"]
    assert {m: list(found) for m, found in comparison["diagnoses"].items()} == {
        "san": told, "ovseg": told, "car": [*told, "one-step"],
    }  # fmt: skip
    for method, found in comparison["diagnoses"].items():
        for part, entry in found.items():
            result = load(world_run, method, part)
            assert entry["all"] == pytest.approx(result.scores().miou)
            assert entry["images"] == load(world_run, method).card.n_images
            assert result.card.settings.get("told") == (part if part != "one-step" else None)
    assert load(world_run, "car", "one-step").card.settings["max_steps"] == 1


def test_true_names_lose_only_what_masks_lose(world_run) -> None:
    for method in ("san", "ovseg", "car"):
        itself, told = load(world_run, method), load(world_run, method, "true-names")
        assert told.scores().miou >= itself.scores().miou
        # No name that is nowhere in the truth is ever predicted.
        absent = told.matrix.sum(axis=1) == 0
        assert not told.matrix[:, :-1][:, absent].any()


def test_only_true_names_are_predicted_where_they_are_known(world_run) -> None:
    matrix = load(world_run, "ovseg", "known-presence").matrix
    absent = matrix.sum(axis=1) == 0
    assert not matrix[:, :-1][:, absent].any() and matrix.any()


def test_clip_is_tried_on_crops_of_every_name(comparison) -> None:
    crops = comparison["crops"]["car"]
    assert crops["crops_of_each_name"] == 20 and crops["grounds"].keys() == {"stuff", "flat"}
    assert all(0 <= crops[part] <= 100 for part in ("seen", "unseen"))


def test_the_report_ranks_nothing_on_photographs(world_run, comparison) -> None:
    page, text = ((world_run / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "<strong>These numbers do not predict the ranking on real photographs.</strong>" in page
    assert "**These numbers do not predict the ranking on real photographs.**" in text
    assert "published" not in text and ">published<" not in page
    for scores in comparison["scores"].values():
        assert f"{scores['unseen']:.2f}" in page and f"{scores['unseen']:.2f}" in text


def test_thresholds_are_not_decided_on_a_handful_of_scenes(world_run) -> None:
    (found,) = read_page(world_run)["sets"]
    assert len(found["thresholds"]) == 11 and {t["holds"] for t in found["thresholds"]} == {None}
    assert all(threshold["reached"] is not None for threshold in found["thresholds"])


def test_figures_are_there_as_svg_and_png(world_run) -> None:
    names = {path.stem for path in (world_run / "figures").glob("*.svg")}
    assert {"world-accuracy-seconds", "world-accuracy-memory", "world-classes-san-car"} <= names
    for name in names:
        assert (world_run / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
