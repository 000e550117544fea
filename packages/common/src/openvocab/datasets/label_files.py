"""Reading the stored numbers of label maps, from every kind of file that data sets use."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openvocab.errors import InputError
from openvocab.formats.run_length import decode_rle
from openvocab.image import read_image, read_label_map
from openvocab.reading import mat_files
from openvocab.reading.json_files import read_json_file

IntArray = NDArray[np.int32]

_CODED_END = "_seg.png"  # ADE20K's RGB-coded objects
_DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, IndexError, NotImplementedError),
    zlib.error,
)


def read_stored(path: Path) -> IntArray:
    """Read the stored numbers of a label map, whatever its file.

    PNG and TIFF of 1 to 32 bits; `.mat` with a LabelMap (Pascal Context); `*_seg.png` with
    RGB-coded objects (ADE20K); `.json` with run-length codes, `{"category_id", "segmentation"}`
    each, later ones over earlier ones and 65535 where none is.

    Returns:
        `(H, W)` int32.

    Raises:
        InputError: the file is missing, damaged, or of none of these kinds.
    """
    if path.suffix == ".mat":
        return read_mat(path)
    if path.suffix == ".json":
        return read_codes(path)
    if path.name.endswith(_CODED_END):
        return decode_ids(read_coded(path))
    return read_label_map(path)


def read_mat(path: Path) -> IntArray:
    """Read the `LabelMap` of a .mat file, `(H, W)`.

    Raises:
        InputError: the file is missing, damaged, or has no such array of numbers.
    """
    labels = mat_files.read_mat(path, "LabelMap")
    if labels.ndim != 2 or labels.dtype.kind not in "uif":
        raise InputError(
            f"the LabelMap of {path} is {labels.dtype} of shape {labels.shape}; expected one "
            f"number for each pixel"
        )
    return labels.astype(np.int32)


def read_codes(path: Path) -> IntArray:
    """Read a list of run-length codes as a label map, `(H, W)`, 65535 where none is.

    Raises:
        InputError: the file is missing, damaged or empty, or its masks differ in size.
    """
    try:
        entries = read_json_file(path, "run-length codes")
        masks = [(int(e["category_id"]), decode_rle(e["segmentation"])) for e in entries]
        labels = np.full(masks[0][1].shape, 65535, dtype=np.int32)
        for label, inside in masks:
            labels[inside] = label
    except _DAMAGE as error:
        raise InputError(
            f"{path} is no list of run-length codes of one size ({error!r:.80}); "
            "fetch the file again"
        ) from None
    return labels


def decode_ids(pixels: NDArray[Any]) -> IntArray:
    """Return the object ids `(H, W)` of an RGB-coded label map `(H, W, 3)`.

    Source: SPEC ovseg 12.
    """
    wide = pixels.astype(np.int32)
    return np.asarray(wide[..., 0] // 10 * 256 + wide[..., 1], dtype=np.int32)


def read_coded(path: Path) -> NDArray[np.uint8]:
    """Read an RGB-coded label map, `(H, W, 3)`.

    Raises:
        InputError: the file cannot be read, or is not RGB.
    """
    pixels = read_image(path)
    with Image.open(path) as image:
        if image.mode != "RGB":
            raise InputError(
                f"{path} has pixels of kind {image.mode}; expected RGB, where red and green code "
                f"the object"
            )
    return pixels
