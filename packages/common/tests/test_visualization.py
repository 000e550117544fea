from __future__ import annotations

from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw

from openvocab.drawing import fonts
from openvocab.drawing.fonts import drawable, font_for, shorten
from openvocab.drawing.legend import legend_entries
from openvocab.drawing.overlay import (
    color_labels,
    draw_overlay,
    label_shares,
    palette,
    side_by_side,
)

STIX = Path(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf")


def stripes(height: int, width: int, names: int) -> np.ndarray:
    """Return labels in vertical stripes of growing width: the last label is the largest."""
    edges = np.cumsum(np.arange(1, names + 1))
    return (
        np.searchsorted(edges * width / edges[-1], np.arange(width), side="right")
        .astype(np.int32)[None]
        .repeat(height, axis=0)
    )


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def swatches(picture: np.ndarray, names: int) -> list[tuple[int, int, int]]:
    """Return for each colour of the palette where its legend square is: (column, row, color)."""
    weights = np.array([65536, 256, 1])
    codes = picture.astype(int) @ weights
    found = []
    for index, code in enumerate(palette(names).astype(int) @ weights):
        rows, columns = np.nonzero(codes == code)
        if len(rows) >= 60:
            found.append((int(columns.min()) // 40, int(rows.min()), index))
    return sorted(found)


# --- colours


def test_colors_are_distinct_and_stable() -> None:
    assert len(np.unique(palette(10_000), axis=0)) == 10_000
    np.testing.assert_array_equal(palette(150)[:21], palette(21))
    assert palette(0).shape == (0, 3)
    assert palette(3).dtype == np.uint8


def test_the_first_colors_are_far_apart() -> None:
    unit = palette(20)[None].astype(np.float32) / 255
    lab = cv2.cvtColor(unit, cv2.COLOR_RGB2LAB)[0]
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    assert distances[~np.eye(20, dtype=bool)].min() > 25  # 2.3 is just noticeable
    assert np.hypot(lab[:, 1], lab[:, 2]).min() > 20  # none is grey


def test_painted_labels() -> None:
    painted = color_labels(np.array([[0, 2, -1]]), 3)
    np.testing.assert_array_equal(painted[0, :2], palette(3)[[0, 2]])
    assert not painted[0, 2].any()


def test_shares_by_hand() -> None:
    assert label_shares(np.array([[3, 3, -1, 0]])) == [(3, 0.5), (0, 0.25)]
    assert label_shares(np.full((2, 2), -1)) == []
    assert label_shares(np.zeros((0, 3), np.int32)) == []


# --- overlays


@pytest.mark.parametrize("names", [1, 2, 7, 60, 119])
def test_the_legend_lists_all_that_is_there_by_area(names: int) -> None:
    labels = stripes(240, 7140 if names > 60 else 1830, names)
    all_names = [f"n{i}" for i in range(names)]
    picture = draw_overlay(grey(*labels.shape), labels, all_names, alpha=0)
    found = swatches(picture, names)
    assert [index for _, _, index in found] == list(range(names))[::-1]


def test_names_that_do_not_occur_are_not_listed() -> None:
    labels = np.where(stripes(300, 400, 2) == 0, 3, 141).astype(np.int32)
    picture = draw_overlay(grey(300, 400), labels, [f"n{i}" for i in range(150)])
    assert [index for _, _, index in swatches(picture, 150)] == [141, 3]


def test_hundreds_of_names_are_counted_not_listed() -> None:
    labels = (np.arange(600 * 800).reshape(600, 800) // 1200 % 400).astype(np.int32)
    picture = draw_overlay(grey(600, 800), labels, [f"n{i}" for i in range(400)])
    assert max(picture.shape) < 3000
    assert len(swatches(picture, 400)) == 120


def test_regions_are_tinted_and_nothing_is_left_alone() -> None:
    labels = np.full((400, 600), -1, np.int32)
    labels[:, :300] = 0
    picture = draw_overlay(grey(400, 600), labels, ["wall"], alpha=0.5, legend=False)
    assert picture.shape == (400, 600, 3)
    np.testing.assert_array_equal(picture[5, 400], [128, 128, 128])
    np.testing.assert_allclose(picture[5, 50], palette(1)[0] / 2 + 64, atol=1)
    np.testing.assert_array_less(220, picture[5, 299].astype(int))  # a light outline


def test_a_name_is_written_into_its_region() -> None:
    labels = np.zeros((400, 600), np.int32)
    named = draw_overlay(grey(400, 600), labels, ["wall"], legend=False)
    rows, columns = np.nonzero((named == 255).all(axis=2))
    assert abs(rows.mean() - 200) < 20 and abs(columns.mean() - 300) < 20
    assert 20 < np.ptp(columns) < 100


def test_a_name_that_does_not_fit_becomes_its_number() -> None:
    labels = np.full((400, 600), -1, np.int32)
    labels[100:130, 100:130] = 0
    name = "a very long name that cannot fit into thirty pixels"
    picture = draw_overlay(grey(400, 600), labels, [name], legend=False)
    rows, columns = np.nonzero((picture == 255).all(axis=2))
    inside = (rows > 101) & (rows < 128) & (columns > 101) & (columns < 128)
    assert inside.sum() > 5
    assert (columns < 131).all() and (columns > 98).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (20, 3000), (9, 12)])
@pytest.mark.parametrize("names", [1, 2])
def test_tiny_and_thin_images_become_visible(size: tuple[int, int], names: int) -> None:
    labels = (np.arange(size[0] * size[1]).reshape(size) % names).astype(np.int32)
    picture = draw_overlay(grey(*size), labels, ["cat", "dog"])
    assert min(picture.shape[:2]) >= 24 and max(picture.shape[:2]) <= 3000


def test_huge_images_are_shrunk() -> None:
    labels = stripes(3000, 4000, 5)
    picture = draw_overlay(grey(3000, 4000), labels, list("abcde"), legend=False)
    assert picture.shape == (1536, 2048, 3)
    assert draw_overlay(grey(3000, 4000), labels, list("abcde"), max_side=500, legend=False).shape[
        :2
    ] == (375, 500)


def test_nothing_at_all() -> None:
    labels = np.full((400, 600), -1, np.int32)
    picture = draw_overlay(grey(400, 600), labels, ["cat"])
    np.testing.assert_array_equal(picture[:400, :600], grey(400, 600))
    assert (picture[400:] < 130).any()  # "nothing 100 %" is written


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="labels"):
        draw_overlay(grey(4, 5), np.zeros((5, 4), np.int32), ["a"])


def test_the_inputs_are_not_changed() -> None:
    image, labels = grey(200, 300), stripes(200, 300, 3)
    before = image.copy(), labels.copy()
    draw_overlay(image, labels, ["a", "b", "c"])
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(labels, before[1])


# --- side by side


def test_panels_have_one_height_and_titles() -> None:
    panels = [grey(100, 200), grey(300, 300), grey(50, 10)]
    row = side_by_side(panels, ["image", "a title that is far too long for its panel" * 3, "gt"])
    assert row.shape == (512 + 40, 1024 + 512 + 102 + 20, 3)
    assert (row[:40] < 100).any()
    assert (row[:, 1024:1034] == 255).all()
    bare = side_by_side(panels, height=100, gap=4)
    assert bare.shape == (100, 200 + 100 + 20 + 8, 3)


@pytest.mark.parametrize(("count", "titles"), [(0, None), (2, ["one"])])
def test_panels_without_sense(count: int, titles: list[str] | None) -> None:
    with pytest.raises(ValueError, match="images with"):
        side_by_side([grey(4, 4)] * count, titles)


# --- lettering


@pytest.fixture
def no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_system_fonts", lambda: ())
    fonts._system_font.cache_clear()


@pytest.mark.usefixtures("no_system_fonts")
def test_signs_without_a_font_become_boxes_with_their_label() -> None:
    assert drawable("crème  brûlée\n собака") == "crème brûlée собака"
    assert drawable("猫 cat") == "□ cat"
    shares, colors = [(1, 1.0)], palette(2)
    entry = legend_entries(shares, ["cat", "猫"], colors)[0]
    assert entry.name == "□ (label 1)"
    draw_overlay(grey(200, 300), np.ones((200, 300), np.int32), ["cat", "猫"])


def test_a_system_font_that_has_the_signs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    only_stix = next(
        chr(code)
        for code in sorted(fonts._characters(str(STIX)) - fonts._characters(fonts._REGULAR))
        if chr(code).isprintable()
    )
    monkeypatch.setattr(fonts, "_system_fonts", lambda: (str(STIX),))
    fonts._system_font.cache_clear()
    assert drawable(only_stix) == only_stix
    assert font_for(only_stix, 20).path == str(STIX)
    assert font_for("plain", 20).path == fonts._REGULAR
    fonts._system_font.cache_clear()


def test_shortened_lines_fit() -> None:
    font = font_for("x", 16)
    line = "one two three four five six"
    assert shorten(line, font, 1000) == line
    cut = shorten(line, font, 90)
    assert cut.endswith("…") and line.startswith(cut[:-1]) and font.getlength(cut) <= 90
    assert font.getlength(line[: len(cut) + 1] + "…") > 90  # one more would not fit
    pen = ImageDraw.Draw(Image.new("RGB", (4, 4)))
    assert pen.textlength(cut, font) <= 90
