"""How a method thinks, as one sheet: the pictures of its steps under headings, with captions."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from openvocab.drawing.fonts import drawable, font_for, shorten
from openvocab.drawing.legend import GREY, INK, WHITE
from openvocab.image import ImageArray
from openvocab.methods import Explained
from openvocab.segmenter import BaseSegmenter, Segmentation, Segmenter
from openvocab.vocabulary import Vocabulary

Explain = Callable[[Any, ImageArray, Vocabulary], Sequence[Explained]]

_WIDTH, _MARGIN, _GAP = 1600, 28, 22  # of the sheet; around and between pictures
_HEIGHT, _NARROWEST = 480, 230  # of a picture; of the room for its caption
_TEXT, _HEADING = 16, 24
_RULE = (212, 212, 216)


class ShowingSteps(BaseSegmenter):
    """A method that hands a sheet of its steps over with each result.

    Args:
        segmenter: the method; what it finds is not changed.
        explain: shows what the method does with an image, see `openvocab.methods.Method`.

    Attributes:
        pictures: the names of those that each result has more than those of the method.
    """

    pictures = ("steps",)

    def __init__(self, segmenter: Segmenter, explain: Explain) -> None:
        self.segmenter, self.explain = segmenter, explain
        self.calibrated = bool(getattr(segmenter, "calibrated", False))

    def vocabulary(self, names: Any) -> Vocabulary:
        """Return the method's own vocabulary of names."""
        own = getattr(self.segmenter, "vocabulary", None)
        return super().vocabulary(names) if own is None else own(names)

    def segment_arrays(
        self, images: list[ImageArray], vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        """Segment images, and put the sheet into `extra["pictures"]["steps"]`."""
        return [self._segment(image, vocabulary, return_scores) for image in images]

    def _segment(
        self, image: ImageArray, vocabulary: Vocabulary, return_scores: bool
    ) -> Segmentation:
        found = self.segmenter.segment(image, vocabulary, return_scores=return_scores)
        sheet = draw_steps(self.explain(self.segmenter, image, vocabulary))
        pictures = {**found.extra.get("pictures", {}), "steps": sheet}
        return replace(found, extra={**found.extra, "pictures": pictures})

    def describe(self) -> dict[str, Any]:
        """Return what the method says about itself."""
        return self.segmenter.describe()


@dataclass(frozen=True)
class _Tile:
    """A picture with its title and caption, broken into lines."""

    title: str
    picture: ImageArray
    caption: tuple[str, ...]
    width: int

    @property
    def height(self) -> int:
        lines = 1 + len(self.caption)
        return _line(_TEXT) * lines + int(self.picture.shape[0]) + 8


def draw_steps(explained: Sequence[Explained]) -> ImageArray:
    """Draw the steps of a method as one picture.

    Each group of pictures has a heading. Pictures in which there is nothing to see are folded into
    one line that names them.

    Args:
        explained: from the first step to the last; at least one.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: there is no picture.
    """
    if not explained:
        raise ValueError("there are no steps to draw")
    strips: list[ImageArray] = []
    for heading, members in groupby(explained, key=lambda one: one.group):
        group = list(members)
        if heading:
            strips.append(_heading(heading))
        strips += [_row(tiles) for tiles in _rows([one for one in group if not one.empty])]
        if folded := [one.title for one in group if one.empty]:
            strips.append(_remark(f"Nothing to see: {', '.join(folded)}."))
    return np.concatenate([_space(_MARGIN), *strips, _space(_MARGIN)])


def _rows(explained: Sequence[Explained]) -> Iterator[list[_Tile]]:
    """Distribute pictures over rows, in order."""
    room = _WIDTH - 2 * _MARGIN
    row: list[_Tile] = []
    for one in explained:
        tile = _tile(one)
        if row and sum(other.width + _GAP for other in row) + tile.width > room:
            yield row
            row = []
        row.append(tile)
    if row:
        yield row


def _tile(one: Explained) -> _Tile:
    picture = _fit(one.picture)
    width = max(picture.shape[1], _NARROWEST)
    font = font_for(one.text, _TEXT)
    letters = max(8, int(width / (font.getlength("abcdefghijklmnopqrstuvwxyz ") / 27)))
    lines = [line for part in one.text.splitlines() for line in textwrap.wrap(part, letters)]
    return _Tile(one.title, picture, tuple(lines), width)


def _row(tiles: Sequence[_Tile]) -> ImageArray:
    canvas = Image.new("RGB", (_WIDTH, max(tile.height for tile in tiles) + _GAP // 2), WHITE)
    pen = ImageDraw.Draw(canvas)
    left = _MARGIN
    for tile in tiles:
        _write(pen, (left, 0), tile.title, tile.width, bold=True)
        top = _line(_TEXT)
        canvas.paste(Image.fromarray(tile.picture), (left, top))
        top += tile.picture.shape[0] + 4
        for place, line in enumerate(tile.caption):
            _write(pen, (left, top + place * _line(_TEXT)), line, tile.width, color=GREY)
        left += tile.width + _GAP
    return np.array(canvas)


def _heading(text: str) -> ImageArray:
    canvas = Image.new("RGB", (_WIDTH, 2 * _HEADING + 12), WHITE)
    pen = ImageDraw.Draw(canvas)
    pen.line((_MARGIN, 4, _WIDTH - _MARGIN, 4), _RULE, 2)
    _write(pen, (_MARGIN, 12), text, _WIDTH - 2 * _MARGIN, size=_HEADING, bold=True)
    return np.array(canvas)


def _remark(text: str) -> ImageArray:
    letters = int((_WIDTH - 2 * _MARGIN) / (0.55 * _TEXT))
    lines = textwrap.wrap(text, letters)
    canvas = Image.new("RGB", (_WIDTH, _line(_TEXT) * len(lines) + 10), WHITE)
    pen = ImageDraw.Draw(canvas)
    for place, line in enumerate(lines):
        top = place * _line(_TEXT)
        _write(pen, (_MARGIN, top), line, _WIDTH - 2 * _MARGIN, color=GREY)
    return np.array(canvas)


def _write(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    room: int,
    *,
    size: int = _TEXT,
    bold: bool = False,
    color: tuple[int, int, int] = INK,
) -> None:
    line = drawable(text)
    font = font_for(line, size, bold=bold)
    middle = corner[1] + _line(size) / 2
    pen.text((corner[0], middle), shorten(line, font, room), color, font, "lm")


def _fit(picture: ImageArray) -> ImageArray:
    """Shrink a picture until it fits on the sheet."""
    height, width = picture.shape[:2]
    scale = min(1.0, _HEIGHT / height, (_WIDTH - 2 * _MARGIN) / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _space(height: int) -> ImageArray:
    return np.full((height, _WIDTH, 3), 255, np.uint8)


def _line(size: int) -> int:
    return round(1.45 * size)
