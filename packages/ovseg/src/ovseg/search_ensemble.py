"""`python -m ovseg.search_ensemble`: find the mask threshold and CLIP's weight on labelled images.

One pass over the images stores what both branches say; every setting of the grid is then scored
from that, without the networks; see `ovseg.grid_search`.

Source: SPEC ovseg 11.4, search_thr_ensemble_w.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from openvocab.cli import CommandParser, run
from openvocab.computation import add_computation_arguments
from openvocab.errors import InputError
from openvocab.evaluation.data_arguments import add_data_arguments
from ovseg.options import add_model_arguments, add_opts, read_opts

THRESHOLDS = (0.35, 0.4, 0.45)
WEIGHTS = (0.6, 0.65, 0.7, 0.75, 0.8)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser(
        prog="python -m ovseg.search_ensemble",
        description="Find the two numbers that OVSeg needs for a new kind of image: above which "
        "probability a pixel belongs to a region, and how much CLIP's opinion counts against "
        "MaskFormer's. Use labelled images that you do not test on.",
    )
    add_model_arguments(parser)
    add_data_arguments(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    search = parser.add_argument_group("search")
    search.add_argument("--thresholds", type=float, nargs="+", default=list(THRESHOLDS))
    search.add_argument("--ensemble-weights", type=float, nargs="+", default=list(WEIGHTS))
    search.add_argument("--stride", type=int, default=4, help="score every N-th pixel (default: 4)")
    search.add_argument("--output", type=Path, default=Path("output/search"), metavar="DIR")
    add_computation_arguments(parser)
    add_opts(parser, "--opts")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    args = build_parser().parse_args(argv)
    options = read_opts(args.opts)
    if args.stride < 1 or (args.limit is not None and args.limit < 1):
        raise InputError("--stride and --limit must be at least 1")
    if not all(0 <= t <= 1 for t in args.thresholds) or max(args.ensemble_weights) > 1:
        raise InputError("thresholds must be between 0 and 1, and weights at most 1")
    from ovseg.grid_search import search  # late: it imports torch

    search(args, options)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
