"""The legend beside or below a picture: colours, numbers, names and shares, largest first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from openvocab.drawing.fonts import MISSING, drawable, font_for, shorten
from openvocab.image import ImageArray
from openvocab.vocabulary import NOTHING_8BIT, NOTHING_16BIT

WHITE, INK, GREY = (255, 255, 255), (24, 24, 27), (113, 113, 122)
_MAX_ENTRIES = 120  # the largest are listed, the others counted
_SCREEN = 1.6  # width to height of what the picture is looked at on


@dataclass(frozen=True)
class LegendEntry:
    """One line of a legend, by falling area; a remark has no color.

    Attributes:
        name: as it can be drawn.
        share: of the image, as text.
        color: of the region.
        number: its value in a label map; stands in the region where the name does not fit.
    """

    name: str
    share: str
    color: tuple[int, int, int] | None = None
    number: str = ""


def legend_entries(
    shares: Sequence[tuple[int, float]], names: Sequence[str], colors: npt.NDArray[np.uint8]
) -> list[LegendEntry]:
    """List what was found, with the value of each name in label maps that are PNGs.

    Args:
        shares: (label, share of the image), largest first.
        names: of all labels.
        colors: (K, 3) uint8, of all labels.
    """
    entries = []
    for index, share in shares[:_MAX_ENTRIES]:
        red, green, blue = (int(value) for value in colors[index])
        name = drawable(names[index])
        if MISSING in name:
            name = f"{name} (label {index})"
        entries.append(LegendEntry(name, _percent(share), (red, green, blue), str(index)))
    if rest := shares[_MAX_ENTRIES:]:
        total = sum(share for _, share in rest)
        entries.append(LegendEntry(f"and {len(rest)} more", _percent(total)))
    nothing = 1 - sum(share for _, share in shares)
    if nothing > 1e-9:
        value = NOTHING_8BIT if len(names) <= NOTHING_8BIT else NOTHING_16BIT
        entries.append(LegendEntry("nothing", _percent(nothing), number=str(value)))
    return entries


def add_legend(picture: ImageArray, entries: Sequence[LegendEntry], text_size: int) -> ImageArray:
    """Add the legend to the right or below, in the columns that a screen shows largest."""
    if not entries:
        return picture
    pad, line_height = text_size, round(1.6 * text_size)
    full, least = _column_widths(entries, text_size)
    layout = _best_layout(picture.shape[:2], len(entries), (least, line_height), pad)
    canvas = Image.new("RGB", layout.size, WHITE)
    canvas.paste(Image.fromarray(picture), (0, 0))
    pen = ImageDraw.Draw(canvas)
    left, top = layout.origin
    column = min(full, (layout.size[0] - left - pad) // layout.columns)
    for place, entry in enumerate(entries):
        corner = (
            left + (place // layout.rows) * column,
            top + (place % layout.rows) * line_height,
        )
        _draw_entry(pen, entry, corner, column - pad, text_size)
    return np.array(canvas)


@dataclass(frozen=True)
class _Layout:
    """Where a legend goes: size of the whole, its upper left corner, lines down and columns."""

    size: tuple[int, int]
    origin: tuple[int, int]
    rows: int
    columns: int

    @property
    def shown_size(self) -> float:
        """How much the whole has to shrink to fit a screen."""
        return max(self.size[0] / _SCREEN, self.size[1])


def _percent(share: float) -> str:
    percent = 100 * share
    if percent < 0.05:
        return "<0.1 %"
    return f"{percent:.1f} %" if percent < 9.95 else f"{percent:.0f} %"


def _best_layout(picture: tuple[int, int], count: int, cell: tuple[int, int], pad: int) -> _Layout:
    """Choose between right and below, and the number of columns.

    Args:
        picture: (height, width).
        count: of the legend's lines.
        cell: (width, height) of one line.
        pad: white around the legend.
    """
    height, width = picture
    layouts = []
    for columns in range(1, count + 1):
        rows = -(-count // columns)
        wide, high = columns * cell[0] + 2 * pad, rows * cell[1] + 2 * pad
        beside, below = (width + wide, max(height, high)), (max(width, wide), height + high)
        layouts.append(_Layout(beside, (width + pad, pad), rows, columns))
        layouts.append(_Layout(below, (pad, height + pad), rows, columns))
    return min(layouts, key=lambda layout: (layout.shown_size, math.prod(layout.size)))


def _column_widths(entries: Sequence[LegendEntry], text_size: int) -> tuple[int, int]:
    """Return the width at which all names fit, and one at which the longest are shortened."""
    longest = max(
        (font_for(entry.name, text_size).getlength(entry.name) for entry in entries), default=0
    )
    rest = _name_start(text_size) + _share_width(text_size) + 1.6 * text_size
    return math.ceil(longest + rest), math.ceil(min(longest, 14 * text_size) + rest)


def _name_start(text_size: int) -> float:
    return 1.8 * text_size + font_for("000", text_size).getlength("000")


def _share_width(text_size: int) -> float:
    return font_for("<0.1 %", text_size).getlength("<0.1 %")


def _draw_entry(
    pen: ImageDraw.ImageDraw,
    entry: LegendEntry,
    corner: tuple[int, int],
    width: int,
    text_size: int,
) -> None:
    """Draw colour, number, name and share in one line of a width."""
    left, middle = corner[0], corner[1] + 0.8 * text_size
    half = round(0.55 * text_size)
    plain = font_for("0", text_size)
    name_left = left + _name_start(text_size)
    if entry.color is not None:
        box = (left, round(middle) - half, left + 2 * half, round(middle) + half)
        pen.rectangle(box, entry.color, INK)
    pen.text((name_left - 0.4 * text_size, middle), entry.number, GREY, plain, "rm")
    font = font_for(entry.name, text_size)
    room = left + width - name_left - _share_width(text_size) - 0.4 * text_size
    color = GREY if entry.color is None else INK
    pen.text((name_left, middle), shorten(entry.name, font, room), color, font, "lm")
    pen.text((left + width, middle), entry.share, GREY, plain, "rm")
