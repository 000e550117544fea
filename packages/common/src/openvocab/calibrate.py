"""Fits the confidences of a method, and stores them beside its weights.

    python -m openvocab.calibrate --method san --weights world --dataset world:tune

The result, `FILE.calibration.json` beside the weights, is used whenever these weights are loaded.
It holds two logistic regressions on what the method knows at a pixel: one gives the probability
that the label is right, the other that the pixel shows any of the names. The second one is fitted
on images half of which have lost the name of their ground.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from openvocab.cli import CommandParser, run
from openvocab.computation import add_computation_arguments
from openvocab.datasets import resolve
from openvocab.datasets.samples import Sample, SampleSet
from openvocab.errors import InputError
from openvocab.image import read_image
from openvocab.methods import add_method_arguments, load_from_arguments
from openvocab.metrics.calibration import BoolArray, Calibration, FloatArray, fit_head
from openvocab.metrics.scores import void_values
from openvocab.segmenter import BaseSegmenter, Segmentation
from openvocab.vocabulary import NOTHING, WORLD, Vocabulary

if TYPE_CHECKING:
    from openvocab.inference.confidence import Evidence

PIXELS = 1000  # that are drawn from each image
_TEST_SPLITS = ("val", "validation", "test")
_UNKNOWN = -2  # the truth where nobody knows what is there


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = CommandParser(
        prog="python -m openvocab.calibrate",
        description="Fit confidences in 0..1 for the weights of a method, and store them beside "
        "the weights, where they are found whenever the weights are loaded.",
    )
    add_method_arguments(parser)
    parser.add_argument(
        "--dataset",
        default=f"{WORLD}:tune",
        metavar="NAME",
        help="a data set with label maps, but not the one that results are measured on "
        "(default: %(default)s)",
    )
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where the data sets lie")
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N images only")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write here instead of beside the weights"
    )
    add_computation_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Fit a calibration and write it.

    Raises:
        InputError: the method cannot be calibrated, or arguments, weights or data cannot be used.
    """
    args = build_parser().parse_args(argv)
    if args.limit is not None and args.limit < 2:
        raise InputError(f"--limit is {args.limit}, expected at least 2 images")
    data = resolve(args.dataset, args.data_root)
    if data.split in _TEST_SPLITS:
        print(
            f"warning: results are usually measured on the split {data.split!r} of {data.name}; "
            "measure calibrations that are fitted on it on other images.",
            file=sys.stderr,
        )
    segmenter = load_from_arguments(args)
    file = args.output or getattr(segmenter, "calibration_file", None)
    if not isinstance(segmenter, BaseSegmenter) or file is None:
        raise InputError(
            f"the method {args.method!r} has no file of weights here beside which a calibration "
            "could be stored; give --output FILE, or weights that are a file"
        )
    calibration = fit_calibration(segmenter, data, limit=args.limit)
    try:
        calibration.save(file)
    except OSError as error:
        raise InputError(f"cannot write '{file}' ({error.strerror}); give --output") from error
    print(f"fitted on {calibration.images} images, written to '{file}'")
    return 0


def fit_calibration(
    segmenter: BaseSegmenter, data: SampleSet, *, limit: int | None = None, seed: int = 0
) -> Calibration:
    """Fit a calibration on the images of a data set.

    Args:
        segmenter: the method; its own calibration, if it has one, has no influence.
        data: images with label maps.
        limit: how many of the images; None for all.
        seed: of the drawing of pixels.

    Raises:
        InputError: the method tells no evidence, or the images do not suffice.
    """
    from openvocab.inference.confidence import settings_sha256  # imports torch

    rng = np.random.default_rng(seed)
    samples = list(islice(data.samples, limit))
    whole, named = [], []
    for index, sample in enumerate(tqdm(samples, desc="calibrating", unit="image")):
        seen = judge(segmenter, data, sample, data.vocabulary)
        whole.append(seen.drawn(rng))
        reduced = without_ground(data.vocabulary, seen.truth) if index % 2 else None
        if reduced is None:
            named.append(whole[-1])
        else:
            named.append(judge(segmenter, data, sample, *reduced).drawn(rng))
    description = segmenter.describe()
    all_whole, all_named = _Pixels.join(whole), _Pixels.join(named)
    labelled = all_whole.select((all_whole.labels != NOTHING) & (all_whole.truth != _UNKNOWN))
    known = all_named.select(all_named.truth != _UNKNOWN)
    return Calibration(
        confidence=fit_head(
            labelled.features, labelled.labels == labelled.truth, segmenter.confidence_features
        ),
        named=fit_head(
            known.features, known.truth != NOTHING, ("log_best", "log_total"), balanced=True
        ),
        method=str(description.get("method", "")),
        weights_sha256=str(description.get("weights_sha256", "")),
        settings_sha256=settings_sha256(description),
        data_set=data.name,
        split=data.split,
        images=len(samples),
        label_tree_hash=data.label_tree_hash(),
    )


