"""How well two label maps agree: one confusion matrix, and three conventions as functions of it.

Every number is in percent. A confusion matrix is `(K, K + 1)` int64: rows are the classes of the
ground truth, columns the predicted classes, and the last column counts the pixels for which nothing
was predicted. Pixels whose ground truth is void are in no cell. A `(K, K)` matrix is taken as one
in which every pixel got a class.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from openvocab.errors import InputError

Convention = Literal["detectron2", "detectron2-legacy", "mmseg"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
NOTHING = -1  # the label of a pixel for which nothing was predicted

Ignore = int | Collection[int] | None
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

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


class ConfusionMatrix:
    """Confusion matrix that grows image by image.

    Args:
        num_classes: K.
        ignore_index: the label values that are void, see `void_values`.
    """

    def __init__(self, num_classes: int, ignore_index: Ignore = None) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self._matrix = np.zeros((num_classes, num_classes + 1), dtype=np.int64)

    @property
    def matrix(self) -> IntArray:
        """The `(K, K + 1)` counts: rows ground truth, columns predictions, the last one nothing."""
        return self._matrix

    def update(self, prediction: NDArray[Any], truth: NDArray[Any]) -> PairCounts:
        """Add one image `(H, W)` and return its own cells. Raises: see `count_pairs`."""
        pairs = count_pairs(prediction, truth, self.num_classes, self.ignore_index)
        self.add(pairs)
        return pairs

    def add(self, pairs: PairCounts) -> None:
        """Add the cells of an image that was counted before."""
        self._matrix[pairs.truth, pairs.predicted] += pairs.counts

    def merge(self, other: ConfusionMatrix) -> None:
        """Add everything that another matrix (of another process, say) has counted."""
        if other.num_classes != self.num_classes:
            raise InputError(
                f"A matrix of {other.num_classes} classes cannot be merged into one of "
                f"{self.num_classes}; both must come from the same vocabulary."
            )
        self._matrix += other.matrix


@dataclass(frozen=True)
class Scores:
    """What a convention makes of a confusion matrix, in percent.

    Args:
        convention: the rule for classes without ground truth.
        miou: mean of IoU.
        fwiou: IoU weighted by the frequency of the class in the ground truth.
        macc: mean over the classes with ground truth of the share of their pixels that is found.
        pacc: share of all pixels that is right.
        iou: `(K,)` IoU per class, nan where the convention leaves the class out.
        accuracy: `(K,)` share of the class that is found, nan without ground truth.
        n_present: number of classes with ground truth.
        n_averaged: by how many classes the sum of IoU is divided.
        zero_rate: share of the classes with ground truth whose IoU is 0.
    """

    convention: Convention
    miou: float
    fwiou: float
    macc: float
    pacc: float
    iou: FloatArray
    accuracy: FloatArray
    n_present: int
    n_averaged: int
    zero_rate: float


def class_totals(matrix: NDArray[Any]) -> IntArray:
    """Return `(3, K)`: pixels that agree, of the ground truth, and predicted, per class."""
    counts = np.asarray(matrix, dtype=np.int64)
    classes = counts.shape[0]
    if counts.ndim != 2 or counts.shape[1] not in (classes, classes + 1):
        raise InputError(
            f"A confusion matrix is (K, K) or (K, K + 1) with a last column for nothing, "
            f"not {counts.shape}."
        )
    square = counts[:, :classes]
    return np.stack([np.diagonal(square), counts.sum(axis=1), square.sum(axis=0)])


def scores(matrix: NDArray[Any], convention: Convention = "detectron2") -> Scores:
    """Score a confusion matrix by one convention.

    The sum of IoU is the same in all three; they differ in what a class counts that has no ground
    truth but was predicted: it is left out (`detectron2`, since July 2022), it is left out above
    and counted below (`detectron2-legacy`: v0.6, OVSeg's evaluator), or its IoU is 0 (`mmseg`).
    Their means are therefore of two kinds only; per-class IoUs of three.

    Args:
        matrix: `(K, K)` or `(K, K + 1)`.
        convention: one of `CONVENTIONS`.

    Source: DESIGN 5; OVSeg SPEC 13; SAN SPEC 12; mmsegmentation 1.x `IoUMetric`.
    """
    hits, truth, predicted = class_totals(matrix).astype(np.float64)
    present = truth > 0
    union = truth + predicted - hits
    averaged = _averaged(truth, predicted, convention)
    iou = _ratio(hits, union)
    if convention != "mmseg":
        iou = np.where(present, iou, np.nan)
    accuracy = _ratio(hits, truth)
    total = truth.sum()
    return Scores(
        convention=convention,
        miou=100 * _divide(float(np.nansum(iou)), int(averaged.sum())),
        fwiou=100 * _divide(float((iou[present] * truth[present]).sum()), float(total)),
        macc=100 * _divide(float(accuracy[present].sum()), int(present.sum())),
        pacc=100 * _divide(float(hits.sum()), float(total)),
        iou=100 * iou,
        accuracy=100 * accuracy,
        n_present=int(present.sum()),
        n_averaged=int(averaged.sum()),
        zero_rate=100 * _divide(int((hits[present] == 0).sum()), int(present.sum())),
    )


def all_conventions(matrix: NDArray[Any]) -> dict[Convention, Scores]:
    """Score a confusion matrix by every convention."""
    return {convention: scores(matrix, convention) for convention in CONVENTIONS}


@dataclass(frozen=True)
class SeenUnseen:
    """Scores of a set of classes, of all the others, and their harmonic mean, in percent."""

    seen_miou: float
    unseen_miou: float
    harmonic_miou: float
    seen_pacc: float
    unseen_pacc: float


def seen_unseen(
    matrix: NDArray[Any],
    seen_ids: Iterable[int],
    convention: Convention = "detectron2-legacy",
) -> SeenUnseen:
    """Score the classes that were seen in training apart from those that were not.

    A part without ground truth has the score nan.

    Args:
        matrix: `(K, K)` or `(K, K + 1)`.
        seen_ids: class ids of the set; all others are its complement.
        convention: OVSeg's `mIoU-set` is of the legacy kind.

    Raises:
        InputError: an id that is no class.

    Source: OVSeg SPEC 13 (mIoU-set, mIoU-unset, hIoU-set) and 17.12.
    """
    totals = class_totals(matrix).astype(np.float64)
    seen = np.zeros(totals.shape[1], dtype=bool)
    for class_id in seen_ids:
        if not 0 <= class_id < len(seen):
            raise InputError(f"Seen class {class_id} is none of the {len(seen)} classes 0..K-1.")
        seen[class_id] = True
    seen_miou, seen_pacc = _score_part(totals[:, seen], convention)
    unseen_miou, unseen_pacc = _score_part(totals[:, ~seen], convention)
    both = seen_miou + unseen_miou
    harmonic = 2 * seen_miou * unseen_miou / both if both else 0.0
    return SeenUnseen(seen_miou, unseen_miou, harmonic, seen_pacc, unseen_pacc)


def mean_iou(totals: NDArray[Any], convention: Convention = "detectron2") -> FloatArray:
    """Return mIoU in percent of many results at once.

    Args:
        totals: `(..., 3, K)` agreeing, ground truth and predicted pixels per class.
        convention: one of `CONVENTIONS`.

    Returns:
        `(...)`, nan where no class counts.
    """
    hits, truth, predicted = np.moveaxis(np.asarray(totals, dtype=np.float64), -2, 0)
    averaged = _averaged(truth, predicted, convention)
    # Classes without ground truth have no hits: they add 0 above whatever the convention says.
    summed = np.nansum(_ratio(hits, truth + predicted - hits), axis=-1)
    return 100 * _ratio(summed, averaged.sum(axis=-1).astype(np.float64))


def _score_part(totals: FloatArray, convention: Convention) -> tuple[float, float]:
    hits, truth, _ = totals
    return float(mean_iou(totals, convention)), 100 * _divide(hits.sum(), truth.sum())


def _averaged(truth: FloatArray, predicted: FloatArray, convention: Convention) -> NDArray[np.bool]:
    if convention not in CONVENTIONS:
        raise InputError(f"Convention {convention!r} is none of {', '.join(CONVENTIONS)}.")
    return truth > 0 if convention == "detectron2" else truth + predicted > 0


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    """Divide, nan where the denominator is 0."""
    ratio = np.full(np.shape(above), np.nan)
    np.divide(above, below, out=ratio, where=below > 0)
    return ratio


def _divide(above: float, below: float) -> float:
    return float(above / below) if below else float("nan")


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
