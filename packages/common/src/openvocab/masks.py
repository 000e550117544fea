"""Binary masks and label maps as pure functions: run-length codes, boxes, overlaps, boundaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, TypedDict

import cv2
import numpy as np
import numpy.typing as npt

from openvocab.errors import InputError

Mask: TypeAlias = npt.NDArray[np.bool_]
Labels: TypeAlias = npt.NDArray[np.int32]

_FIRST_CHARACTER = 48  # COCO's strings write 6 bits per character, from "0" on
_FLOAT32_EXACT = 1 << 24  # integers up to here are exact in float32


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


def decode_rle(rle: Mapping[str, Any]) -> Mask:
    """Decode COCO's run-length format, compressed (str or bytes) or as a list of counts.

    Returns:
        (H, W) bool.

    Raises:
        InputError: the runs do not fill the size, or the string is no run-length code.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        raw = rle["counts"]
        counts = _decompress(raw) if isinstance(raw, str | bytes) else np.asarray(raw, np.int64)
        if height < 0 or width < 0:
            raise ValueError("negative size")
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            "a run-length mask needs 'size' [height, width] and 'counts', a string or a list of "
            f"integers, got {dict(rle)!r:.80}."
        ) from error
    if (counts < 0).any() or int(counts.sum()) != height * width:
        raise InputError(
            f"the runs of a mask of {width}x{height} cover {int(counts.sum())} pixels, expected "
            f"{height * width}; its counts or its size are damaged."
        )
    inside = np.arange(counts.size) % 2 == 1
    return np.repeat(inside, counts).reshape((height, width), order="F")


def mask_areas(masks: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Count the pixels inside each of (..., H, W) masks."""
    return np.asarray(np.count_nonzero(masks, axis=(-2, -1)), dtype=np.int64)


def boxes_of_masks(masks: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the tight boxes around masks.

    Args:
        masks: (Q, H, W), non-zero is inside.

    Returns:
        (Q, 4) x0, y0, x1, y1, the last two exclusive; zeros for an empty mask.
    """
    inside = masks != 0
    boxes = np.zeros((len(masks), 4), dtype=np.int64)
    for axis, first in ((1, 0), (2, 1)):
        hit = inside.any(axis=axis)  # (Q, W), then (Q, H)
        boxes[:, first] = hit.argmax(axis=1)
        boxes[:, first + 2] = hit.shape[1] - hit[:, ::-1].argmax(axis=1)
    boxes[~inside.any(axis=(1, 2))] = 0
    return boxes


def mask_iou(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the intersection over union of all pairs.

    Args:
        first: (P, H, W), non-zero is inside.
        second: (Q, H, W).

    Returns:
        (P, Q) in 0..1; 0 where both are empty.
    """
    pixels = first.shape[1] * first.shape[2]
    dtype = np.float32 if pixels < _FLOAT32_EXACT else np.float64
    a = (first != 0).reshape(len(first), pixels)
    b = (second != 0).reshape(len(second), pixels)
    intersection = (a.astype(dtype) @ b.astype(dtype).T).astype(np.float64)  # (P, Q)
    union = a.sum(axis=1)[:, None] + b.sum(axis=1)[None] - intersection
    return np.asarray(np.divide(intersection, union, out=np.zeros_like(union), where=union > 0))


def boundary_width(height: int, width: int, ratio: float = 0.02) -> int:
    """Return how wide the boundary of boundary IoU is: a share of the diagonal, at least 1.

    Source: Cheng et al., "Boundary IoU", CVPR 2021.
    """
    return max(1, round(ratio * float(np.hypot(height, width))))


def boundary_of_mask(mask: npt.NDArray[Any], width: int = 1) -> Mask:
    """Return the pixels inside a mask that are at most `width` from its outside.

    Beyond the image everything is outside. Distance is counted in king's moves.

    Args:
        mask: (H, W), non-zero is inside.
        width: in pixels, at least 1.

    Returns:
        (H, W) bool.
    """
    inside = np.pad((mask != 0).astype(np.uint8), 1)  # the border of the image is outside
    core = cv2.erode(inside, np.ones((3, 3), np.uint8), iterations=width)
    return np.asarray((inside != 0) & (core == 0))[1:-1, 1:-1]


def boundary_of_labels(labels: npt.NDArray[Any]) -> Mask:
    """Return the pixels of (H, W) labels whose right, lower or lower right neighbour differs."""
    edge = np.zeros(labels.shape, dtype=np.bool_)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:-1, :-1] |= labels[:-1, :-1] != labels[1:, 1:]
    return edge


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
        raise InputError(f"{text[:40]!r} is no compressed run-length code as COCO writes them.")
    last = (groups & 0x20) == 0
    first = np.flatnonzero(np.append(True, last[:-1]))
    lengths = np.diff(np.append(first, groups.size))
    if lengths.max() > 12:
        raise InputError(f"{text[:40]!r} holds a run that is longer than any image.")
    position = np.arange(groups.size) - np.repeat(first, lengths)
    values = np.add.reduceat((groups & 0x1F) << (5 * position), first)
    values -= np.where(groups[last] & 0x10, np.int64(1) << (5 * lengths), 0)  # sign
    # From the fourth on a value is the difference to the one two before: two running sums.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
