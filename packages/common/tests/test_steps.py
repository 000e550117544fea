"""The sheet of a method's steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from openvocab.drawing.maps import KEPT, Bar, bars, beside, fit_to, heat, number, spotlight
from openvocab.drawing.steps import ShowingSteps, draw_steps
from openvocab.methods import Explained
from openvocab.segmenter import BaseSegmenter, Segmentation

RED = np.full((60, 80, 3), (200, 0, 0), np.uint8)
BLUE = np.full((60, 80, 3), (0, 0, 200), np.uint8)


def has(sheet: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((sheet == color).all(axis=-1).sum())


def test_every_picture_is_on_the_sheet_under_its_heading() -> None:
    shown = [Explained("a", RED, "Some words.", "One"), Explained("b", BLUE, "", "Two")]
    sheet = draw_steps(shown)
    assert has(sheet, (200, 0, 0)) == has(sheet, (0, 0, 200)) == RED.shape[0] * RED.shape[1]
    rows = [np.flatnonzero((sheet == color).all(-1).any(1)) for color in ((200, 0, 0), (0, 0, 200))]
    assert rows[0].max() < rows[1].min()
    one_group = draw_steps([Explained("a", RED, group="G"), Explained("b", BLUE, group="G")])
    assert one_group.shape[0] < sheet.shape[0]  # side by side


def test_empty_pictures_are_folded_into_a_line() -> None:
    full = [Explained(f"name {i}", RED, "text", "G") for i in range(30)]
    folded = [Explained(f"name {i}", BLUE, "text", "G", empty=True) for i in range(30)]
    sheet = draw_steps([full[0], *folded])
    assert not has(sheet, (0, 0, 200))
    assert sheet.shape[0] < draw_steps(full).shape[0] / 2
    line = draw_steps([full[0], folded[0]])
    assert line.shape[0] > draw_steps(full[:1]).shape[0]  # the line that names them


def test_long_words_and_large_pictures_stay_on_the_sheet() -> None:
    wide = np.full((300, 5000, 3), (200, 0, 0), np.uint8)
    tall = np.full((5000, 30, 3), (200, 0, 0), np.uint8)
    words = " ".join(["word"] * 300)
    sheet = draw_steps([Explained(words, one, words, words) for one in (wide, tall)])
    assert sheet.shape[1] == 1600 and sheet.shape[0] < 6000
    assert (sheet[:, :20] == 255).all() and (sheet[:, -20:] == 255).all()
    with pytest.raises(ValueError, match="no steps"):
        draw_steps([])


class Half(BaseSegmenter):
    """Names the left half."""

    calibrated = True

    def segment_arrays(self, images: list[np.ndarray], vocabulary: Any, return_scores: bool) -> Any:
        found = []
        for image in images:
            labels = np.full(image.shape[:2], -1, np.int32)
            labels[:, : image.shape[1] // 2] = 0
            found.append(Segmentation(labels, vocabulary, extra={"pictures": {"own": RED}}))
        return found

    def describe(self) -> dict[str, Any]:
        return {"method": "half"}


def test_showing_steps_adds_a_sheet_and_changes_no_label() -> None:
    asked = []

    def explain(segmenter: Any, image: np.ndarray, vocabulary: Any) -> list[Explained]:
        asked.append((segmenter, vocabulary.names))
        return [Explained("photo", image)]

    half = Half()
    shows = ShowingSteps(half, explain)
    found, plain = shows.segment(RED, ["cat"]), half.segment(RED, ["cat"])
    np.testing.assert_array_equal(found.labels, plain.labels)
    assert asked == [(half, ("cat",))]
    assert set(found.extra["pictures"]) == {"own", "steps"}
    assert has(found.extra["pictures"]["steps"], (200, 0, 0))
    assert shows.describe() == half.describe() and shows.calibrated


def test_heat_is_brighter_where_the_map_is_higher() -> None:
    gray = np.full((40, 60, 3), 120, np.uint8)
    shown = heat(gray, np.linspace(0, 1, 6)[None])
    means = [shown[:, 10 * i : 10 * i + 10].mean() for i in range(6)]
    assert means == sorted(means) and shown.shape == gray.shape


def test_a_spotlight_keeps_the_inside_and_dims_the_rest() -> None:
    mask = np.zeros((40, 60))
    mask[:, :30] = 1
    shown = spotlight(np.full((40, 60, 3), (200, 100, 50), np.uint8), mask)
    assert (shown[:, :29] == (200, 100, 50)).all()
    assert (shown[:, 31:].max() < 60) and (shown[:, 31:].min() > 20)


def test_bars_are_as_long_as_their_values() -> None:
    lines = [Bar("all", 0.8, KEPT), Bar("half", 0.4, KEPT), Bar("nothing", 0.0, KEPT)]
    chart = bars(lines, threshold=0.2, title="Scores")
    lengths = sorted((chart == KEPT).all(-1).sum(axis=1))
    longest = lengths[-1]
    assert {round(length / longest, 1) for length in lengths} == {0.0, 0.5, 1.0}
    assert bars([], threshold=0.1).shape[1] == 320
    assert [number(v) for v in (0.0, 0.5, 0.0031, 1e-9)] == ["0.00", "0.50", "0.0031", "<0.0001"]


def test_pictures_are_fitted_and_put_in_a_row() -> None:
    assert fit_to(RED, 40).shape == (30, 40, 3) and fit_to(RED, 160).shape == (120, 160, 3)
    row = beside([RED, fit_to(BLUE, 40)], gap=5)
    assert row.shape == (60, 80 + 5 + 40, 3)
