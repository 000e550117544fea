"""Score the predictions of any program on a data set.

`python -m openvocab.score --predictions DIR --dataset NAME`

Predictions are a folder of label maps (PNG, TIFF) or of NumPy's arrays, which hold labels or scores
(K, H, W); the folder of a prediction command; detectron2's `sem_seg_predictions.json`; or the JSON
of COCO's panoptic format with its PNG files. The output folder is like that of an evaluation.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import openvocab
from openvocab.cli import CommandParser, run
from openvocab.datasets.label_check import check_labels
from openvocab.datasets.predictions import Predictions, check_complete, open_predictions
from openvocab.datasets.preparation import default_workers, run_parallel
from openvocab.datasets.samples import Sample, SampleSet
from openvocab.errors import InputError
from openvocab.evaluation.data_arguments import add_data_arguments, sample_set
from openvocab.evaluation.log import EvaluationLog, ImageRecord
from openvocab.evaluation.protocol import metric_names
from openvocab.evaluation.results import ProtocolCard, Result
from openvocab.evaluation.run import RESULT_FILE
from openvocab.evaluation.stated import LINES, read_stated, stated_settings
from openvocab.formats.run_length import encode_labels
from openvocab.metrics.bootstrap import bootstrap_interval
from openvocab.metrics.scores import CONVENTIONS, count_pairs, void_values


def main(argv: Sequence[str] | None = None) -> int:
    """Score predictions and print the result by all conventions."""
    args = build_parser().parse_args(argv)
    data = sample_set(args)
    if args.output is not None and (args.output.is_file() or args.output.suffix == ".json"):
        raise InputError(f"--output is {args.output}; give the name of a folder")
    stated = {} if args.card is None else read_stated(args.card)
    predictions = open_predictions(
        args.predictions, data, args.category_ids, args.prediction_offset
    )
    result, records = score_images(
        predictions,
        data,
        partial_set=args.partial,
        workers=args.workers,
        progress=not args.quiet,
        method=args.method or args.predictions.name,
        stated=stated,
    )
    print(result.table())
    if args.output is not None:
        save_evaluation(args.output, result, records)
        print(f"written to {args.output / RESULT_FILE}")
    return 0


def score_images(
    predictions: Predictions,
    data: SampleSet,
    *,
    partial_set: bool = False,
    workers: int = 1,
    progress: bool = False,
    method: str = "predictions",
    stated: Mapping[str, str] | None = None,
    segments: bool = False,
    limit: int | None = None,
) -> tuple[Result, list[ImageRecord]]:
    """Compare predictions with the ground truth of a set; also return the counts of each image.

    Args:
        predictions: label maps by sample.
        data: images with ground truth.
        partial_set: score only the images that have a prediction.
        workers: how many processes.
        progress: show a bar.
        method: the name that the result carries.
        stated: what its user says of the method, by `openvocab.evaluation.stated.LINES`.
        segments: also keep the label maps in the records, as run-length codes.
        limit: score only the first so many images.

    Raises:
        InputError: a prediction is missing (unless `partial_set`), unreadable, of the wrong size,
            or holds a value that is no class.
    """
    names = metric_names(data.vocabulary)
    void = tuple(sorted(void_values(len(names), data.ignore_index)))
    samples = check_complete(predictions, data.samples[:limit], partial=partial_set)
    check_labels(data, samples=samples, classes=len(names), progress=progress)
    count = partial(
        _count,
        predictions=predictions,
        data=data,
        classes=len(names),
        void=void,
        segments=segments,
    )
    records = list(run_parallel(count, samples, workers, f"scoring {data.name}", progress))
    pairs = [record.pairs for record in records]
    matrix = np.zeros((len(names), len(names) + 1), dtype=np.int64)
    for image in pairs:
        matrix[image.truth, image.predicted] += image.counts
    _warn_of_shift(matrix)
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
        settings=stated_settings(stated or {}),
    )
    scored = CONVENTIONS if matrix.any() else ()
    intervals = {c: bootstrap_interval(pairs, len(names), c, seed=0) for c in scored}
    whole = len(data.samples)
    result = Result(card, names, matrix, intervals, images_of_set=whole)
    return result, records


def save_evaluation(folder: Path, result: Result, records: Sequence[ImageRecord]) -> None:
    """Write the files of an evaluation: the log of all images, and then the result."""
    (folder / RESULT_FILE).unlink(missing_ok=True)  # a killed run must leave none that looks whole
    log = EvaluationLog(folder, result.card, (0, 1), keep=False)
    try:
        for record in records:
            log.append(record)
    finally:
        log.close()
    result.save(folder / RESULT_FILE)


def _warn_of_shift(matrix: NDArray[np.int64]) -> None:
    """Warn if the labels fit the ground truth better when they count from 1."""
    right, shifted = int(np.trace(matrix[:, :-1])), int(np.trace(matrix[:, 1:-1]))
    if shifted > right:
        warnings.warn(
            f"{shifted} pixels would be right if the predictions counted from 1, and {right} are "
            "as they count from 0; if they do, add --prediction-offset -1",
            stacklevel=3,
        )


def add_prediction_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a data set and describe how to read predictions for it."""
    add_data_arguments(parser)
    parser.add_argument(
        "--category-ids",
        choices=("auto", "labels", "dataset"),
        default="auto",
        help="in a JSON for COCO-Stuff: labels 0..170 or COCO's ids 1..182 (default: see)",
    )
    parser.add_argument(
        "--prediction-offset",
        type=int,
        default=0,
        metavar="N",
        help="added to predicted labels: -1 where they count from 1 (then 0 is nothing), as "
        "mmsegmentation writes them for sets with reduce_zero_label",
    )


def _count(
    sample: Sample,
    *,
    predictions: Predictions,
    data: SampleSet,
    classes: int,
    void: tuple[int, ...],
    segments: bool,
) -> ImageRecord:
    known = len(data.vocabulary)
    labels = predictions.read(sample, known)
    if labels.max(initial=-1) >= known or labels.min(initial=0) < -1:
        wrong, counts = np.unique(labels[(labels >= known) | (labels < -1)], return_counts=True)
        raise InputError(
            f"the prediction for {sample.id} holds the value {wrong[0]} ({counts[0]} pixels), but "
            f"labels are 0 to {known - 1}; {predictions.if_shifted}"
        )
    if classes < known or data.vocabulary.background.index is not None:
        first = classes - 1  # all labels from the background's on are background
        labels = np.where((labels < 0) | (labels > first), first, labels)
    try:
        pairs = count_pairs(labels, data.read_label(sample), classes, void)
    except InputError as error:
        raise InputError(f"{sample.id}: {error}") from None
    codes = {k: dict(v) for k, v in encode_labels(labels).items()} if segments else None
    return ImageRecord(sample.id, pairs, None, codes)


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = CommandParser("python -m openvocab.score", description=__doc__)
    parser.add_argument("--predictions", type=Path, required=True, metavar="DIR|JSON")
    add_prediction_arguments(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write result and log here, as evaluations do, for openvocab.compare and the report",
    )
    parser.add_argument("--method", help="the name that the result carries")
    parser.add_argument(
        "--card",
        type=Path,
        metavar="YAML",
        help=f"what you know of the method, for its card: {', '.join(LINES)}",
    )
    parser.add_argument(
        "--partial", action="store_true", help="score only the images that have a prediction"
    )
    parser.add_argument("--workers", type=int, default=default_workers(), metavar="N")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


if __name__ == "__main__":
    sys.exit(run(main))
