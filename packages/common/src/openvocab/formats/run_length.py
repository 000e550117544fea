"""COCO's run-length codes of binary masks and of label maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

from openvocab.errors import InputError, shorten_value

Mask: TypeAlias = npt.NDArray[np.bool_]
Labels: TypeAlias = npt.NDArray[np.int32]

MOST_PIXELS = 1 << 29
_FIRST_CHARACTER = 48  # COCO's strings write 6 bits per character, from "0" on


class RLE(TypedDict):
    """A mask in COCO's compressed run-length format."""

    size: list[int]
    counts: str


def encode_rle(mask: npt.NDArray[Any]) -> RLE:
    """Encode a mask as COCO's compressed run-length string.

    Args:
        mask: (H, W), non-zero is inside.

    Returns:
        `{"size": [H, W], "counts": str}`: runs down the columns, starting with outside, from the
        third on as differences to the run two before, in base 32 with a sign.

    Examples:
        >>> encode_rle(np.array([[0, 1], [0, 1]]))
        {'size': [2, 2], 'counts': '22'}
    """
    height, width = mask.shape
    flat = np.asarray(mask != 0).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]]) if flat.size else np.zeros(1, np.int64)
    counts = np.diff(edges)
    if flat.size and flat[0]:
        counts = np.concatenate([[0], counts])
    return {"size": [height, width], "counts": _compress(counts)}


def encode_labels(labels: npt.NDArray[Any]) -> dict[int, RLE]:
    """Encode every label of a map in one pass over its pixels.

    Args:
        labels: (H, W) integers; negative ones are left out.

    Returns:
        `{label: encode_rle(labels == label)}`, in ascending order.

    Examples:
        >>> sorted(encode_labels(np.array([[3, 3, -1], [3, 0, -1]])))
        [0, 3]
    """
    height, width = labels.shape
    flat = labels.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])[: flat.size]
    ends = np.append(starts[1:], flat.size)[: starts.size]
    run_labels = flat[starts]
    codes: dict[int, RLE] = {}
    for label in np.unique(run_labels[run_labels >= 0]):
        inside = run_labels == label
        edges = np.stack([starts[inside], ends[inside]], axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=flat.size)
        if counts[-1] == 0:
            counts = counts[:-1]
        codes[int(label)] = {"size": [height, width], "counts": _compress(counts)}
    return codes


def decode_labels(codes: Mapping[int, Mapping[str, Any]], size: tuple[int, int]) -> Labels:
    """Decode what `encode_labels` made: (H, W) labels, -1 where there was none."""
    labels = np.full(size, -1, dtype=np.int32)
    for label, code in codes.items():
        labels[decode_rle(code)] = label
    return labels


def decode_rle(rle: Mapping[str, Any], expected_size: tuple[int, int] | None = None) -> Mask:
    """Decode COCO's run-length format, compressed (str or bytes) or as a list of counts.

    Args:
        rle: "size" [height, width] and "counts".
        expected_size: (height, width) that it must have; nothing is decoded before that is clear.

    Returns:
        (H, W) bool.

    Raises:
        InputError: the runs do not fill the size, the size is another than expected or that of no
            image, or the string is no run-length code.
    """
    height, width = size = _size(rle)
    if expected_size is not None and size != tuple(expected_size):
        raise InputError(
            f"it is {width}x{height}, but its image is {expected_size[1]}x{expected_size[0]}; "
            "predict at the size of the image"
        )
    if height * width > MOST_PIXELS:
        raise InputError(
            f"a mask of {width}x{height} has more than the {MOST_PIXELS} pixels of any image; "
            "check its size"
        )
    raw = rle["counts"]
    counts = _decompress(raw) if isinstance(raw, str | bytes) else _counts(raw, rle)
    if (counts < 0).any() or (counts > height * width).any() or counts.sum() != height * width:
        raise InputError(
            f"the runs of a mask of {width}x{height} cover {sum(counts.tolist())} pixels, expected "
            f"{height * width}; its counts or its size are damaged"
        )
    inside = np.arange(counts.size) % 2 == 1
    return np.repeat(inside, counts).reshape((height, width), order="F")


def _size(rle: Any) -> tuple[int, int]:
    size = rle.get("size") if isinstance(rle, Mapping) and "counts" in rle else None
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise _needs(rle)
    height, width = size
    if not all(isinstance(side, int | np.integer) and side >= 0 for side in (height, width)):
        raise _needs(rle)
    return int(height), int(width)


def _counts(raw: Any, rle: Mapping[str, Any]) -> npt.NDArray[np.int64]:
    try:
        counts = np.asarray(raw)
    except (ValueError, OverflowError, RecursionError):
        raise _needs(rle) from None
    if counts.ndim != 1 or (counts.size and counts.dtype.kind not in "iu"):
        raise _needs(rle)
    return counts.astype(np.int64)


def _needs(rle: Any) -> InputError:
    return InputError(
        "a run-length mask needs 'size' [height, width] and 'counts', a string or a list of "
        f"integers, got {shorten_value(rle)}"
    )


def _compress(counts: npt.NDArray[np.int64]) -> str:
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    # A value takes the fewest groups of 5 bits whose signed range holds it.
    limits = np.int64(16) << (5 * np.arange(12))
    magnitude = np.where(values < 0, -values - 1, values)
    lengths = np.searchsorted(limits, magnitude, side="right") + 1
    position = np.arange(int(lengths.max(initial=1)))  # of a group in its value
    groups = (values[:, None] >> (5 * position)) & 0x1F  # (runs, groups)
    groups |= np.where(position < lengths[:, None] - 1, 0x20, 0)
    characters = groups[position < lengths[:, None]] + _FIRST_CHARACTER
    return characters.astype(np.uint8).tobytes().decode("ascii")


def _decompress(text: str | bytes) -> npt.NDArray[np.int64]:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    groups = np.frombuffer(data, np.uint8).astype(np.int64) - _FIRST_CHARACTER
    if groups.size == 0:
        return np.zeros(0, np.int64)
    if groups.min() < 0 or groups.max() > 0x3F or groups[-1] & 0x20:
        raise InputError(
            f"{text[:40]!r} is no compressed run-length code as COCO writes them; "
            "encode the mask anew"
        )
    last = (groups & 0x20) == 0
    first = np.flatnonzero(np.append(True, last[:-1]))
    lengths = np.diff(np.append(first, groups.size))
    if lengths.max() > 12:
        raise InputError(
            f"{text[:40]!r} holds a run that is longer than any image; encode the mask anew"
        )
    position = np.arange(groups.size) - np.repeat(first, lengths)
    values = np.add.reduceat((groups & 0x1F) << (5 * position), first)
    values -= np.where(groups[last] & 0x10, np.int64(1) << (5 * lengths), 0)  # sign
    # From the fourth on a value is the difference to the one two before: two running sums.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
