"""Comparing two methods on the same images: `python -m openvocab.compare FIRST SECOND`.

FIRST and SECOND are output folders of evaluate commands; or of prediction commands, if --dataset
says what they are compared with. What differs between their protocols is printed first.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openvocab.cli import CommandParser, run
from openvocab.datasets.predictions import open_predictions
from openvocab.datasets.samples import SampleSet
from openvocab.errors import InputError
from openvocab.evaluation.data_arguments import add_data_arguments, sample_set
from openvocab.evaluation.log import ImageRecord, read_records
from openvocab.evaluation.protocol import diff_cards
from openvocab.evaluation.results import Result
from openvocab.evaluation.run import RESULT_FILE
from openvocab.inference.layout import JOURNAL
from openvocab.metrics.bootstrap import PairedDifference, paired_difference
from openvocab.metrics.scores import CONVENTIONS, ConfusionMatrix, Convention
from openvocab.score import score_images


@dataclass(frozen=True)
class Comparison:
    """Two results on the same images.

    Args:
        first: of the first method.
        second: of the second.
        differences: what differs between their protocols, in words.
        paired: first - second in points of mIoU, for each convention.
    """

    first: Result
    second: Result
    differences: tuple[str, ...]
    paired: dict[Convention, PairedDifference]


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation as its folder holds it, read once.

    Args:
        folder: where it was read.
        result: matrix and scores of all images.
        records: what was found in each image, by its id.
    """

    folder: Path
    result: Result
    records: Mapping[str, ImageRecord]

    @classmethod
    def read(cls, folder: Path) -> Evaluation:
        """Read the output folder of an evaluate command.

        Raises:
            InputError: it holds no complete result.
        """
        result = Result.load(folder / RESULT_FILE)
        records = {record.id: record for record in read_records(folder, result.card)}
        if len(records) < result.card.n_images:
            raise InputError(
                f"The logs in {folder} hold {len(records)} of {result.card.n_images} images; "
                f"evaluate again to compare image by image."
            )
        return cls(folder, result, records)

    @classmethod
    def of_predictions(cls, folder: Path, data: SampleSet) -> Evaluation:
        """Score the output folder of a prediction command.

        Raises:
            InputError: see `openvocab.score.score_images`.
        """
        predictions = open_predictions(folder, data)
        result, pairs = score_images(predictions, data, method=folder.name)
        return cls(folder, result, {one: ImageRecord(one, found) for one, found in pairs.items()})


def compare(first: Path, second: Path, data: SampleSet | None = None) -> Comparison:
    """Compare the results in two output folders image by image.

    Args:
        first: output folder of an evaluate command, or of a prediction command.
        second: another.
        data: with what the predictions are compared.

    Raises:
        InputError: a folder holds no complete result, or the two are not of the same images, label
            maps and class names.
    """
    return compare_evaluations(_evaluation(first, data), _evaluation(second, data))


def _evaluation(folder: Path, data: SampleSet | None) -> Evaluation:
    if not (folder / JOURNAL).is_file():
        return Evaluation.read(folder)
    if data is None:
        raise InputError(
            f"{folder} holds predictions; say with --dataset what they are compared with."
        )
    return Evaluation.of_predictions(folder, data)


def compare_evaluations(first: Evaluation, second: Evaluation) -> Comparison:
    """Compare two evaluations image by image.

    Raises:
        InputError: the two are not of the same images, label maps and class names, or a result is
            not what its log says.
    """
    _check_log(first)
    _check_log(second)
    left, right = first.result, second.result
    if (left.names, left.card.label_tree_hash) != (right.names, right.card.label_tree_hash):
        raise InputError(
            f"{first.folder} and {second.folder} were not evaluated on the same label maps and "
            f"class names: {'; '.join(diff_cards(left.card, right.card))}."
        )
    ids = sorted(first.records)
    if ids != sorted(second.records):
        raise InputError(
            f"{first.folder} ({left.images}) and {second.folder} ({right.images}) were not "
            f"evaluated on the same images; use the same --limit."
        )
    paired = {
        convention: paired_difference(
            [first.records[i].pairs for i in ids],
            [second.records[i].pairs for i in ids],
            len(left.names),
            convention,
        )
        for convention in CONVENTIONS
    }
    return Comparison(left, right, tuple(diff_cards(left.card, right.card)), paired)


def _check_log(evaluation: Evaluation) -> None:
    """Refuse a result that is not the sum of the images that are compared."""
    found = evaluation.result
    matrix = ConfusionMatrix(len(found.names))
    for record in evaluation.records.values():
        matrix.add(record.pairs)
    if not np.array_equal(matrix.matrix, found.matrix):
        raise InputError(
            f"The result in {evaluation.folder} is of {found.images} and its logs hold "
            f"{len(evaluation.records)}, as after evaluating again with another --limit; evaluate "
            f"once more without it, which computes only what is missing."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Print what differs between two protocols, and the paired difference of their mIoU.

    Raises:
        InputError: see `compare`.
    """
    parser = CommandParser(prog="python -m openvocab.compare", description=__doc__)
    parser.add_argument("first", type=Path, help="output folder of evaluate or predict")
    parser.add_argument("second", type=Path, help="another, on the same data")
    add_data_arguments(parser)
    args = parser.parse_args(argv)
    named = args.dataset or args.images or args.labels or args.names
    found = compare(args.first, args.second, sample_set(args) if named else None)
    print("\n".join(found.differences) or "the protocols are the same")
    print(f"{found.first.images}; the difference is first - second")
    print(f"{'convention':<18}{'first':>8}{'second':>8}{'difference':>12}{'95 % interval':>20}")
    for convention, paired in found.paired.items():
        scores = [result.scores(convention).miou for result in (found.first, found.second)]
        interval = f"{paired.interval.low:+.2f} to {paired.interval.high:+.2f}"
        print(
            f"{convention:<18}{scores[0]:>8.2f}{scores[1]:>8.2f}"
            f"{paired.interval.estimate:>+12.2f}{interval:>20}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
