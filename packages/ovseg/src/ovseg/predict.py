r"""`python -m ovseg.predict`: segment photos by any names.

    python -m ovseg.predict --weights ovseg.pth --class-names Oculus Ukulele --input photo.jpg

The original's name and command line work too:

    python -m ovseg.demo --config-file configs/ovseg_swinB_vitL_demo.yaml --class-names Oculus \
        --input photo.jpg --output results --opts MODEL.WEIGHTS ovseg.pth
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from openvocab.cli import CommandParser, run
from openvocab.predict import add_predict_arguments, run_prediction
from ovseg.method import METHOD
from ovseg.options import (
    DEMO_SETTINGS,
    add_model_arguments,
    add_opts,
    load_from_arguments,
    read_opts,
    weights_named,
)

if TYPE_CHECKING:
    from ovseg.segmenter import OVSegSegmenter


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser(
        prog="python -m ovseg.predict",
        description="Find things in images by their names. OVSeg proposes about a hundred regions, "
        "cuts each out of the image and asks CLIP, which was adapted to masked images, what it "
        "shows. For each name the best region is coloured; what no chosen region covers stays "
        "blank. A single name gets 'others' beside it, so that it need not win everywhere.",
        epilog="The original's name for this command works too: python -m ovseg.demo.",
    )
    add_model_arguments(parser)
    add_predict_arguments(parser)
    add_opts(parser, "--opts")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    args = build_parser().parse_args(argv)
    options = read_opts(args.opts)
    weights_named(args, options)  # before images are looked for

    def load(args: argparse.Namespace) -> OVSegSegmenter:
        defaults = DEMO_SETTINGS if args.config_file is None else {}
        return load_from_arguments(args, options, defaults=defaults)

    return run_prediction(args, load, METHOD.explain)


if __name__ == "__main__":
    sys.exit(run(main))
