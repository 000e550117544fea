"""GeoJSON: the outlines of every name as polygons with holes, in pixels or on a map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openvocab.formats.outlines import Ring, polygons_of
from openvocab.formats.regions import ImageResult

ToMap = Callable[[float, float], tuple[float, float]]
"""Turns a corner (column, row) of the raster into map coordinates (x, y)."""


def feature_collection(
    result: ImageResult, *, to_map: ToMap | None = None, crs: str | None = None
) -> dict[str, Any]:
    """Return one feature for each name in an image, a MultiPolygon along the edges of its pixels.

    Args:
        result: the image.
        to_map: the georeference of a raster; None keeps pixels, x to the right and y downwards.
        crs: the coordinate reference system of `to_map`, such as "EPSG:32633".
    """
    features = []
    for region in result.regions:
        parts = polygons_of(region.mask)
        coordinates = [
            [_ring(ring, to_map) for ring in (part.outer, *part.holes)] for part in parts
        ]
        properties = {"name": region.name, "index": region.index, "score": region.score}
        features.append(
            {
                "type": "Feature",
                "properties": properties,
                "geometry": {"type": "MultiPolygon", "coordinates": coordinates},
            }
        )
    collection: dict[str, Any] = {"type": "FeatureCollection", "features": features}
    if crs is not None:
        collection["crs"] = {"type": "name", "properties": {"name": crs}}
    return collection


def _ring(ring: Ring, to_map: ToMap | None) -> list[list[float]]:
    """Return a ring as GeoJSON wants it: the outer one counterclockwise, the first point again."""
    points = ring[::-1].tolist()
    points.append(points[0])
    return points if to_map is None else [list(to_map(x, y)) for x, y in points]
