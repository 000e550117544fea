"""Bootstrap intervals of mean IoU, by resampling images with replacement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from openvocab.errors import InputError
from openvocab.metrics.scores import Convention, FloatArray, PairCounts, mean_iou

_DRAWS_FOR_PAIR, _MOST_DRAWS = 1000, 20_000
_REPLICATES_AT_ONCE = 64  # bounds the memory: 64 x (images + 3 K) doubles


@dataclass(frozen=True)
class Interval:
    """An estimate in percent, and the range that holds `level` of its resampled values."""

    estimate: float
    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """The difference in mIoU between two methods on the same images, in points.

    Args:
        interval: the difference first - second, with its interval.
        probability_better: share of the resampled data sets on which the first is better; draws
            count one half.
    """

    interval: Interval
    probability_better: float


def bootstrap_interval(
    per_image: Sequence[PairCounts],
    num_classes: int,
    convention: Convention = "detectron2",
    *,
    level: float = 0.95,
    repetitions: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return mIoU over all images with its percentile bootstrap interval over images.

    Args:
        per_image: one sparse matrix per image.
        num_classes: K.
        convention: rule by which classes without ground truth count.
        level: probability inside the interval, in (0, 1).
        repetitions: number of data sets that are drawn.
        seed: seed of the draws.

    Raises:
        InputError: no images.
    """
    totals = _image_totals(per_image, num_classes)
    values = _resampled(totals, convention, repetitions, seed)
    estimate = float(mean_iou(totals.sum(axis=0), convention))
    return _interval(estimate, values, level)


def share_interval(
    parts: Sequence[float], wholes: Sequence[float], *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Return the sum of parts by the sum of wholes over images, in percent, with its interval.

    Args:
        parts: one for each image, such as the pixels that are wrong.
        wholes: one for each image, such as all its pixels; 1 for each gives a mean.
        level: probability inside the interval, in (0, 1).
        seed: of the draws.

    Raises:
        InputError: no images, or nothing in them.
    """
    images = len(wholes)
    if not images or not sum(wholes):
        raise InputError("there are no pixels to resample; evaluate at least one image with labels")
    counts = np.array([parts, wholes], dtype=np.float64)
    random = np.random.default_rng(seed)
    times = random.multinomial(images, np.full(images, 1 / images), size=_DRAWS_FOR_PAIR)
    part, whole = times @ counts.T[:, :1], times @ counts.T[:, 1:]
    drawn = 100 * (part / np.maximum(whole, 1))[:, 0]
    return _interval(100 * float(counts[0].sum() / counts[1].sum()), drawn, level)


def paired_difference(
    first: Sequence[PairCounts],
    second: Sequence[PairCounts],
    num_classes: int,
    convention: Convention = "detectron2",
    *,
    level: float = 0.95,
    repetitions: int = 1000,
    seed: int = 0,
) -> PairedDifference:
    """Compare two methods on the same images; every draw takes the same images for both.

    Args:
        first: sparse matrices of the first method, image by image.
        second: counts of the second method, for the same images in the same order.
        num_classes: K.
        convention: rule by which classes without ground truth count.
        level: probability inside the interval, in (0, 1).
        repetitions: number of data sets that are drawn.
        seed: seed of the draws.

    Raises:
        InputError: no images, or not the same number of them.
    """
    if len(first) != len(second):
        raise InputError(
            f"the first method has {len(first)} images and the second {len(second)}; a paired "
            f"difference needs the same images in the same order"
        )
    both = [_image_totals(images, num_classes) for images in (first, second)]
    drawn = [_resampled(totals, convention, repetitions, seed) for totals in both]
    estimates = [float(mean_iou(totals.sum(axis=0), convention)) for totals in both]
    return _difference(estimates[0] - estimates[1], drawn[0] - drawn[1], level)


def paired_differences(
    methods: Mapping[str, Sequence[PairCounts]],
    num_classes: int,
    convention: Convention = "detectron2",
    *,
    level: float = 0.95,
    seed: int = 0,
) -> dict[tuple[str, str], PairedDifference]:
    """Compare every pair of several methods, with intervals corrected for the number of pairs.

    Bonferroni's correction: with m pairs each interval has the level 1 - (1 - level) / m, so that
    all of them together hold the true differences with probability `level` or more. Each pair
    adds 1000 draws, up to 20,000, so that the narrow tails of the intervals stay filled.

    Args:
        methods: sparse matrices of each method, the same images in the same order.
        num_classes: K.
        convention: rule by which classes without ground truth count.
        level: probability that all intervals hold the truth, in (0, 1).
        seed: seed of the draws.

    Returns:
        The difference first - second by (first, second), in the order of the methods.

    Raises:
        InputError: no images, or not the same number of them.
    """
    lengths = {len(images) for images in methods.values()}
    if len(lengths) > 1:
        raise InputError(f"the methods have {sorted(lengths)} images; give the same ones to all")
    every_two = list(combinations(methods, 2))
    one_level = 1 - (1 - level) / max(len(every_two), 1)
    repetitions = min(_DRAWS_FOR_PAIR * len(every_two), _MOST_DRAWS)
    totals = {key: _image_totals(images, num_classes) for key, images in methods.items()}
    drawn = {key: _resampled(t, convention, repetitions, seed) for key, t in totals.items()}
    whole = {key: float(mean_iou(t.sum(axis=0), convention)) for key, t in totals.items()}
    return {
        (a, b): _difference(whole[a] - whole[b], drawn[a] - drawn[b], one_level)
        for a, b in every_two
    }


def _difference(estimate: float, drawn: FloatArray, level: float) -> PairedDifference:
    better = float(np.mean((drawn > 0) + 0.5 * (drawn == 0)))
    return PairedDifference(_interval(estimate, drawn, level), better)


def _image_totals(per_image: Sequence[PairCounts], num_classes: int) -> FloatArray:
    if not per_image:
        raise InputError("there are no images to resample; evaluate at least one")
    totals = np.empty((len(per_image), 3, num_classes))  # doubles hold counts up to 2^53 exactly
    for row, image in zip(totals, per_image, strict=True):
        row[:] = image.totals(num_classes)
    return totals


def _resampled(
    totals: FloatArray, convention: Convention, repetitions: int, seed: int
) -> FloatArray:
    images, _, classes = totals.shape
    random = np.random.default_rng(seed)
    flat = totals.reshape(images, 3 * classes)
    values = []
    for start in range(0, repetitions, _REPLICATES_AT_ONCE):
        drawn = min(_REPLICATES_AT_ONCE, repetitions - start)
        times = random.multinomial(images, np.full(images, 1 / images), size=drawn)
        sums = times.astype(np.float64) @ flat  # (drawn, 3 K)
        values.append(mean_iou(sums.reshape(drawn, 3, classes), convention))
    return np.concatenate(values)


def _interval(estimate: float, values: FloatArray, level: float) -> Interval:
    if not 0 < level < 1:
        raise InputError(
            f"the level of an interval lies between 0 and 1, not {level}; use 0.95 for 95 %"
        )
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), level)
