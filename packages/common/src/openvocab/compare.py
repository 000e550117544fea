"""Comparing methods on the same images: `python -m openvocab.compare FIRST SECOND [THIRD ...]`.

They are output folders of evaluate commands or of openvocab.score; or predictions of any program,
if --dataset says what they are compared with. What differs between their protocols is printed
first. Of three and more, every two are compared, with intervals corrected for their number.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openvocab.cli import CommandParser, run
from openvocab.datasets.predictions import open_predictions
from openvocab.datasets.samples import SampleSet
from openvocab.errors import InputError
from openvocab.evaluation.data_arguments import add_data_arguments, sample_set
from openvocab.evaluation.log import ImageRecord, read_records
from openvocab.evaluation.protocol import ProtocolCard, diff_cards
from openvocab.evaluation.results import Result
from openvocab.evaluation.run import RESULT_FILE
from openvocab.inference.layout import JOURNAL
from openvocab.metrics.bootstrap import (
    Interval,
    PairedDifference,
    paired_difference,
    paired_differences,
)
from openvocab.metrics.scores import CONVENTIONS, ConfusionMatrix, Convention
from openvocab.score import score_images


@dataclass(frozen=True)
class PairedComparison:
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
    """A finished evaluation, read once from its folder.

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
                f"the logs in {folder} hold {len(records)} of {result.card.n_images} images; "
                f"evaluate again to compare image by image"
            )
        return cls(folder, result, records)

    @classmethod
    def of_predictions(cls, folder: Path, data: SampleSet) -> Evaluation:
        """Score the predictions of any program, as an evaluation.

        Raises:
            InputError: see `openvocab.score.score_images`.
        """
        predictions = open_predictions(folder, data)
        result, records = score_images(predictions, data, method=folder.name)
        return cls(folder, result, {record.id: record for record in records})


def compare_results(first: Path, second: Path, data: SampleSet | None = None) -> PairedComparison:
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
    ours = (folder / JOURNAL).is_file()
    if data is not None and (ours or not (folder / RESULT_FILE).is_file()):
        return Evaluation.of_predictions(folder, data)
    if ours:
        raise InputError(
            f"{folder} holds predictions; say with --dataset what they are compared with"
        )
    return Evaluation.read(folder)


def compare_evaluations(first: Evaluation, second: Evaluation) -> PairedComparison:
    """Compare two evaluations image by image.

    Raises:
        InputError: the two are not of the same images, label maps and class names, or a result is
            not what its log says.
    """
    check_comparable([first, second])
    left, right = first.result, second.result
    ids = sorted(first.records)
    paired = {
        convention: paired_difference(
            [first.records[i].pairs for i in ids],
            [second.records[i].pairs for i in ids],
            len(left.names),
            convention,
        )
        for convention in CONVENTIONS
    }
    return PairedComparison(left, right, tuple(diff_cards(left.card, right.card)), paired)


def compare_every_two(
    evaluations: Mapping[str, Evaluation], convention: Convention = "detectron2"
) -> dict[tuple[str, str], PairedDifference]:
    """Compare every pair of evaluations, with intervals corrected for the number of pairs.

    Args:
        evaluations: by name.
        convention: how classes without ground truth count.

    Returns:
        The difference first - second in points of mIoU, by the names; see `paired_differences`.

    Raises:
        InputError: see `compare_evaluations`.
    """
    every = list(evaluations.values())
    check_comparable(every)
    ids = sorted(every[0].records)
    methods = {key: [one.records[i].pairs for i in ids] for key, one in evaluations.items()}
    return paired_differences(methods, len(every[0].result.names), convention)


def check_comparable(evaluations: Sequence[Evaluation]) -> None:
    """Refuse evaluations that differ in their images, label maps or class names.

    Raises:
        InputError: so it is, or a result is not what its log says.
    """
    first = evaluations[0]
    for one in evaluations:
        _check_log(one)
    for second in evaluations[1:]:
        left, right = first.result, second.result
        if (left.names, left.card.label_tree_hash) != (right.names, right.card.label_tree_hash):
            raise InputError(
                f"{first.folder} and {second.folder} were not evaluated on the same label maps and "
                f"class names: {'; '.join(diff_cards(left.card, right.card))}"
            )
        if first.records.keys() != second.records.keys():
            raise InputError(
                f"{first.folder} ({left.images}) and {second.folder} ({right.images}) were not "
                f"evaluated on the same images; use the same --limit"
            )


