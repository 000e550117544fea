"""An ellipse one pixel wide, with the pixels that OpenCV up to 4.10 draws.

Later releases draw other pixels, which changes CLIP's scores. So that the scores do not depend on
the installed release, the outline is drawn here, as a polygon whose corners have 16 fractional
bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from openvocab.image import ImageArray

_ONE = 1 << 16
_HALF = _ONE >> 1

Point = tuple[int, int]


def draw_ellipse(
    canvas: ImageArray, center: Point, half: Point, color: tuple[int, int, int]
) -> None:
    """Draw an upright ellipse on (H, W, 3), in place.

    Args:
        canvas: the image.
        center: x, y.
        half: half of its width and height.
        color: color of the line.
    """
    height, width = canvas.shape[:2]
    corners = _corners(center, half)
    for first, second in pairwise(corners):
        clipped = _clip(first, second, (width * _ONE - 1, height * _ONE - 1))
        for x, y in _line(*clipped) if clipped else ():
            if 0 <= x < width and 0 <= y < height:
                canvas[y, x] = color


def _corners(center: Point, half: Point) -> list[Point]:
    """Corners of the polygon, the first one repeated at the end."""
    longest = max(half)
    step = 90 if longest < 3 else 30 if longest < 10 else 18 if longest < 15 else 5
    angles = np.deg2rad(np.arange(0, 361, step))
    x = center[0] + half[0] * np.cos(angles).round(7)
    y = center[1] + half[1] * np.sin(angles).round(7)
    points = np.rint(np.stack([x, y], axis=1) * _ONE).astype(np.int64).tolist()
    corners = [(px, py) for px, py in points]
    kept = [p for i, p in enumerate(corners) if i == 0 or p != corners[i - 1]]
    return kept if len(kept) > 1 else kept * 2  # a point is a line of no length


def _clip(first: Point, second: Point, last: Point) -> tuple[Point, Point] | None:
    """Cut a line off at the borders 0..last of the image; None if nothing is left."""
    points = [list(first), list(second)]
    for axis in (1, 0):  # the upper and lower borders, then the left and right ones
        other = 1 - axis
        ends = [point[axis] for point in points]
        if max(ends) < 0 or min(ends) > last[axis]:
            return None
        for point, partner in ((0, 1), (1, 0)):
            value = points[point][axis]
            border = min(max(value, 0), last[axis])
            if border == value:
                continue
            run = points[partner][axis] - value
            rise = points[partner][other] - points[point][other]
            points[point][other] += int((border - value) * rise / run)
            points[point][axis] = border
    return (points[0][0], points[0][1]), (points[1][0], points[1][1])


def _line(first: Point, second: Point) -> Iterator[Point]:
    """Yield the pixels of a line between points with 16 fractional bits."""
    axis = 0 if abs(second[0] - first[0]) > abs(second[1] - first[1]) else 1  # the longer one
    if second[axis] < first[axis]:
        first, second = second, first
    yield (second[0] + _HALF) >> 16, (second[1] + _HALF) >> 16
    length = second[axis] - first[axis]
    slope = int((second[1 - axis] - first[1 - axis]) * _ONE / (length | 1))
    start, across = (first[axis] + _HALF) >> 16, first[1 - axis] + _HALF
    for index in range((length >> 16) + 1):
        here, there = start + index, (across + index * slope) >> 16
        yield (here, there) if axis == 0 else (there, here)
