"""COCO's instance format: one JSON file for a whole run, as pycocotools reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from openvocab.errors import InputError
from openvocab.formats.outlines import polygons_of
from openvocab.formats.regions import ImageResult, Region, box_of
from openvocab.formats.run_length import Mask


def write_coco(results: Iterable[ImageResult], file: TextIO, *, polygons: bool = False) -> None:
    """Write a run in COCO's format: one annotation for each name in each image.

    The file holds `images`, `categories` (ids count from 1 in the order of the names) and
    `annotations` with `bbox` in pixels (left, top, width, height), `area` in pixels, and `score`
    where known. Annotations are written as they come, so that memory does not hold the masks.

    Args:
        results: of images with the same names.
        file: to write to.
        polygons: write outlines instead of run-length codes. COCO's polygons have no holes, so
            masks with holes stay run-length codes.

    Raises:
        InputError: the images were not segmented with the same names.
    """
    images: list[str] = []
    names: tuple[str, ...] | None = None
    count = 0
    file.write('{"annotations": [')
    for image_id, result in enumerate(results, start=1):
        names = same_names(names, result)
        height, width = result.size
        image = {"id": image_id, "file_name": result.image, "height": height, "width": width}
        images.append(json.dumps(image, ensure_ascii=False))
        for region in result.regions:
            file.write(",\n" if count else "\n")
            count += 1
            found = {"id": count, "image_id": image_id, **_annotation(region, polygons)}
            file.write(json.dumps(found))
    categories = [{"id": i, "name": name} for i, name in enumerate(names or (), start=1)]
    listing = ",\n".join(images)
    file.write(f'\n],\n"images": [\n{listing}\n],\n"categories": ')
    file.write(json.dumps(categories, ensure_ascii=False) + "}\n")


def same_names(names: tuple[str, ...] | None, result: ImageResult) -> tuple[str, ...]:
    """Check that an image was segmented with the same names as those before it.

    Raises:
        InputError: it was not.
    """
    if names is not None and names != result.names:
        raise InputError(
            f"'{result.image}' was segmented with other names than the images before it; this "
            "format needs the same names for all, so keep each run in a folder of its own"
        )
    return result.names


def _annotation(region: Region, polygons: bool) -> dict[str, Any]:
    mask = region.mask
    found: dict[str, Any] = {
        "category_id": region.index + 1,
        "bbox": list(box_of(mask)),
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": _polygons(mask) if polygons else region.rle,
    }
    if found["segmentation"] is None:
        found["segmentation"] = region.rle
    return found if region.score is None else {**found, "score": round(region.score, 6)}


def _polygons(mask: Mask) -> list[list[int]] | Mapping[str, Any] | None:
    """Return the outlines of a mask as flat lists of x and y, or None if it has a hole."""
    parts = polygons_of(mask)
    if any(part.holes for part in parts):
        return None
    return [part.outer.ravel().tolist() for part in parts]
