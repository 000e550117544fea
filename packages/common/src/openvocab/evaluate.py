"""The evaluation command for any installed method: mIoU with the protocol that made it.

python -m openvocab.evaluate --method san --weights world --dataset world
python -m openvocab.evaluate --method san --images photos --labels maps --names names.txt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from openvocab.cli import CommandParser, run
from openvocab.computation import add_computation_arguments
from openvocab.evaluation.run import add_evaluate_arguments, run_evaluation, sample_set
from openvocab.methods import add_method_arguments, find_method, load_from_arguments
from openvocab.segmenter import Segmenter


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = CommandParser(
        prog="python -m openvocab.evaluate",
        description="Evaluate any installed method. Writes the confusion matrix, its scores by "
        "three conventions, and the protocol; goes on where an interrupted run stopped. Settings "
        "that were published for the data set are used.",
    )
    add_method_arguments(parser)
    add_evaluate_arguments(parser)
    add_computation_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and print the scores.

    Raises:
        InputError: there is no such method, or the arguments, the weights or the data cannot be
            used.
    """
    args = build_parser().parse_args(argv)
    method = find_method(args.method)
    data = sample_set(args)

    def load(args: argparse.Namespace) -> Segmenter:
        segmenter = load_from_arguments(args)
        return segmenter if method.for_data is None else method.for_data(segmenter, data)

    return run_evaluation(args, load, data)


if __name__ == "__main__":
    sys.exit(run(main))
