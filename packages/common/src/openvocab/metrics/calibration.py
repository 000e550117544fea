"""Confidences in 0..1, which turn a method's evidence into probabilities, and their quality.

A method's scores have a scale of their own. Its *evidence* at a pixel is the score of the best name
and the sum over all names; a logistic regression on three logarithms of these gives the probability
that the label is right. A second one gives the probability that the pixel shows any of the names,
since a method can be sure that something is there and unsure what it is.

Source: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), for the error and the
reliability diagram; Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks"
(NeurIPS 2017), for the risk-coverage curve.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from openvocab.errors import InputError
from openvocab.files import write_text
from openvocab.metrics.bootstrap import Interval
from openvocab.reading.json_files import read_json_file

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]

FEATURES = ("log_best", "logit_share", "log_total")
BINS = 15
_WHAT = "a calibration"
_MOST_BYTES = 1 << 20
_PENALTY = 1e-4  # keeps weights finite where classes can be told apart without error


def features_of(best: NDArray[Any], total: NDArray[Any]) -> FloatArray:
    """Return the features of the regressions.

    Args:
        best: the score of the best name, not negative, of any shape.
        total: the sum of the scores of all names, of the same shape.

    Returns:
        (3, ...) in the order of `FEATURES`: logarithm of the best score, logit of its share in the
        total, logarithm of the total; constants keep them finite where a score is 0.
    """
    best, total = best.astype(np.float64), total.astype(np.float64)
    share = best / (total + 1e-6)
    logit = np.log((share + 1e-4) / (np.maximum(1 - share, 0) + 1e-3))
    return np.stack([np.log(best + 1e-4), logit, np.log(total + 1e-3)])


@dataclass(frozen=True)
class Head:
    """A logistic regression.

    Attributes:
        features: names of the features that the regression uses, some of `FEATURES`.
        weights: weights of these features.
        bias: constant term.
    """

    features: tuple[str, ...]
    weights: tuple[float, ...]
    bias: float

    def __post_init__(self) -> None:
        unknown = sorted(set(self.features) - set(FEATURES))
        if unknown or len(self.features) != len(self.weights):
            raise ValueError(f"features {self.features} do not fit weights {self.weights}")
        if not all(math.isfinite(value) for value in (*self.weights, self.bias)):
            raise ValueError(f"weights {self.weights} and bias {self.bias} are not all finite")

    def logits(self, features: FloatArray) -> FloatArray:
        """Return the log odds (...) of features (3, ...) in the order of `FEATURES`."""
        chosen = features[[FEATURES.index(name) for name in self.features]]
        return np.tensordot(np.array(self.weights), chosen, axes=1) + self.bias


@dataclass(frozen=True)
class Calibration:
    """The regressions that turn the evidence of one method and weights file into confidences.

    Attributes:
        confidence: regression of the probability that the label is right.
        named: regression of the probability that the pixel shows any of the names.
        method: name of the method, by its own description.
        weights_sha256: hash of the weights for which the calibration was fitted.
        settings_sha256: hash of the description of the method, see `settings_sha256`.
        data_set: data set on which the calibration was fitted.
        split: split of the data set.
        images: number of images.
        label_tree_hash: hash of the data set's label maps.
    """

    confidence: Head
    named: Head
    method: str
    weights_sha256: str
    settings_sha256: str
    data_set: str
    split: str
    images: int
    label_tree_hash: str

    def sha256(self) -> str:
        """Return a fingerprint of all contents."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the calibration to a JSON file, atomically."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a file that `save` wrote.

        Raises:
            InputError: the file cannot be read, or holds no calibration.
        """
        content = read_json_file(path, _WHAT, most_bytes=_MOST_BYTES)
        try:
            confidence, named = _head(content.pop("confidence")), _head(content.pop("named"))
            images = int(content.pop("images"))
            texts = {name: str(value) for name, value in content.items()}
            return cls(confidence, named, images=images, **texts)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"'{path}' holds no calibration ({error!r:.80}); fit it again with "
                "python -m openvocab.calibrate"
            ) from None


def _head(content: Mapping[str, Any]) -> Head:
    weights = tuple(float(weight) for weight in content["weights"])
    return Head(tuple(map(str, content["features"])), weights, float(content["bias"]))


def fit_head(
    features: FloatArray, right: BoolArray, names: Sequence[str], *, balanced: bool = False
) -> Head:
    """Fit a logistic regression with scipy.

    Args:
        features: (3, N) of N pixels, in the order of `FEATURES`.
        right: (N,) what shall be predicted.
        names: names of the features to use.
        balanced: let right and wrong pixels count the same in sum.

    Raises:
        InputError: all pixels are right, or none is.
    """
    from scipy.optimize import minimize

    if right.all() or not right.any():
        raise InputError(
            f"all {len(right)} pixels are {'right' if len(right) and right[0] else 'wrong'}, so "
            "that nothing can be learned from them; calibrate on more images"
        )
    chosen = features[[FEATURES.index(name) for name in names]]
    inputs = np.concatenate([chosen, np.ones((1, len(right)))])  # (F + 1, N)
    share = np.where(right, right.mean(), 1 - right.mean()) if balanced else np.full(len(right), 1)
    counts = 1 / share
    counts /= counts.sum()

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        logits = weights @ inputs
        penalty = np.append(weights[:-1], 0)
        value = counts @ (np.logaddexp(0, logits) - right * logits) + _PENALTY * penalty @ penalty
        slope = inputs @ (counts * (probability(logits) - right)) + 2 * _PENALTY * penalty
        return float(value), slope

    found = minimize(loss, np.zeros(len(inputs)), jac=True, method="BFGS").x
    return Head(tuple(names), tuple(map(float, found[:-1])), float(found[-1]))


def probability(logits: FloatArray) -> FloatArray:
    """Return the probabilities of log odds, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))


