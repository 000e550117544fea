"""The scores of label maps: one confusion matrix, and three conventions as functions of it.

Every number is in percent. A confusion matrix is `(K, K + 1)` int64: rows are the classes of the
ground truth, columns the predicted classes, and the last column counts the pixels for which nothing
was predicted. Pixels whose ground truth is void are in no cell. A `(K, K)` matrix is taken as one
in which every pixel got a class.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from openvocab.errors import InputError
from openvocab.metrics.counting import (
    Ignore,
    IntArray,
    PairCounts,
    check_truth,
    count_into,
    count_pairs,
    void_values,
)
from openvocab.vocabulary import NOTHING

__all__ = [
    "CONVENTIONS",
    "NOTHING",
    "ConfusionMatrix",
    "Convention",
    "FloatArray",
    "Ignore",
    "IntArray",
    "PairCounts",
    "Scores",
    "SeenUnseen",
    "all_conventions",
    "check_truth",
    "class_totals",
    "count_pairs",
    "mean_iou",
    "scores",
    "seen_unseen",
    "void_values",
    "without_background",
]

Convention = Literal["detectron2", "detectron2-legacy", "mmseg"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
FloatArray = NDArray[np.float64]


class ConfusionMatrix:
    """A confusion matrix to which images are added one by one.

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

    def update(self, prediction: NDArray[Any], truth: NDArray[Any]) -> None:
        """Add one image, with label maps `(H, W)`."""
        count_into(self._matrix, prediction, truth, self.ignore_index)

    def add(self, pairs: PairCounts) -> None:
        """Add the cells of an image whose pixels are already counted."""
        self._matrix[pairs.truth, pairs.predicted] += pairs.counts

    def merge(self, other: ConfusionMatrix) -> None:
        """Add all counts of another matrix, for example that of another process."""
        if other.num_classes != self.num_classes:
            raise InputError(
                f"a matrix of {other.num_classes} classes cannot be merged into one of "
                f"{self.num_classes}; both must come from the same vocabulary"
            )
        self._matrix += other.matrix


@dataclass(frozen=True)
class Scores:
    """The scores of a confusion matrix by one convention, in percent.

    Args:
        convention: the rule for classes without ground truth.
        miou: mean of IoU.
        fwiou: IoU weighted by the frequency of the class in the ground truth.
        macc: mean over the classes with ground truth of the share of their pixels that is found.
        pacc: share of all pixels that is right.
        iou: `(K,)` IoU per class, nan where the convention leaves the class out.
        accuracy: `(K,)` share of the class that is found, nan without ground truth.
        n_present: number of classes with ground truth.
        n_averaged: number of classes by which the sum of IoU is divided.
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
    """Return `(3, K)` for each class: the pixels that agree, of the ground truth, and predicted."""
    counts = np.asarray(matrix, dtype=np.int64)
    classes = counts.shape[0]
    if counts.ndim != 2 or counts.shape[1] not in (classes, classes + 1):
        raise InputError(
            f"a confusion matrix is (K, K) or (K, K + 1) with a last column for nothing, "
            f"not {counts.shape}; "
            "check the counts"
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
        convention: name of the convention, one of `CONVENTIONS`.

    Examples:
        One pixel of the first class is taken for the third, which is in no ground truth.

        >>> matrix = np.array([[3, 0, 1], [0, 4, 0], [0, 0, 0]])
        >>> [round(scores(matrix, convention).miou, 2) for convention in CONVENTIONS]
        [87.5, 58.33, 58.33]

    Source: SPEC ovseg 13; SPEC san 12; mmsegmentation 1.x `IoUMetric`.
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


def without_background(matrix: NDArray[Any], background: int = NOTHING) -> IntArray:
    """Return the matrix that CaR's `ignore_background` scores.

    The row and the column of the background are removed. A pixel of a class that is predicted as
    background then does not count as an error, which raises the scores; and a class of which every
    pixel is predicted as background has no ground truth any more.

    Args:
        matrix: `(K, K + 1)`.
        background: the class whose row and column go; -1 drops the column of nothing.

    Source: SPEC car 10.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    if background == NOTHING:
        return counts[:, : counts.shape[0]]
    return np.delete(np.delete(counts, background, axis=0), background, axis=1)


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
    """Score the classes that were seen in training separately from the others.

    A part without ground truth has the score nan.

    Args:
        matrix: `(K, K)` or `(K, K + 1)`.
        seen_ids: class ids of the set; all others are its complement.
        convention: OVSeg's `mIoU-set` is of the legacy kind.

    Raises:
        InputError: an id that is no class.

    Source: SPEC ovseg 13 (mIoU-set, mIoU-unset, hIoU-set); SPEC ovseg 17.12.
    """
    totals = class_totals(matrix).astype(np.float64)
    seen = np.zeros(totals.shape[1], dtype=bool)
    for class_id in seen_ids:
        if not 0 <= class_id < len(seen):
            raise InputError(
                f"seen class {class_id} is none of the {len(seen)} classes 0..K-1; "
                "check the list of seen names"
            )
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
        convention: name of the convention, one of `CONVENTIONS`.

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


def _averaged(
    truth: FloatArray, predicted: FloatArray, convention: Convention
) -> NDArray[np.bool_]:
    if convention not in CONVENTIONS:
        raise InputError(
            f"convention {convention!r} is none of {', '.join(CONVENTIONS)}; choose one of these"
        )
    return truth > 0 if convention == "detectron2" else truth + predicted > 0


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    """Divide elementwise, with nan where the denominator is 0."""
    ratio = np.full(np.shape(above), np.nan)
    np.divide(above, below, out=ratio, where=below > 0)
    return ratio


def _divide(above: float, below: float) -> float:
    return float(above / below) if below else float("nan")
