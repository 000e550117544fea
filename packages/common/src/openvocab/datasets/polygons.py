"""Polygons and run-length codes as COCO's annotations have them, filled as COCO fills them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openvocab.errors import InputError
from openvocab.formats.run_length import Mask, decode_rle

_FINE = 5  # the outline is drawn on a grid this many times as fine


def segment_mask(segment: Any, size: tuple[int, int]) -> Mask:
    """Return the mask `(H, W)` of a run-length code, or the union of polygons.

    Args:
        segment: a code `{"size", "counts"}`, or a list of polygons `[x, y, x, y, ...]` in pixels.
        size: (height, width).

    Raises:
        InputError: the code has another size, or a polygon is no list of at least one point.
    """
    if isinstance(segment, Mapping):
        inside = decode_rle(segment)
        if inside.shape != size:
            raise InputError(
                f"a mask has {inside.shape[1]}x{inside.shape[0]} pixels and its image "
                f"{size[1]}x{size[0]}; "
                "fetch the annotations again"
            )
        return inside
    union = np.zeros(size, dtype=bool)
    for polygon in segment:
        union |= fill_polygon(polygon, size)
    return union


def fill_polygon(polygon: Sequence[float], size: tuple[int, int]) -> Mask:
    """Fill one polygon, to the pixel as the COCO API does.

    Source: the COCO API's documented rule: the outline is drawn on a grid five times as fine, and
    in each column a pixel begins or ends the inside where the outline crosses its middle.

    Raises:
        InputError: the polygon is no list of at least one point.
    """
    points = np.asarray(polygon, dtype=np.float64)
    if points.ndim != 1 or points.size < 2 or points.size % 2 or not np.isfinite(points).all():
        raise InputError(
            f"a polygon is a list of x, y, x, y, ... but not {polygon!r:.60}; "
            "fetch the annotations again"
        )
    height, width = size
    corners = (_FINE * points.reshape(-1, 2) + 0.5).astype(np.int64)
    u, v = _outline(corners)
    steps = np.flatnonzero(u[1:] != u[:-1])
    columns = np.minimum(u[steps], u[steps + 1])  # the fine column between the two points
    rows = np.minimum(v[steps], v[steps + 1])
    x = (columns + 0.5) / _FINE - 0.5
    y = np.ceil(np.clip((rows + 0.5) / _FINE - 0.5, 0, height)).astype(np.int64)
    middle = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    crossings = x[middle].astype(np.int64) * height + y[middle]
    toggles = np.bincount(crossings, minlength=height * width + 1)[: height * width]
    return np.asarray((np.cumsum(toggles) % 2 == 1).reshape(width, height).T)


def _outline(corners: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the fine pixels u, v of the closed outline, in order."""
    pixels = [
        _line(start, end) for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True)
    ]
    outline = np.concatenate(pixels)
    return outline[:, 0], outline[:, 1]


def _line(start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pixels `(N, 2)` of a line, rounded the same in both directions."""
    along = int(abs(end - start)[1] > abs(end - start)[0])  # the longer axis
    backwards = start[along] > end[along]
    first, last = (end, start) if backwards else (start, end)
    length = int(last[along] - first[along])
    slope = (last[1 - along] - first[1 - along]) / length if length else 0.0
    steps = np.arange(length + 1)
    pixels = np.empty((length + 1, 2), dtype=np.int64)
    pixels[:, along] = first[along] + steps
    pixels[:, 1 - along] = (first[1 - along] + slope * steps + 0.5).astype(np.int64)
    return pixels[::-1] if backwards else pixels