@dataclass(frozen=True)
class _Pixels:
    """N pixels: their features (3, N), their labels (N,) and the truth (N,)."""

    features: FloatArray
    labels: NDArray[np.int32]
    truth: NDArray[np.int32]

    def select(self, which: NDArray[Any]) -> _Pixels:
        return _Pixels(self.features[:, which], self.labels[which], self.truth[which])

    @classmethod
    def join(cls, parts: Sequence[_Pixels]) -> _Pixels:
        return cls(
            np.concatenate([part.features for part in parts], axis=1),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.truth for part in parts]),
        )


@dataclass(frozen=True)
class Judged:
    """A segmented image beside its truth.

    Attributes:
        found: what the method found.
        evidence: what it knew.
        truth: (H, W) int32, indices into the names that were asked for; -1 where none of them is
            there, -2 where nobody knows.
    """

    found: Segmentation
    evidence: Evidence
    truth: NDArray[np.int32]

    def right(self) -> BoolArray:
        """Return where (H, W) the label is right."""
        return np.asarray(self.found.labels == self.truth)

    def judgeable(self) -> BoolArray:
        """Return where (H, W) there are a label and a truth to compare it with."""
        return np.asarray((self.found.labels != NOTHING) & (self.truth != _UNKNOWN))

    def known(self) -> BoolArray:
        """Return where (H, W) the truth is known."""
        return np.asarray(self.truth != _UNKNOWN)

    def drawn(self, rng: np.random.Generator) -> _Pixels:
        """Return a random sample of the pixels."""
        count = min(PIXELS, self.truth.size)
        chosen = rng.choice(self.truth.size, count, replace=False)
        features = self.evidence.to_image(self.evidence.features()).reshape(3, -1)
        labels, truth = self.found.labels.ravel(), self.truth.ravel()
        return _Pixels(features[:, chosen].astype(np.float64), labels[chosen], truth[chosen])


def judge(
    segmenter: BaseSegmenter,
    data: SampleSet,
    sample: Sample,
    vocabulary: Vocabulary,
    places: NDArray[np.int32] | None = None,
) -> Judged:
    """Segment an image of a data set and look up its truth.

    Args:
        segmenter: the method.
        data: that the image is of.
        sample: the image.
        vocabulary: what to ask for.
        places: (K,) where the names of the data set are in this vocabulary; None where it is the
            data set's own.

    Raises:
        InputError: a file cannot be read, or the method tells no evidence.
    """
    told: list[Evidence] = []
    segmenter.on_evidence = told.append
    try:
        found = segmenter.segment(read_image(sample.image), vocabulary)
    finally:
        segmenter.on_evidence = None
    if len(told) != 1:
        raise InputError(
            f"{segmenter.describe().get('method', 'this method')} does not tell what its scores "
            "are made of, so it cannot be calibrated; use another method"
        )
    return Judged(found, told[0], _truth(data, sample, places))


def _truth(data: SampleSet, sample: Sample, places: NDArray[np.int32] | None) -> NDArray[np.int32]:
    """Return the truth as `Judged` holds it; void pixels of the world are ground without a name."""
    stored = data.read_label(sample).astype(np.int64)
    void = np.isin(stored, sorted(void_values(len(data.vocabulary), data.ignore_index)))
    inside = (stored >= 0) & (stored < len(data.vocabulary)) & ~void
    labels = np.where(inside, stored, 0)
    if places is not None:
        labels = places[labels]
    nothing = NOTHING if data.name == WORLD else _UNKNOWN
    return np.where(inside, labels, nothing).astype(np.int32)


def without_ground(
    vocabulary: Vocabulary, truth: NDArray[np.int32]
) -> tuple[Vocabulary, NDArray[np.int32]] | None:
    """Return a vocabulary without the names of an image's ground.

    The ground is all stuff in the image, or the name that covers most of it where the vocabulary
    does not tell stuff from things.

    Args:
        vocabulary: of the K names.
        truth: (H, W) of the image, negative where it has no name.

    Returns:
        The shorter vocabulary, and where the K names are in it (K,), -1 for those that are gone;
        None where there is no ground, or no other name.
    """
    counts = np.bincount(truth[truth >= 0].ravel(), minlength=len(vocabulary))
    if vocabulary.things is None:
        gone = {int(counts.argmax())} if counts.any() else set()
    else:
        things = np.array(vocabulary.things)
        gone = set(np.flatnonzero((counts > 0) & ~things).tolist())
    kept = [index for index in range(len(vocabulary)) if index not in gone]
    if not gone or not kept:
        return None
    places = np.full(len(vocabulary), NOTHING, np.int32)
    places[kept] = np.arange(len(kept))
    shorter = Vocabulary(
        tuple(vocabulary.names[index] for index in kept),
        vocabulary.templates,
        things=_chosen(vocabulary.things, kept),
        synonyms=_chosen(vocabulary.synonyms, kept),
    )
    return shorter, places


def _chosen(values: tuple[Any, ...] | None, kept: Sequence[int]) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values[index] for index in kept)


if __name__ == "__main__":
    sys.exit(run(main))