@dataclass(frozen=True)
class Reliability:
    """Pixels counted in B bins of equal width over 0..1, for each of N images or all together.

    Attributes:
        pixels: (N, B) how many have a confidence in the bin.
        confidence: (N, B) the sum of theirs.
        right: (N, B) how many of them are right.
    """

    pixels: FloatArray
    confidence: FloatArray
    right: FloatArray

    def error(self) -> float:
        """Return the expected calibration error in 0..1 over all images.

        This is the mean over pixels of |mean confidence - share of right ones| of their bin.
        """
        return float(_errors(self.confidence.sum(0), self.right.sum(0), self.pixels.sum(0)))

    def interval(self, *, level: float = 0.95, repetitions: int = 1000, seed: int = 0) -> Interval:
        """Return the calibration error in 0..1, with its percentile bootstrap interval."""
        draws = self._draws(repetitions, seed)
        values = _errors(draws @ self.confidence, draws @ self.right, draws @ self.pixels)
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return Interval(self.error(), float(low), float(high), level)

    def accuracy(self) -> FloatArray:
        """Return the share of right pixels in each bin (B,), NaN where a bin is empty."""
        pixels = self.pixels.sum(0)
        return np.where(pixels > 0, self.right.sum(0) / np.maximum(pixels, 1), np.nan)

    def accuracy_intervals(
        self, *, level: float = 0.95, repetitions: int = 1000, seed: int = 0
    ) -> tuple[FloatArray, FloatArray]:
        """Return the percentile bootstrap interval over images of the accuracy of each bin.

        Draws of images that leave a bin empty do not count for it.

        Returns:
            The lower and the upper ends (B,) each, NaN where a bin is empty.
        """
        draws = self._draws(repetitions, seed)
        pixels = draws @ self.pixels
        drawn = np.where(pixels > 0, draws @ self.right / np.maximum(pixels, 1), np.nan)
        found = np.full((2, drawn.shape[1]), np.nan)
        there = ~np.isnan(drawn).all(axis=0)
        tails = [(1 - level) / 2, (1 + level) / 2]
        found[:, there] = np.nanquantile(drawn[:, there], tails, axis=0)
        return found[0], found[1]

    def _draws(self, repetitions: int, seed: int) -> NDArray[np.int64]:
        """Return how often each image is drawn in each repetition (R, N)."""
        count = len(self.pixels)
        random = np.random.default_rng(seed)
        return random.multinomial(count, np.full(count, 1 / count), size=repetitions)

    def risk_coverage(self) -> tuple[FloatArray, FloatArray]:
        """Return, for each threshold, how many pixels are kept and how many of these are wrong.

        Returns:
            Coverage (B,) and risk (B,), both in 0..1, if the pixels of the highest bin are kept,
            those of the two highest, and so on; the last coverage is 1. Where no pixel is kept the
            risk is NaN.
        """
        kept, right = self.pixels.sum(0)[::-1].cumsum(), self.right.sum(0)[::-1].cumsum()
        risk = np.where(kept > 0, 1 - right / np.maximum(kept, 1), np.nan)
        return kept / max(kept[-1], 1), risk


def _errors(confidence: FloatArray, right: FloatArray, pixels: FloatArray) -> FloatArray:
    """Return the errors (...) of bins (..., B)."""
    gaps = np.abs(confidence - right).sum(-1)
    return np.asarray(gaps / np.maximum(pixels.sum(-1), 1))


def reliability(
    images: Sequence[tuple[NDArray[Any], NDArray[Any]]], bins: int = BINS
) -> Reliability:
    """Count the pixels of images.

    Args:
        images: pairs of the confidences (P,) in 0..1 of an image's pixels, and whether these are
            right.
        bins: number of bins of equal width; a confidence on an edge belongs to the bin above it,
            and 1 to the last one.

    Raises:
        InputError: there is no image.
    """
    if not images:
        raise InputError("there is no image to measure a calibration on; give at least one")
    rows = []
    for confidence, right in images:
        exact = np.asarray(confidence, np.float64).ravel()
        place = np.minimum((exact * bins).astype(np.int64), bins - 1)
        rows.append([np.bincount(place, values, bins) for values in (None, exact, np.ravel(right))])
    counts = np.array(rows, np.float64)  # (N, 3, B)
    return Reliability(counts[:, 0], counts[:, 1], counts[:, 2])


def auroc(scores: NDArray[Any], positive: BoolArray) -> float:
    """Return the area under the ROC curve: the probability that a positive scores above a negative.

    Args:
        scores: (N,).
        positive: (N,).

    Returns:
        0..1, ties count one half; NaN without a positive or a negative.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return math.nan
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # equal scores share their mean rank
    above = ranks[positive].sum() - positives * (positives + 1) / 2
    return float(above / positives / negatives)
