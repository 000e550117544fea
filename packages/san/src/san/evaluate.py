"""`python -m san.evaluate`: score SAN on labelled images, and say how the scores were made.

python -m san.evaluate --dataset ade20k-150 --data-root datasets --output results
python -m san.evaluate --images photos --labels maps --names names.txt
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from openvocab.cli import CommandParser, run
from openvocab.computation import add_computation_arguments
from openvocab.evaluation.augmentation import add_augmentation_arguments, augment
from openvocab.evaluation.results import Result
from openvocab.evaluation.run import (
    RESULT_FILE,
    add_evaluate_arguments,
    run_evaluation,
    sample_set,
)
from openvocab.evaluation.seen import (
    SEEN_FILE,
    add_seen_argument,
    report_seen,
    seen_classes_of,
)
from openvocab.segmenter import Segmenter
from san.loading import add_model_arguments, checkpoint_of, load_from_arguments

# SPEC san 7 (TTA).
TTA_SIZES = (320, 480, 640, 800, 960, 1120)
TTA_MAX_SIZE = 4480


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = CommandParser(
        prog="python -m san.evaluate",
        description="Evaluate a Side Adapter Network. Writes the confusion matrix, its scores by "
        "three conventions, and the protocol; goes on where an interrupted run stopped.",
    )
    add_evaluate_arguments(parser)
    add_seen_argument(parser)
    add_model_arguments(parser)
    add_augmentation_arguments(parser, sizes=TTA_SIZES, max_size=TTA_MAX_SIZE)
    add_computation_arguments(parser)
    return parser


def make_segmenter(args: argparse.Namespace) -> Segmenter:
    """Load the model, wrapped for test-time augmentation if that was asked for."""
    segmenter = load_from_arguments(args)
    inference = segmenter.inference
    return augment(segmenter, args, short=inference.short_side, max_short=inference.max_side)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and print the scores.

    Raises:
        InputError: the arguments, the weights or the data cannot be used.
    """
    args = build_parser().parse_args(argv)
    data = sample_set(args)
    seen = seen_classes_of(args.seen, checkpoint_of(args), "san", data.vocabulary)
    code = run_evaluation(args, make_segmenter, data)
    result = args.output / RESULT_FILE
    if seen is not None and result.is_file():
        report_seen(Result.load(result), seen, args.output / SEEN_FILE)
    return code


if __name__ == "__main__":
    sys.exit(run(main))
