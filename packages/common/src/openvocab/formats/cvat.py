"""CVAT's "Segmentation mask 1.1": colored pictures, and a file that says which color is which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from openvocab.errors import InputError
from openvocab.formats.regions import ImageResult
from openvocab.image import ImageArray

BACKGROUND = "background"
LABELMAP, LIST = "labelmap.txt", "ImageSets/Segmentation/default.txt"
CLASSES, OBJECTS = "SegmentationClass", "SegmentationObject"


def label_colors(names: Sequence[str]) -> NDArray[np.uint8]:
    """Return a color for each name that no other name has, (K, 3); black is the background.

    The colors are those of PASCAL VOC, which CVAT gives to its labels as well.
    """
    index = np.arange(1, len(names) + 1)
    colors = np.zeros((len(names), 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(
                np.uint8
            )
    return colors


def label_map_text(names: Sequence[str]) -> str:
    """Return the content of `labelmap.txt`.

    Raises:
        InputError: a name has a colon, which separates the columns of the file, or begins with #,
            as comments do.
    """
    for name in names:
        if ":" in name or "\n" in name or name.startswith("#"):
            raise InputError(
                f"CVAT's labelmap.txt cannot hold the name {name!r}, since colons and line ends "
                "separate its columns and # begins a comment; use another name or another format"
            )
    blank = BACKGROUND
    while blank in names:
        blank = f"no {blank}"  # pixels without a name need a label of their own
    lines = ["# label:color_rgb:parts:actions", f"{blank}:0,0,0::"]
    for name, (r, g, b) in zip(names, label_colors(names).tolist(), strict=True):
        lines.append(f"{name}:{r},{g},{b}::")
    return "\n".join(lines) + "\n"


def class_picture(result: ImageResult) -> ImageArray:
    """Return the label map of an image in the colors of its names, (H, W, 3) uint8 RGB."""
    colors = np.concatenate([np.zeros((1, 3), np.uint8), label_colors(result.names)])
    picture: ImageArray = colors[result.labels() + 1]
    return picture
