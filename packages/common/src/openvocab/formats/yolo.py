"""YOLO's segmentation format: a text file with polygons for each image, and a `data.yaml`."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import yaml

from openvocab.formats.outlines import Polygon, Ring, bridged
from openvocab.formats.regions import ImageResult
from openvocab.formats.run_length import Mask

_INSIDE = 0.25  # of a pixel: readers that round and readers that cut find the same pixel


def yolo_lines(result: ImageResult) -> str:
    """Return a line for each connected part of each name: its class, then x and y in 0..1.

    Points are the pixels on the outline, as YOLO's readers draw them. Some readers round to whole
    pixels and some cut, so that points lie a quarter of a pixel behind the whole numbers. The
    format has no holes: each is joined to the outline by a bridge of no width, which readers that
    fill by the even-odd rule (OpenCV's `fillPoly`) keep as a hole.
    """
    height, width = result.size
    lines = []
    for region in result.regions:
        for ring in _rings(region.mask):
            points = (ring + _INSIDE) / (width, height)
            lines.append(f"{region.index} " + " ".join(f"{v:.7g}" for v in points.ravel()))
    return "".join(f"{line}\n" for line in lines)


def data_yaml(names: Sequence[str]) -> str:
    """Return the `data.yaml` of a data set whose images and labels lie side by side."""
    content = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(names))}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _rings(mask: Mask) -> list[Ring]:
    """Return the outlines through the centers of the border pixels, holes bridged in.

    A part of one or two pixels has fewer than three points; its points are repeated.
    """
    contours, tree = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    rings = []
    for place, contour in enumerate(contours):
        if tree[0][place][3] >= 0:
            continue  # a hole, which belongs to another contour
        holes, child = [], tree[0][place][2]
        while child >= 0:
            holes.append(contours[child][:, 0].astype(np.int32))
            child = tree[0][child][0]
        outer = contour[:, 0].astype(np.int32)
        ring = bridged(Polygon(outer, tuple(holes)))
        rings.append(np.resize(ring, (3, 2)) if len(ring) < 3 else ring)
    return rings