def _check_log(evaluation: Evaluation) -> None:
    """Refuse a result that is not the sum of the compared images."""
    found = evaluation.result
    matrix = ConfusionMatrix(len(found.names))
    for record in evaluation.records.values():
        matrix.add(record.pairs)
    if not np.array_equal(matrix.matrix, found.matrix):
        raise InputError(
            f"the result in {evaluation.folder} is of {found.images} and its logs hold "
            f"{len(evaluation.records)}, as after evaluating again with another --limit; evaluate "
            f"once more without it, which computes only what is missing"
        )


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser(prog="python -m openvocab.compare", description=__doc__)
    parser.add_argument("first", type=Path, help="output folder, or predictions")
    parser.add_argument("others", type=Path, nargs="+", metavar="second", help="on the same data")
    add_data_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print what differs between protocols, and the paired differences of their mIoU.

    Raises:
        InputError: see `compare_results`.
    """
    args = build_parser().parse_args(argv)
    named = args.dataset or args.images or args.labels or args.names
    data = sample_set(args) if named else None
    found = [_evaluation(folder, data) for folder in (args.first, *args.others)]
    _print_two(compare_evaluations(*found)) if len(found) == 2 else _print_all(found)
    return 0


def _print_two(found: PairedComparison) -> None:
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


def _print_all(found: Sequence[Evaluation]) -> None:
    """Print what differs, the results by number, and a matrix of differences by convention."""
    names = [f"{number}: {one.folder}" for number, one in enumerate(found, start=1)]
    check_comparable(found)
    print("\n".join(differing_lines(found)) or "the protocols are the same")
    pairs = len(found) * (len(found) - 1) // 2
    print(
        f"{found[0].result.images}; each cell is row - column in points of mIoU. The {pairs} "
        f"intervals of a matrix together hold the true differences with 95 % (Bonferroni: each has "
        f"{100 * (1 - 0.05 / pairs):.2f} %); * marks those that do not hold 0."
    )
    for convention in CONVENTIONS:
        paired = compare_every_two(dict(zip(names, found, strict=True)), convention)
        print(f"\n{convention}")
        for name, one in zip(names, found, strict=True):
            print(f"{name}: mIoU {one.result.scores(convention).miou:.2f}")
        print("\n".join(_matrix(names, paired)))


def _matrix(names: Sequence[str], paired: Mapping[tuple[str, str], PairedDifference]) -> list[str]:
    """Return the lines of a matrix whose cells hold row - column, above the diagonal."""
    numbers = range(1, len(names) + 1)
    lines = ["   " + "".join(f"{number:>26}" for number in numbers[1:])]
    for number, row in zip(numbers[:-1], names, strict=False):
        cells = [_cell(paired[row, other].interval) for other in names[number:]]
        lines.append(f"{number:>3}" + " " * 26 * (number - 1) + "".join(f"{c:>26}" for c in cells))
    return lines


def _cell(between: Interval) -> str:
    sure = "*" if between.low > 0 or between.high < 0 else " "
    return f"{between.estimate:+.2f}{sure} ({between.low:+.2f} to {between.high:+.2f})"


def differing_lines(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return every line of the protocol that differs between the evaluations, with all values."""
    cards = [_flat(one.result.card) for one in evaluations]
    lines = dict.fromkeys(line for card in cards for line in card)
    return [
        f"{line} differs: " + " | ".join(_short(card.get(line, "not set")) for card in cards)
        for line in lines
        if len({json.dumps(card.get(line, "not set")) for card in cards}) > 1
    ]


def _flat(card: ProtocolCard) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for line, value in card.to_json().items():
        inner = value.items() if isinstance(value, dict) else ()
        flat |= {f"{line}: {key}": part for key, part in inner} if inner else {line: value}
    return flat


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return (text if len(text) < 64 else f"{text[:12]}...") or "nothing"


if __name__ == "__main__":
    sys.exit(run(main))
