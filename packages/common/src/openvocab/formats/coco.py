"""COCO's instance format: one JSON file for a whole run, as pycocotools reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from openvocab.errors import InputError
from openvocab.formats.outlines import polygons_of
from openvocab.formats.regions import ImageResult, Region, box_of
from openvocab.formats.run_length import Mask


def coco_dataset(results: Iterable[ImageResult], *, polygons: bool = False) -> dict[str, Any]:
    """Describe a run in COCO's format: one annotation for each name in each image.

    Args:
        results: of images with the same names.
        polygons: write outlines instead of run-length codes. COCO's polygons have no holes, so
            masks with holes stay run-length codes.

    Returns:
        `images`, `categories` (ids count from 1 in the order of the names) and `annotations` with
        `bbox` in pixels (left, top, width, height), `area` in pixels, and `score` where known.

    Raises:
        InputError: the images were not segmented with the same names.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names: tuple[str, ...] | None = None
    for result in results:
        names = same_names(names, result)
        height, width = result.size
        image = {"id": len(images) + 1, "file_name": result.image, "height": height, "width": width}
        images.append(image)
        for region in result.regions:
            found = _annotation(region, polygons)
            annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **found})
    categories = [{"id": i, "name": name} for i, name in enumerate(names or (), start=1)]
    return {"images": images, "categories": categories, "annotations": annotations}


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
