"""Counting the pixels of two label maps for each pair of classes."""

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
_NOISE = 8  # a change in every 8 pixels or more is no label map made of regions (measured)


def void_values(num_classes: int, ignore_index: Ignore = None) -> frozenset[int]:
    """Return the label values that mean void.

    Args:
        num_classes: K; class ids are `0..K-1`.
        ignore_index: void value or values that the data set declares, `()` for none. If it declares
            nothing (None), void is 255, and 65535 where more than 255 classes make 255 a class.

    Examples:
        >>> void_values(150), void_values(847), void_values(19, 0)
        (frozenset({255}), frozenset({65535}), frozenset({0}))
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
        """Return `(3, K)` per class: the pixels that agree, of the ground truth, and predicted."""
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

    Label maps consist of regions, so the work is done on runs of equal pairs, not on single pixels.

    Args:
        prediction: `(H, W)` integers in `-1..K-1`, -1 where nothing was predicted.
        truth: `(H, W)` integers in `0..K-1` or void.
        num_classes: K, less than 65535.
        ignore_index: void value or values, see `void_values`.

    Raises:
        InputError: the sizes differ, or a value is no class; the sentence names the values with
            their counts.
    """
    pairs = _paired(prediction, truth, num_classes)
    changes = pairs[1:] != pairs[:-1]
    if not _is_noise(changes):
        return _cells(*_merged(*_runs(pairs, changes)), num_classes, ignore_index)
    pairs = np.sort(pairs)  # faster than merging so many runs
    return _cells(*_runs(pairs, pairs[1:] != pairs[:-1]), num_classes, ignore_index)


def count_into(
    matrix: IntArray, prediction: NDArray[Any], truth: NDArray[Any], ignore_index: Ignore = None
) -> None:
    """Add the pixels of one image to a dense matrix `(K, K + 1)`.

    Args:
        matrix: rows ground truth, columns predictions, the last one nothing.
        prediction: predicted labels, see `count_pairs`.
        truth: true labels, see `count_pairs`.
        ignore_index: void value or values, see `void_values`.

    Raises:
        InputError: see `count_pairs`; the matrix is then as it was.
    """
    classes = len(matrix)
    pairs = _paired(prediction, truth, classes)
    changes = pairs[1:] != pairs[:-1]
    if _is_noise(changes) and matrix.size < 4 * pairs.size:
        counts = _count_pixels(pairs, classes, void_values(classes, ignore_index))
        if counts is not None:
            matrix += counts
            return
    cells = _cells(*_merged(*_runs(pairs, changes)), classes, ignore_index)
    matrix[cells.truth, cells.predicted] += cells.counts


def check_truth(truth: NDArray[Any], num_classes: int, ignore_index: Ignore = None) -> None:
    """Raise `InputError` if a label map `(H, W)` holds a value that is neither a class nor void."""
    codes = _narrow(truth, "ground truth")
    if codes.size and codes.max() >= num_classes:
        void = void_values(num_classes, ignore_index)
        counts = np.bincount(codes)
        _check(np.flatnonzero(counts), counts[counts > 0], num_classes, "ground truth", void)


def _paired(prediction: NDArray[Any], truth: NDArray[Any], num_classes: int) -> NDArray[np.uint32]:
    """Return one code for each pixel: the truth in the upper 16 bits, the prediction below."""
    if prediction.shape != truth.shape:
        raise InputError(
            f"the prediction has size {_size(prediction)} (height x width) and the ground truth "
            f"{_size(truth)}; resize the scores to the ground truth before taking labels"
        )
    if num_classes >= _NOTHING_CODE:
        raise InputError(f"{num_classes} classes do not fit 16-bit labels; use at most 65534")
    pairs = _narrow(truth, "ground truth").astype(np.uint32)
    pairs <<= 16
    pairs |= _narrow(prediction, "prediction")
    return pairs


def _narrow(labels: NDArray[Any], what: str) -> NDArray[np.uint16]:
    """Return labels `(H, W)` as flat uint16, -1 as 65535."""
    flat = labels.reshape(-1)
    if flat.dtype.kind not in "iu":
        raise InputError(f"the {what} holds {flat.dtype} values; label maps are integers")
    signed_or_wide = flat.dtype.kind == "i" or flat.dtype.itemsize > 2
    if signed_or_wide and flat.size:
        low, high = int(flat.min()), int(flat.max())
        # 65535 must stay a value of its own in predictions, where it would read as nothing.
        allowed = (-1, _NOTHING_CODE - 1) if what == "prediction" else (0, _LABEL_LIMIT - 1)
        if low < allowed[0] or high > allowed[1]:
            outside = low if low < allowed[0] else high
            count = int((flat == outside).sum())
            raise InputError(
                f"the {what} holds the value {outside} in {_pixels(count)}; label values lie in "
                f"{allowed[0]}..{allowed[1]}"
            )
    return flat.astype(np.uint16)


