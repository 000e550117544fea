"""LabelMe's JSON files: one for each image, beside it or in the folder of the results."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from openvocab.formats.regions import ImageResult, Region, box_of

VERSION = "5.5.0"  # of the format, which knows masks since 5.2


def labelme_file(result: ImageResult, image_path: str) -> dict[str, Any]:
    """Describe one image as LabelMe does, with one mask for each name.

    Args:
        result: the image.
        image_path: where LabelMe finds the image, relative to the JSON file.
    """
    height, width = result.size
    return {
        "version": VERSION,
        "flags": {},
        "shapes": [_shape(region) for region in result.regions],
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _shape(region: Region) -> dict[str, Any]:
    mask = region.mask
    left, top, width, height = box_of(mask)
    cut = mask[top : top + height, left : left + width]
    content = io.BytesIO()
    Image.fromarray(cut.astype(np.uint8) * 255).save(content, "PNG")
    score = "" if region.score is None else f"score {region.score:.3f}"
    return {
        "label": region.name,
        "points": [[left, top], [left + width - 1, top + height - 1]],
        "group_id": None,
        "description": score,
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(content.getvalue()).decode("ascii"),
    }
