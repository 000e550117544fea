"""How much a score depends on the wording of the names: `python -m openvocab.wording`.

Evaluates a method once for each wording: with other names that compete, with the names written in
other ways, and with other prompt templates; and counts how often it finds names that are not there.

python -m openvocab.wording --method san --weights world --dataset world --limit 32
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from openvocab.cli import CommandParser, run
from openvocab.computation import add_computation_arguments
from openvocab.evaluation.data_arguments import add_data_arguments, sample_set
from openvocab.evaluation.wording import PARTS, WORDING_FILE, table, vary_wording
from openvocab.methods import add_method_arguments, find_method, load_from_arguments
from openvocab.reading.names import read_names


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = CommandParser(
        prog="python -m openvocab.wording",
        description="Measure how much a method's mIoU depends on the wording of the names. Goes on "
        "where an interrupted run stopped.",
    )
    add_method_arguments(parser)
    add_data_arguments(parser)
    study = parser.add_argument_group("wording")
    study.add_argument(
        "--parts", nargs="+", default=list(PARTS), metavar="PART",
        help=f"some of {', '.join(PARTS)}; default: all",
    )  # fmt: skip
    study.add_argument(
        "--counts", nargs="+", type=int, metavar="N",
        help="how many other names compete; default: 0 10 100 1000 5000, as far as there are so "
        "many",
    )  # fmt: skip
    study.add_argument(
        "--distractors", type=Path, metavar="FILE",
        help="take the other names from this file, one on each line; default: the vocabularies "
        "that the package has. Names that may mean one of the classes are left out",
    )  # fmt: skip
    study.add_argument(
        "--templates", nargs="+", metavar="SET",
        help="template sets, or single templates such as vild:3; default: all sets, and each "
        "template of the data set's own set",
    )  # fmt: skip
    study.add_argument("--output", type=Path, default=Path("output/wording"), metavar="DIR")
    study.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    study.add_argument(
        "--seed", type=int, default=0, help="random seed with which the other names are chosen"
    )
    study.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True,
        help="go on where an earlier run with the same protocol stopped",
    )  # fmt: skip
    add_computation_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Vary the wording and print the scores.

    Raises:
        InputError: the arguments, the weights or the data cannot be used.
    """
    args = build_parser().parse_args(argv)
    method = find_method(args.method)
    data = sample_set(args)
    pool = None if args.distractors is None else read_names(args.distractors).names
    segmenter = load_from_arguments(args)
    found = vary_wording(
        segmenter if method.for_data is None else method.for_data(segmenter, data),
        data,
        args.output,
        parts=args.parts,
        counts=args.counts,
        pool=pool,
        templates=args.templates,
        limit=args.limit,
        seed=args.seed,
        resume=args.resume,
    )
    print(table(found))
    print(f"written to {args.output / WORDING_FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