def _is_noise(changes: NDArray[np.bool_]) -> bool:
    return bool(np.count_nonzero(changes) * _NOISE > changes.size)


def _runs(
    pairs: NDArray[np.uint32], changes: NDArray[np.bool_]
) -> tuple[NDArray[np.uint32], IntArray]:
    """Return the values of runs of equal pairs and their lengths."""
    if not pairs.size:
        return pairs, np.zeros(0, dtype=np.int64)
    ends = np.append(np.flatnonzero(changes), pairs.size - 1)
    return pairs[ends], np.diff(ends, prepend=-1)


def _merged(runs: NDArray[np.uint32], lengths: IntArray) -> tuple[NDArray[np.uint32], IntArray]:
    """Return the distinct pairs, ascending, and the sum of the lengths of their runs.

    An image shows only few of the classes, so the table of these pairs is small.
    """
    row_ids, rows = _ranks(runs >> 16)
    column_ids, columns = _ranks(runs & 0xFFFF)
    width = max(len(column_ids), 1)
    table = np.bincount(rows * width + columns, lengths)
    filled = np.flatnonzero(table)
    row, column = np.divmod(filled, width)
    pairs = (row_ids[row] << 16 | column_ids[column]).astype(np.uint32)
    return pairs, table[filled].astype(np.int64)  # sums are doubles, exact up to 2^53


def _cells(
    pairs: NDArray[np.uint32], counts: IntArray, num_classes: int, ignore_index: Ignore
) -> PairCounts:
    """Split distinct pairs into their classes, check these, and leave void out."""
    truth, predicted = (pairs >> 16).astype(np.int64), (pairs & 0xFFFF).astype(np.int64)
    void = void_values(num_classes, ignore_index)
    _check(truth, counts, num_classes, "ground truth", void)
    _check(predicted, counts, num_classes, "prediction", frozenset({_NOTHING_CODE}))
    predicted[predicted == _NOTHING_CODE] = NOTHING
    kept = ~np.isin(truth, list(void))
    return PairCounts(truth[kept], predicted[kept], counts[kept])


def _ranks(codes: NDArray[Any]) -> tuple[IntArray, IntArray]:
    """Return the distinct 16-bit codes, ascending, and for each code its place among them."""
    seen = np.zeros(_LABEL_LIMIT, dtype=np.bool_)
    seen[codes] = True
    ids = np.flatnonzero(seen)
    places = np.zeros(_LABEL_LIMIT, dtype=np.int64)
    places[ids] = np.arange(len(ids))
    return ids, places[codes]


def _count_pixels(
    pairs: NDArray[np.uint32], num_classes: int, void: frozenset[int]
) -> IntArray | None:
    """Return the dense matrix `(K, K + 1)` of all pixels, or None if a value has to be checked.

    Void and missing predictions become K, which is right only if no other value is above the
    classes.
    """
    rows = (pairs >> 16).view(np.int32)
    columns = (pairs & 0xFFFF).view(np.int32)
    voids = sum(np.count_nonzero(rows == value) for value in void)
    nothings = np.count_nonzero(columns == _NOTHING_CODE)
    outside = np.count_nonzero(rows >= num_classes), np.count_nonzero(columns >= num_classes)
    if outside != (voids, nothings):
        return None
    import torch  # late: commands must not wait for it to parse their arguments

    width = num_classes + 1
    cells = np.minimum(rows, num_classes, out=rows)
    cells *= width
    cells += np.minimum(columns, num_classes, out=columns)
    counts = torch.bincount(torch.from_numpy(cells), minlength=width * width).numpy()
    matrix: IntArray = counts[: num_classes * width].reshape(num_classes, width)
    return matrix


def _check(
    values: NDArray[Any],
    counts: NDArray[Any],
    num_classes: int,
    what: str,
    allowed: frozenset[int],
) -> None:
    """Raise an error if one of the values, with these counts, is neither a class nor allowed."""
    wrong = (values >= num_classes) & ~np.isin(values, list(allowed))
    if not wrong.any():
        return
    totals = np.bincount(values[wrong], counts[wrong])
    found = [(int(value), int(totals[value])) for value in np.flatnonzero(totals)]
    shown = ", ".join(f"{value} ({_pixels(count)})" for value, count in found[:5])
    more = f" and {len(found) - 5} more values" if len(found) > 5 else ""
    kept = ", ".join(map(str, sorted(allowed - {_NOTHING_CODE}))) or "none"
    raise InputError(
        f"the {what} holds {shown}{more}, which is no class: the {num_classes} names have the "
        f"values 0..{num_classes - 1} and void is {kept}; check names file and ignore value"
    )


def _pixels(count: int) -> str:
    return "1 pixel" if count == 1 else f"{count} pixels"


def _size(labels: NDArray[Any]) -> str:
    return " x ".join(map(str, labels.shape))
