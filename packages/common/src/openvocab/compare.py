"""Comparing two methods on the same images: `python -m openvocab.compare FIRST SECOND`.

FIRST and SECOND are output folders of evaluate commands. What differs between their protocols is
printed before the numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openvocab.cli import run
from openvocab.errors import InputError
from openvocab.evaluation.log import read_records
from openvocab.evaluation.protocol import diff_cards
from openvocab.evaluation.results import Result
from openvocab.evaluation.run import RESULT_FILE
from openvocab.metrics.bootstrap import PairedDifference, paired_difference
from openvocab.metrics.scores import CONVENTIONS, Convention, PairCounts


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


def compare(first: Path, second: Path) -> Comparison:
    """Compare the results in two output folders image by image.

    Raises:
        InputError: a folder holds no complete result, or the two are not of the same images, label
            maps and class names.
    """
    left, right = Result.load(first / RESULT_FILE), Result.load(second / RESULT_FILE)
    if (left.names, left.card.label_tree_hash) != (right.names, right.card.label_tree_hash):
        raise InputError(
            f"{first} and {second} were not evaluated on the same label maps and class names: "
            f"{'; '.join(diff_cards(left.card, right.card))}."
        )
    left_pairs, right_pairs = _pairs(first, left), _pairs(second, right)
    ids = sorted(left_pairs)
    if ids != sorted(right_pairs):
        raise InputError(
            f"{first} and {second} were not evaluated on the same images; use the same --limit."
        )
    paired = {
        convention: paired_difference(
            [left_pairs[i] for i in ids],
            [right_pairs[i] for i in ids],
            len(left.names),
            convention,
        )
        for convention in CONVENTIONS
    }
    return Comparison(left, right, tuple(diff_cards(left.card, right.card)), paired)


def main(argv: Sequence[str] | None = None) -> int:
    """Print what differs between two protocols, and the paired difference of their mIoU.

    Raises:
        InputError: see `compare`.
    """
    parser = argparse.ArgumentParser(prog="openvocab.compare", description=__doc__)
    parser.add_argument("first", type=Path, help="output folder of an evaluate command")
    parser.add_argument("second", type=Path, help="another, on the same data")
    args = parser.parse_args(argv)
    found = compare(args.first, args.second)
    print("\n".join(found.differences) or "the protocols are the same")
    print(f"{'convention':<18}{'first':>8}{'second':>8}{'difference':>12}{'95 % interval':>20}")
    for convention, paired in found.paired.items():
        scores = [result.scores(convention).miou for result in (found.first, found.second)]
        interval = f"{paired.interval.low:+.2f} to {paired.interval.high:+.2f}"
        print(
            f"{convention:<18}{scores[0]:>8.2f}{scores[1]:>8.2f}"
            f"{paired.interval.estimate:>+12.2f}{interval:>20}"
        )
    return 0


def _pairs(folder: Path, result: Result) -> dict[str, PairCounts]:
    pairs = {record.id: record.pairs for record in read_records(folder, result.card)}
    if len(pairs) < result.card.n_images:
        raise InputError(
            f"The logs in {folder} hold {len(pairs)} of {result.card.n_images} images; evaluate "
            f"again to compare image by image."
        )
    return pairs


if __name__ == "__main__":
    sys.exit(run(main))
