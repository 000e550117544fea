"""The evaluation of a segmenter on labelled images, resumable and in any number of processes."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from openvocab.cli import print_warning
from openvocab.datasets.label_check import check_labels, check_same_size
from openvocab.datasets.samples import FolderDataset, Sample, SampleSet
from openvocab.errors import InputError
from openvocab.evaluation.data_arguments import add_data_arguments, sample_set
from openvocab.evaluation.log import EvaluationLog, ImageRecord
from openvocab.evaluation.protocol import ProtocolCard, metric_names, protocol_card
from openvocab.evaluation.results import Result
from openvocab.formats.detectron2 import PredictedClass, write_predictions
from openvocab.formats.run_length import encode_labels
from openvocab.image import read_image, read_label_map
from openvocab.metrics.bootstrap import bootstrap_interval
from openvocab.metrics.boundary import boundary_counts
from openvocab.metrics.calibration import FloatArray, reliability
from openvocab.metrics.scores import CONVENTIONS, Ignore, check_truth, count_pairs, void_values
from openvocab.segmenter import Segmentation, Segmenter
from openvocab.vocabulary import Vocabulary

__all__ = [
    "FolderDataset",
    "Sample",
    "SampleSet",
    "add_evaluate_arguments",
    "evaluate",
    "evaluate_set",
    "run_evaluation",
    "sample_set",
]

RESULT_FILE = "result.json"
PREDICTIONS_FILE = "sem_seg_predictions.json"

ReadLabel = Callable[[Sample], NDArray[Any]]


def evaluate(
    segmenter: Segmenter,
    samples: Sequence[Sample],
    vocabulary: Vocabulary,
    *,
    ignore_index: Ignore = None,
    output: Path | None = None,
    resume: bool = True,
    progress: bool = True,
    limit: int | None = None,
    shard: tuple[int, int] = (0, 1),
    boundary: bool = False,
    save_predictions: bool = False,
    seed: int = 0,
    card: ProtocolCard | None = None,
    read_label: ReadLabel | None = None,
    label_hint: str = "",
) -> Result:
    """Segment images and count how their labels agree with the ground truth.

    With an output folder every finished image is logged there, and a later call with the same
    protocol computes only what is missing, whatever killed the first. The matrix is the same for
    any number of processes.

    Args:
        segmenter: the segmenter that makes the label maps.
        samples: images and label maps.
        vocabulary: vocabulary that names the label values; its background policy is the
            segmenter's.
        ignore_index: void values, see `openvocab.metrics.scores.void_values`.
        output: folder for log and result; None keeps everything in memory.
        resume: go on with a log that is there.
        progress: show a bar with the time left.
        limit: evaluate only the first so many samples.
        shard: (rank, world): take every world-th sample from rank on. Who finishes last writes the
            result; for the others it is not complete.
        boundary: also count boundaries, for boundary IoU.
        save_predictions: also write detectron2's `sem_seg_predictions.json` (needs `output`).
        seed: seed of all random numbers in the segmenter and of the bootstrap.
        card: lines of the protocol card that only the caller knows (data set, split, label tree).
        read_label: reads a sample's ground truth; None reads the file's values as they are.
        label_hint: words to add to an error about a label value without a name, such as its
            probable meaning.

    Raises:
        InputError: a file cannot be read, image and label map differ in size, a label value has no
            name (the sentence names file, value and count), or the arguments make no sense.
    """
    whole = len(samples)
    samples = _selected(samples, limit)
    rank, world = _checked_shard(shard)
    if save_predictions and output is None:
        raise InputError("predictions can only be saved with an output folder; give one")
    names = metric_names(vocabulary)
    ignore = tuple(sorted(void_values(len(names), ignore_index)))
    card = protocol_card(
        segmenter, vocabulary, replace(card or ProtocolCard(), ignore_index=ignore, seed=seed)
    )
    card = replace(card, n_images=len(samples), n_classes=len(names))
    job = _Job(
        segmenter,
        vocabulary,
        ignore,
        boundary,
        save_predictions,
        read_label or _read_file,
        label_hint,
    )
    import torch  # late: commands must not wait for it to parse their arguments

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    if output is None:
        own = samples[rank::world]
        records = {s.id: job.run(s) for s in _bar(own, progress, len(own))}
        return _result(card, names, samples, records, boundary, whole)
    log = EvaluationLog(output, card, (rank, world), keep=resume)
    if resume and log.changes:
        message = f"{log.path} belongs to another protocol and is started anew: "
        warnings.warn(message + "; ".join(log.changes), stacklevel=2)
    try:
        _run_missing(job, log, samples, (rank, world), progress)
        records = {r.id: r for r in log.records() if job.satisfied_by(r)}
    finally:
        log.close()
    result = _result(card, names, samples, records, boundary, whole)
    if result.complete:
        result.save(output / RESULT_FILE)
        if save_predictions:
            _write_predictions(output / PREDICTIONS_FILE, samples, records)
    return result


def evaluate_set(segmenter: Segmenter, data: SampleSet, **options: Any) -> Result:
    """Evaluate on a whole data set; the options are those of `evaluate`.

    Raises: see `evaluate`.
    """
    vocabulary = options.pop("vocabulary", None) or data.vocabulary
    card = ProtocolCard(
        data_set=data.name, split=data.split, label_tree_hash=data.label_tree_hash()
    )
    ignore = options.setdefault("ignore_index", data.ignore_index)
    seen = check_labels(
        data,
        samples=_selected(data.samples, options.get("limit")),
        classes=len(metric_names(vocabulary)),
        ignore=None if ignore == data.ignore_index else void_values(0, ignore),
        values=False,
        progress=options.get("progress", True),
    )
    return evaluate(
        segmenter,
        data.samples,
        vocabulary,
        card=card,
        read_label=data.read_label,
        label_hint=seen.hint,
        **options,
    )


class _Job:
    """The work for one image."""

    def __init__(
        self,
        segmenter: Segmenter,
        vocabulary: Vocabulary,
        ignore: tuple[int, ...],
        boundary: bool,
        segments: bool,
        read_label: ReadLabel,
        label_hint: str,
    ) -> None:
        self.segmenter, self.vocabulary, self.ignore = segmenter, vocabulary, ignore
        self.boundary, self.segments, self.read_label = boundary, segments, read_label
        self.label_hint = label_hint
        self.classes = len(metric_names(vocabulary))

    def run(self, sample: Sample) -> ImageRecord:
        """Segment an image and compare it with its ground truth."""
        image, truth = read_image(sample.image), self.read_label(sample)
        check_same_size(sample, image, truth)
        try:  # before the work, not after it
            check_truth(truth, self.classes, self.ignore)
        except InputError as error:
            raise InputError(f"{sample.label}: {error}{self.label_hint}") from None
        found = self.segmenter.segment(image, self.vocabulary)
        labels = self._labels(found)
        return ImageRecord(
            sample.id,
            count_pairs(labels, truth, self.classes, self.ignore),
            boundary_counts(labels, truth, self.classes, self.ignore) if self.boundary else None,
            {k: dict(v) for k, v in encode_labels(labels).items()} if self.segments else None,
            self._confidence(found, labels, truth),
        )

    def satisfied_by(self, record: ImageRecord) -> bool:
        """Return whether a logged image has all results that are needed now."""
        return (record.boundary is not None or not self.boundary) and (
            record.segments is not None or not self.segments
        )

    def _confidence(
        self, found: Segmentation, labels: NDArray[Any], truth: NDArray[Any]
    ) -> FloatArray | None:
        """Count the pixels that have a label and a truth, by their confidence."""
        if found.confidence is None:
            return None
        judged = (labels >= 0) & ~np.isin(truth, self.ignore)
        counted = reliability([(found.confidence[judged], (labels == truth)[judged])])
        return np.concatenate([counted.pixels, counted.confidence, counted.right])

    def _labels(self, found: Segmentation) -> NDArray[Any]:
        labels = found.labels
        first = self.vocabulary.background.index
        if first is None:
            return labels
        return np.where((labels < 0) | (labels > first), first, labels)


def _run_missing(
    job: _Job,
    log: EvaluationLog,
    samples: Sequence[Sample],
    shard: tuple[int, int],
    progress: bool,
) -> None:
    done = {record.id for record in log.records() if job.satisfied_by(record)}
    own = samples[shard[0] :: shard[1]]
    missing = [sample for sample in own if sample.id not in done]
    for sample in _bar(missing, progress, len(own)):
        log.append(job.run(sample))


def _result(
    card: ProtocolCard,
    names: tuple[str, ...],
    samples: Sequence[Sample],
    records: Mapping[str, ImageRecord],
    boundary: bool,
    whole: int,
) -> Result:
    # In the order of the samples, so that the intervals do not depend on who did what.
    found = [records[sample.id] for sample in samples if sample.id in records]
    complete = len(found) == len(samples)
    pairs = [record.pairs for record in found]
    matrix = np.zeros((len(names), len(names) + 1), dtype=np.int64)
    for image in pairs:
        matrix[image.truth, image.predicted] += image.counts
    edges = [record.boundary for record in found if record.boundary is not None]
    intervals = {
        convention: bootstrap_interval(pairs, len(names), convention, seed=card.seed)
        for convention in (CONVENTIONS if complete and matrix.any() else ())
    }
    return Result(
        card=card if complete else replace(card, n_images=len(found)),
        names=names,
        matrix=matrix,
        intervals=intervals,
        boundary=sum(edges, np.zeros((3, len(names)), np.int64)) if boundary else None,
        complete=complete,
        images_of_set=whole,
    )


def _write_predictions(
    path: Path, samples: Sequence[Sample], records: Mapping[str, ImageRecord]
) -> None:
    write_predictions(
        path,
        (
            PredictedClass(str(sample.image), label, code)
            for sample in samples
            for label, code in (records[sample.id].segments or {}).items()
        ),
    )


def _selected(samples: Sequence[Sample], limit: int | None) -> Sequence[Sample]:
    if limit is not None and limit < 1:
        raise InputError(f"the limit is {limit} images; give at least 1, or none for all")
    chosen = tuple(samples[:limit])
    if not chosen:
        raise InputError("there are no images to evaluate on; give a data set with images")
    if len({sample.id for sample in chosen}) < len(chosen):
        raise InputError("two samples have the same id; ids tell finished images from others")
    return chosen


def _checked_shard(shard: tuple[int, int]) -> tuple[int, int]:
    rank, world = shard
    if not 0 <= rank < world:
        raise InputError(f"rank {rank} of {world} processes does not exist; ranks count from 0")
    return rank, world


def _bar(samples: Sequence[Sample], progress: bool, total: int) -> Iterator[Sample]:
    bar = tqdm(
        samples,
        total=total,
        initial=total - len(samples),
        unit="image",
        desc="evaluating",
        disable=not progress,
    )
    yield from bar


def _read_file(sample: Sample) -> NDArray[Any]:
    return read_label_map(sample.label)


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every method's evaluate command has."""
    add_data_arguments(parser)
    run = parser.add_argument_group("evaluation")
    run.add_argument(
        "--ignore-index",
        type=int,
        nargs="+",
        metavar="VALUE",
        help="label values that are void (default: the data set's; in folders 255, or 65535 "
        "where there are more than 255 classes)",
    )
    run.add_argument("--output", type=Path, default=Path("output/evaluation"), metavar="DIR")
    run.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    run.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on where an earlier run with the same protocol stopped",
    )
    run.add_argument(
        "--save-predictions", action="store_true", help=f"also write {PREDICTIONS_FILE}"
    )
    run.add_argument("--boundary-iou", action="store_true", help="also score the outlines")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument(
        "--rank",
        type=int,
        default=os.environ.get("RANK", "0"),
        help="which of several processes that share --output this is, from 0 (default: $RANK)",
    )
    run.add_argument(
        "--world-size",
        type=int,
        default=os.environ.get("WORLD_SIZE", "1"),
        help="number of processes (default: $WORLD_SIZE)",
    )


