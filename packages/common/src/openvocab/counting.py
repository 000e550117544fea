"""Counting the pixels of two label maps, pair by pair of classes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openvocab.errors import InputError
from openvocab.vocabulary import NOTHING

Ignore = int | Collection[int] | None
IntArray = NDArray[np.int64]

_LABEL_LIMIT = 1 << 16
_NOTHING_CODE = _LABEL_LIMIT - 1  # what -1 becomes as uint16
_SORT_ABOVE = 8  # more than one change in so many pixels: sorting beats run lengths (measured)


def void_values(num_classes: int, ignore_index: Ignore = None) -> frozenset[int]:
    """Return the label values that mean void.

    Args:
        num_classes: K; class ids are `0..K-1`.
        ignore_index: what the data set declares: a value, several, or none `()`. Undeclared (None),
            void is 255, and 65535 where more than 255 classes make 255 a class.
    """
    if ignore_index is None:
        return frozenset({255 if num_classes <= 255 else 65535})
    if isinstance(ignore_index, int):
        return frozenset({ignore_index})
    return frozenset(int(value) for value in ignore_index)


@dataclass(frozen=True)
class PairCounts:
    """The non-zero cells of one image's confusion matrix, ordered by (truth, predicted).

    Args:
        truth: `(N,)` ground truth class ids.
        predicted: `(N,)` predicted class ids, -1 for nothing.
        counts: `(N,)` number of pixels, each > 0.
    """

    truth: IntArray
    predicted: IntArray
    counts: IntArray

    def dense(self, num_classes: int) -> IntArray:
        """Return the `(K, K + 1)` confusion matrix."""
        matrix = np.zeros((num_classes, num_classes + 1), dtype=np.int64)
        matrix[self.truth, self.predicted] = self.counts  # column -1 is the last one
        return matrix

    def totals(self, num_classes: int) -> IntArray:
        """Return `(3, K)`: pixels that agree, of the ground truth, and predicted, per class."""
        hits = self.truth == self.predicted
        named = self.predicted != NOTHING
        rows = (
            (self.truth[hits], self.counts[hits]),
            (self.truth, self.counts),
            (self.predicted[named], self.counts[named]),
        )
        totals = np.zeros((3, num_classes), dtype=np.int64)
        for row, (ids, counts) in zip(totals, rows, strict=True):
            np.add.at(row, ids, counts)
        return totals


def count_pairs(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    num_classes: int,
    ignore_index: Ignore = None,
) -> PairCounts:
    """Count the pixels of every pair (ground truth class, predicted class) of one image.

    Label maps are made of regions, so the work is done on runs of equal pairs; images without
    regions (noise) are sorted instead.

    Args:
        prediction: `(H, W)` integers in `-1..K-1`, -1 where nothing was predicted.
        truth: `(H, W)` integers in `0..K-1` or void.
        num_classes: K, less than 65535.
        ignore_index: see `void_values`.

    Raises:
        InputError: the sizes differ, or a value is no class; the sentence names the values with
            their counts.
    """
    if prediction.shape != truth.shape:
        raise InputError(
            f"The prediction has size {_size(prediction)} (height x width) and the ground truth "
            f"{_size(truth)}; resize the scores to the ground truth before taking labels."
        )
    if num_classes >= _NOTHING_CODE:
        raise InputError(f"{num_classes} classes do not fit 16-bit labels; use at most 65534.")
    codes = _narrow(truth, "ground truth").astype(np.uint32)
    codes <<= 16
    codes |= _narrow(prediction, "prediction")
    pairs, counts = _count_equal(codes)
    true_ids = (pairs >> 16).astype(np.int64)
    predicted = (pairs & 0xFFFF).astype(np.int64)
    void = void_values(num_classes, ignore_index)
    kept = ~np.isin(true_ids, list(void))
    _check(true_ids, counts, num_classes, "ground truth", void)
    predicted = np.where(predicted == _NOTHING_CODE, NOTHING, predicted)
    _check(predicted, counts, num_classes, "prediction", frozenset({NOTHING}))
    return PairCounts(true_ids[kept], predicted[kept], counts[kept])


def check_truth(truth: NDArray[Any], num_classes: int, ignore_index: Ignore = None) -> None:
    """Raise `InputError` if a label map `(H, W)` holds a value that is neither class nor void."""
    values, counts = _count_equal(_narrow(truth, "ground truth").astype(np.uint32))
    void = void_values(num_classes, ignore_index)
    _check(values.astype(np.int64), counts, num_classes, "ground truth", void)


def _narrow(labels: NDArray[Any], what: str) -> NDArray[np.uint16]:
    """Return labels `(H, W)` as flat uint16, -1 as 65535."""
    flat = labels.reshape(-1)
    if flat.dtype.kind not in "iu":
        raise InputError(f"The {what} holds {flat.dtype} values; label maps are integers.")
    signed_or_wide = flat.dtype.kind == "i" or flat.dtype.itemsize > 2
    if signed_or_wide and flat.size:
        low, high = int(flat.min()), int(flat.max())
        # 65535 must stay a value of its own in predictions, where it would read as nothing.
        allowed = (-1, _NOTHING_CODE - 1) if what == "prediction" else (0, _LABEL_LIMIT - 1)
        if low < allowed[0] or high > allowed[1]:
            outside = low if low < allowed[0] else high
            count = int((flat == outside).sum())
            raise InputError(
                f"The {what} holds the value {outside} in {_pixels(count)}; label values lie in "
                f"{allowed[0]}..{allowed[1]}."
            )
    return flat.astype(np.uint16)


def _count_equal(codes: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], IntArray]:
    """Return the distinct values of a flat array, ascending, and how often each occurs."""
    if not codes.size:
        return codes, np.zeros(0, dtype=np.int64)
    ends = np.flatnonzero(codes[1:] != codes[:-1])
    if len(ends) > codes.size // _SORT_ABOVE:
        codes = np.sort(codes)
        ends = np.flatnonzero(codes[1:] != codes[:-1])
    ends = np.append(ends, codes.size - 1)
    values, lengths = codes[ends], np.diff(ends, prepend=-1)
    order = np.argsort(values, kind="stable")
    values, lengths = values[order], lengths[order]
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    return values[starts], np.add.reduceat(lengths, starts).astype(np.int64)


def _check(
    ids: IntArray, counts: IntArray, num_classes: int, what: str, allowed: frozenset[int]
) -> None:
    wrong = (ids >= num_classes) & ~np.isin(ids, list(allowed))
    if not wrong.any():
        return
    values = np.unique(ids[wrong])
    shown = ", ".join(f"{v} ({_pixels(int(counts[ids == v].sum()))})" for v in values[:5])
    more = f" and {len(values) - 5} more values" if len(values) > 5 else ""
    void = ", ".join(map(str, sorted(allowed))) or "none"
    raise InputError(
        f"The {what} holds {shown}{more}, which is no class: the {num_classes} names have the "
        f"values 0..{num_classes - 1} and void is {void}; check names file and ignore value."
    )


def _pixels(count: int) -> str:
    return "1 pixel" if count == 1 else f"{count} pixels"


def _size(labels: NDArray[Any]) -> str:
    return " x ".join(map(str, labels.shape))
