"""Outlines of masks: rings along the edges of pixels, which keep holes and parts exactly."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from openvocab.formats.run_length import Mask

Ring = NDArray[np.int32]  # (N, 2) x, y of the corners, closed by itself


@dataclass(frozen=True)
class Polygon:
    """One connected part of a mask.

    Attributes:
        outer: its outline, clockwise on the screen.
        holes: the outlines of its holes, counterclockwise on the screen.
    """

    outer: Ring
    holes: tuple[Ring, ...] = ()


def polygons_of(mask: Mask) -> tuple[Polygon, ...]:
    """Return the connected parts of a mask as polygons along the edges of its pixels.

    A pixel at column x and row y covers the square from (x, y) to (x + 1, y + 1). Pixels that touch
    at a corner only belong to different parts, so that no ring touches itself along an edge.

    Args:
        mask: (H, W), non-zero is inside.

    Returns:
        The parts in the order of their first pixel; filled, they give the same mask.
    """
    inside = np.pad(np.asarray(mask) != 0, 1)
    _, parts = cv2.connectedComponents(inside.astype(np.uint8), connectivity=4)
    outers: dict[int, Ring] = {}
    holes: dict[int, list[Ring]] = defaultdict(list)
    for ring, part in _rings(inside, parts):
        if _signed_area(ring) > 0:
            outers[part] = ring
        else:
            holes[part].append(ring)
    return tuple(Polygon(outers[part], tuple(holes[part])) for part in sorted(outers))


# For each side of a pixel: the neighbor beyond it, and the corners from which and to which its edge
# runs, all as (row, column) offsets. Edges run with the inside at their right on the screen.
_SIDES = (
    ((-1, 0), (0, 0), (0, 1)),
    ((0, 1), (0, 1), (1, 1)),
    ((1, 0), (1, 1), (1, 0)),
    ((0, -1), (1, 0), (0, 0)),
)
Corner = tuple[int, int]  # x, y
Edges = dict[Corner, list[tuple[Corner, int]]]  # by start: end, and the part of the mask


def _edges(inside: Mask, parts: NDArray[np.int32]) -> Edges:
    edges: Edges = defaultdict(list)
    for (dy, dx), (sy, sx), (ey, ex) in _SIDES:
        beyond = np.roll(inside, (-dy, -dx), axis=(0, 1))
        for y, x in np.argwhere(inside & ~beyond).tolist():
            edges[x + sx, y + sy].append(((x + ex, y + ey), int(parts[y, x])))
    return edges


def _rings(inside: Mask, parts: NDArray[np.int32]) -> list[tuple[Ring, int]]:
    """Chain the edges between inside and outside to rings, each with the part it belongs to."""
    edges = _edges(inside, parts)
    rings = []
    while edges:
        first = next(iter(edges))
        point, part = _take(edges, first, None, (0, 0))
        corners, heading = [first], _step(first, point)
        while point != first:
            end, _ = _take(edges, point, part, heading)
            if _step(point, end) != heading:
                corners.append(point)
                heading = _step(point, end)
            point = end
        if _step(corners[0], corners[1]) == heading:  # the ring began within a straight line
            corners = corners[1:]
        rings.append((np.array(corners, np.int32) - 1, part))  # without the padding
    return rings


def _take(
    edges: Edges, start: Corner, part: int | None, heading: tuple[int, int]
) -> tuple[Corner, int]:
    """Take an edge that starts at a corner.

    Two start where two pixels touch at the corner only. If both are of one part, the ring turns
    left, so that what lies between them is a hole of its own; if not, it stays with its part.
    """
    leaving = edges[start]
    place = 0
    if len(leaving) > 1 and part is not None:
        left = (heading[1], -heading[0])
        same = leaving[0][1] == leaving[1][1]
        for index, (end, owner) in enumerate(leaving):
            if (same and _step(start, end) == left) or (not same and owner == part):
                place = index
    edge = leaving.pop(place)
    if not leaving:
        del edges[start]
    return edge


def _step(start: Corner, end: Corner) -> tuple[int, int]:
    """Return the direction of an edge along an axis."""
    return (end[0] > start[0]) - (end[0] < start[0]), (end[1] > start[1]) - (end[1] < start[1])


def _signed_area(ring: Ring) -> float:
    """Return the area inside a ring, positive where it runs clockwise on the screen."""
    x, y = ring[:, 0].astype(np.int64), ring[:, 1].astype(np.int64)
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def bridged(polygon: Polygon) -> Ring:
    """Join the holes of a polygon to its outline by bridges of no width, to one ring.

    Formats without holes can keep them this way; filled by the even-odd or the non-zero rule, the
    ring gives the same area.
    """
    ring = polygon.outer
    for hole in sorted(polygon.holes, key=lambda one: int(one[:, 0].min())):
        distance = ((ring[:, None].astype(np.int64) - hole[None]) ** 2).sum(axis=2)
        at, to = np.unravel_index(int(distance.argmin()), distance.shape)
        turned = np.roll(hole, -int(to), axis=0)
        ring = np.concatenate([ring[: at + 1], turned, turned[:1], ring[at:]])
    return ring
