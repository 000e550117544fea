"""Score the predictions of any program on a data set.

`python -m openvocab.score --predictions DIR --dataset NAME`

Predictions are label maps (PNG or TIFF) or a `sem_seg_predictions.json`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

import openvocab
from openvocab.cli import CommandParser, run
from openvocab.datasets.label_check import check_labels
from openvocab.datasets.predictions import Predictions, check_complete, open_predictions
from openvocab.datasets.preparation import default_workers, run_parallel
from openvocab.datasets.samples import Sample, SampleSet
from openvocab.errors import InputError
from openvocab.evaluation.data_arguments import add_data_arguments, sample_set
from openvocab.evaluation.protocol import metric_names
from openvocab.evaluation.results import ProtocolCard, Result
from openvocab.metrics.bootstrap import bootstrap_interval
from openvocab.metrics.scores import CONVENTIONS, PairCounts, count_pairs, void_values


def main(argv: Sequence[str] | None = None) -> int:
    """Score predictions and print the result by all conventions."""
    args = build_parser().parse_args(argv)
    data = sample_set(args)
    predictions = open_predictions(args.predictions, data, args.category_ids)
    result = score_predictions(
        predictions,
        data,
        partial_set=args.partial,
        workers=args.workers,
        progress=not args.quiet,
        method=args.method or args.predictions.name,
    )
    print(result.table())
    if args.output is not None:
        result.save(args.output)
        print(f"written to {args.output}")
    return 0


def score_predictions(
    predictions: Predictions,
    data: SampleSet,
    *,
    partial_set: bool = False,
    workers: int = 1,
    progress: bool = False,
    method: str = "predictions",
) -> Result:
    """Compare predictions with the ground truth of a set; see `score_images`."""
    return score_images(
        predictions,
        data,
        partial_set=partial_set,
        workers=workers,
        progress=progress,
        method=method,
    )[0]


def score_images(
    predictions: Predictions,
    data: SampleSet,
    *,
    partial_set: bool = False,
    workers: int = 1,
    progress: bool = False,
    method: str = "predictions",
) -> tuple[Result, dict[str, PairCounts]]:
    """Compare predictions with the ground truth of a set; also return the counts of each image.

    Raises:
        InputError: a prediction is missing (unless `partial_set`), unreadable, of the wrong size,
            or holds a value that is no class.
    """
    names = metric_names(data.vocabulary)
    void = tuple(sorted(void_values(len(names), data.ignore_index)))
    samples = check_complete(predictions, data.samples, partial=partial_set)
    check_labels(data, samples=samples, classes=len(names), progress=progress)
    count = partial(_count, predictions=predictions, data=data, classes=len(names), void=void)
    pairs = list(run_parallel(count, samples, workers, f"scoring {data.name}", progress))
    matrix = np.zeros((len(names), len(names) + 1), dtype=np.int64)
    for image in pairs:
        matrix[image.truth, image.predicted] += image.counts
    card = ProtocolCard(
        data_set=data.name,
        split=data.split,
        n_images=len(samples),
        n_classes=len(names),
        label_tree_hash=data.label_tree_hash(),
        vocabulary=data.vocabulary.key or "custom",
        vocabulary_hash=data.vocabulary.sha256(),
        background=str(data.vocabulary.background),
        ignore_index=void,
        method=method,
        code_version=openvocab.__version__,
        settings={"scored": "predictions of another program", "prompts": "unknown"},
    )
    scored = CONVENTIONS if matrix.any() else ()
    intervals = {c: bootstrap_interval(pairs, len(names), c, seed=0) for c in scored}
    whole = len(data.samples)
    result = Result(card, names, matrix, intervals, images_of_set=whole)
    return result, {sample.id: image for sample, image in zip(samples, pairs, strict=True)}


def add_prediction_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a data set and tell how to read predictions for it."""
    add_data_arguments(parser)
    parser.add_argument(
        "--category-ids",
        choices=("auto", "labels", "dataset"),
        default="auto",
        help="in a JSON for COCO-Stuff: labels 0..170 or COCO's ids 1..182 (default: see)",
    )


def _count(
    sample: Sample,
    *,
    predictions: Predictions,
    data: SampleSet,
    classes: int,
    void: tuple[int, ...],
) -> PairCounts:
    known = len(data.vocabulary)
    labels = predictions.read(sample, known)
    if labels.max(initial=-1) >= known or labels.min(initial=0) < -1:
        wrong, counts = np.unique(labels[(labels >= known) | (labels < -1)], return_counts=True)
        raise InputError(
            f"The prediction for {sample.id} holds the value {wrong[0]} ({counts[0]} pixels), but "
            f"labels are 0 to {known - 1}."
        )
    if classes < known or data.vocabulary.background.index is not None:
        first = classes - 1  # all labels from the background's on are background
        labels = np.where((labels < 0) | (labels > first), first, labels)
    try:
        return count_pairs(labels, data.read_label(sample), classes, void)
    except InputError as error:
        raise InputError(f"{sample.id}: {error}") from None


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = CommandParser("python -m openvocab.score", description=__doc__)
    parser.add_argument("--predictions", type=Path, required=True, metavar="DIR|JSON")
    add_prediction_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the result as JSON")
    parser.add_argument("--method", help="the name that the result carries")
    parser.add_argument(
        "--partial", action="store_true", help="score only the images that have a prediction"
    )
    parser.add_argument("--workers", type=int, default=default_workers(), metavar="N")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


if __name__ == "__main__":
    sys.exit(run(main))
