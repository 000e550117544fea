"""Files of predictions: label maps, arrays of NumPy, and COCO's panoptic PNG with their JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openvocab.errors import InputError, shorten_value
from openvocab.image import read_image, read_label_map
from openvocab.reading.array_files import read_array
from openvocab.vocabulary import NOTHING, Vocabulary

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
_MOST_BYTES = 1 << 32  # 150 classes at 2048 x 2048 pixels in doubles, and more
_NOTHING_STORED = {False: 255, True: 65535}  # by whether there are more than 255 classes


def read_prediction(path: Path, num_classes: int, offset: int = 0) -> NDArray[np.int32]:
    """Read the label map of one image from a PNG, a TIFF, or an array of NumPy.

    Args:
        path: label map, `.npy`, or `.npz`.
        num_classes: K.
        offset: number that is added to stored labels; -1 for labels that count from 1.

    Returns:
        `(H, W)` labels; -1 where 255 (from 256 classes on 65535) is stored, and below 0.

    Raises:
        InputError: the file cannot be read, or holds no labels and no scores of K classes.
    """
    if path.suffix.lower() not in ARRAY_SUFFIXES:
        return _shifted(read_label_map(path), num_classes, offset)
    array = _read_array(path)
    if array.ndim == 2 and array.dtype.kind in "iu":
        return _shifted(array.astype(np.int64), num_classes, offset)
    return _best_class(array, num_classes, path)


def _shifted(stored: NDArray[Any], num_classes: int, offset: int) -> NDArray[np.int32]:
    nothing = (stored == _NOTHING_STORED[num_classes > 255]) | (stored == 65535) | (stored < 0)
    return np.where(nothing, NOTHING, np.maximum(stored + offset, NOTHING)).astype(np.int32)


def _best_class(array: NDArray[Any], num_classes: int, path: Path) -> NDArray[np.int32]:
    """Return the class with the highest score at each pixel: `(K, H, W)` to `(H, W)`."""
    if array.ndim != 3 or array.dtype.kind != "f" or len(array) != num_classes:
        raise InputError(
            f"{path} holds {array.dtype} of shape {array.shape}; expected integer labels (H, W), "
            f"or scores (K, H, W) as floating-point numbers with K = {num_classes}"
        )
    if np.isnan(array).any():
        raise InputError(f"{path} holds scores that are no numbers (nan); predict once more")
    best: NDArray[np.int32] = array.argmax(axis=0).astype(np.int32)
    return best


def _read_array(path: Path) -> NDArray[Any]:
    """Read an array; from an `.npz` its "labels", else its "scores", else its only array."""
    if path.suffix.lower() == ".npy":
        return read_array(path, "array", most_bytes=_MOST_BYTES)
    return read_array(path, "array", partial(_member, path=path), most_bytes=_MOST_BYTES)


def _member(names: Sequence[str], path: Path) -> str:
    for wanted in ("labels.npy", "scores.npy"):
        if wanted in names:
            return wanted
    if len(names) == 1:
        return names[0]
    shown = shorten_value(", ".join(names))
    raise InputError(
        f"{path} holds {shown}; expected one array, or arrays named 'labels' or 'scores'"
    )


def is_panoptic(content: Any) -> bool:
    """Return whether the content of a JSON is in COCO's panoptic format."""
    annotations = content.get("annotations") if isinstance(content, dict) else None
    return (
        isinstance(annotations, list)
        and bool(annotations)
        and all(isinstance(one, dict) and "segments_info" in one for one in annotations)
    )


def panoptic_classes(
    content: Mapping[str, Any], vocabulary: Vocabulary, path: Path
) -> dict[int, int]:
    """Return the label of each category id: by its name, or the id itself where there are no names.

    Raises:
        InputError: a segment has a category whose name is none of the vocabulary's.
    """
    used = {
        segment["category_id"] for one in content["annotations"] for segment in one["segments_info"]
    }
    listed = content.get("categories")
    if not listed:
        return {int(i): int(i) for i in used}
    labels = {_plain(name): label for label, name in enumerate(vocabulary.names)}
    names = {int(one["id"]): str(one["name"]) for one in listed}
    strange = sorted(
        names.get(i, f"id {i}") for i in used if _plain(names.get(i, "")) not in labels
    )
    if strange:
        raise InputError(
            f"{path} has segments whose category is no class of the data set, such as "
            f"{shorten_value(strange[0])} ({len(strange)} in all); rename its categories as "
            f"the set does"
        )
    return {i: labels[_plain(names[i])] for i in used}


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("-", " ").replace("_", " ").split())


def read_panoptic(path: Path, segments: Mapping[int, int]) -> NDArray[np.int32]:
    """Read a panoptic PNG as a label map.

    Args:
        path: PNG whose pixels code the id of a segment as R + 256 G + 65536 B.
        segments: label of each segment id of the image.

    Returns:
        `(H, W)` labels, -1 where the id is 0.

    Raises:
        InputError: the file cannot be read, or a pixel has an id that is no segment.
    """
    pixels = read_image(path).astype(np.int64)
    ids = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
    found, places = np.unique(ids, return_inverse=True)
    known = {0: NOTHING, **segments}
    unknown = [int(i) for i in found if int(i) not in known]
    if unknown:
        raise InputError(
            f"{path} has pixels of the segment {unknown[0]}, which its JSON lacks; take both from "
            "the same run"
        )
    table = np.array([known[int(i)] for i in found], dtype=np.int32)
    labels: NDArray[np.int32] = table[places.reshape(ids.shape)]
    return labels
