"""Maps and numbers as small pictures: heat over a photo, one region of it, bars with names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from openvocab.drawing.fonts import drawable, font_for, shorten
from openvocab.drawing.legend import INK, WHITE
from openvocab.image import ImageArray

KEPT, DROPPED, NEUTRAL = (21, 128, 61), (185, 28, 28), (37, 99, 235)
_TRACK = (228, 228, 231)
_HEAT = 0.6  # how much of the colors covers the photo
_DIM = 0.35  # brightness of the photo outside of a region
_TEXT = 14
_ROW = 22


@dataclass(frozen=True)
class Bar:
    """One line of a chart.

    Attributes:
        name: stands on the left.
        value: at least 0; length of the bar, and a number on the right.
        color: of the bar.
    """

    name: str
    value: float
    color: tuple[int, int, int] = NEUTRAL


def fit_to(image: ImageArray, side: int) -> ImageArray:
    """Shrink or enlarge an image (H, W, 3) so that its long side is `side` pixels long."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=how), dtype=np.uint8)


def heat(image: ImageArray, values: NDArray[Any]) -> ImageArray:
    """Lay a map over an image, from black for 0 over purple and orange to yellow for 1.

    Args:
        image: (H, W, 3) uint8 RGB.
        values: (h, w) in 0..1, of any size; a cell of it stays a rectangle.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    levels = (values.astype(np.float32) * 255).clip(0, 255).astype(np.uint8)
    large = cv2.resize(levels, (width, height), interpolation=cv2.INTER_NEAREST)
    colors = cv2.cvtColor(cv2.applyColorMap(large, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    gray = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    return np.asarray(cv2.addWeighted(gray, 1 - _HEAT, colors, _HEAT, 0), dtype=np.uint8)


def spotlight(image: ImageArray, mask: NDArray[Any]) -> ImageArray:
    """Darken an image outside of a soft mask.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (h, w) in 0..1, of any size.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    soft = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    light = _DIM + (1 - _DIM) * soft.clip(0, 1)[..., None]
    gray = image.mean(axis=2, keepdims=True)
    mixed = soft.clip(0, 1)[..., None] * image + (1 - soft.clip(0, 1)[..., None]) * gray
    return np.asarray((mixed * light).round().clip(0, 255), dtype=np.uint8)


def bars(
    lines: Sequence[Bar], *, title: str = "", threshold: float | None = None, width: int = 320
) -> ImageArray:
    """Draw bars with names and numbers, all on one scale.

    Args:
        lines: from top to bottom.
        title: above them.
        threshold: where a vertical line is drawn.
        width: of the picture.

    Returns:
        (H, width, 3) uint8.
    """
    top = _ROW + 4 if title else 4
    foot = _ROW if threshold is not None else 4
    canvas = Image.new("RGB", (width, top + _ROW * max(1, len(lines)) + foot), WHITE)
    pen = ImageDraw.Draw(canvas)
    if title:
        _write(pen, (2, _ROW / 2), title, width - 4, bold=True)
    font = font_for("0", _TEXT)
    numbers = [number(line.value) for line in lines]
    left = round(0.42 * width)
    right = width - 10 - round(max([font.getlength(text) for text in [*numbers, "0.00"]]))
    longest = max([line.value for line in lines] + [threshold or 0, 1e-9])
    for place, (line, text) in enumerate(zip(lines, numbers, strict=True)):
        middle = top + (place + 0.5) * _ROW
        _write(pen, (2, middle), line.name, left - 10)
        pen.rectangle((left, middle - 6, right, middle + 6), _TRACK)
        end = left + (right - left) * max(0.0, line.value) / longest
        if line.value > 0:
            pen.rectangle((left, middle - 6, max(left + 1, end), middle + 6), line.color)
        pen.text((width - 2, middle), text, INK, font, "rm")
    if threshold is not None:
        at = left + (right - left) * threshold / longest
        bottom = top + _ROW * max(1, len(lines))
        pen.line((at, top, at, bottom + 4), INK, 2)
        said = f"threshold {number(threshold)}"
        room = font_for(said, _TEXT).getlength(said) / 2
        center = min(max(at, room + 2), width - room - 2)
        pen.text((center, bottom + foot / 2 + 2), said, INK, font_for(said, _TEXT), "mm")
    return np.array(canvas)


def beside(pictures: Sequence[ImageArray], gap: int = 10) -> ImageArray:
    """Put pictures (H, W, 3) in a row as they are, on white."""
    height = max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) - 1)
    canvas = np.full((height, width, 3), 255, np.uint8)
    left = 0
    for picture in pictures:
        canvas[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    return canvas


def number(value: float) -> str:
    """Write a value that is not negative with at most four signs behind the point."""
    if value == 0 or value >= 0.01:
        return f"{value:.2f}"
    return f"{value:.4f}" if value >= 0.0001 else "<0.0001"


def _write(
    pen: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    room: float,
    *,
    bold: bool = False,
) -> None:
    line = drawable(text)
    font = font_for(line, _TEXT, bold=bold)
    pen.text(place, shorten(line, font, room), INK, font, "lm")