def run_evaluation(
    args: argparse.Namespace,
    make_segmenter: Callable[[argparse.Namespace], Segmenter],
    data: SampleSet | None = None,
) -> int:
    """Evaluate with the options of the arguments, and print the scores of all conventions.

    Args:
        args: parsed from a parser with `add_evaluate_arguments`.
        make_segmenter: function that makes the segmenter; it is called after the data was found.
        data: data to evaluate on; None: the data that the arguments name.

    Returns:
        The exit code.

    Raises:
        InputError: the arguments name no data, or see `evaluate`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = print_warning  # type: ignore[assignment]  # takes any place
        return _run(args, make_segmenter, data)


def _run(
    args: argparse.Namespace,
    make_segmenter: Callable[[argparse.Namespace], Segmenter],
    data: SampleSet | None,
) -> int:
    data = data or sample_set(args)
    options = {} if args.ignore_index is None else {"ignore_index": tuple(args.ignore_index)}
    result = evaluate_set(
        make_segmenter(args),
        data,
        output=args.output,
        resume=args.resume,
        limit=args.limit,
        shard=(args.rank, args.world_size),
        boundary=args.boundary_iou,
        save_predictions=args.save_predictions,
        seed=args.seed,
        **options,
    )
    if not result.complete:
        print(
            f"{result.card.n_images} images are done; the process that finishes last writes "
            f"{args.output / RESULT_FILE}",
            file=sys.stderr,
        )
        return 0
    print(result.table())
    print(f"written to {args.output / RESULT_FILE}")
    return 0
