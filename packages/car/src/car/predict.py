"""`python -m car.predict`: segment photos by any names, without any training.

    python -m car.predict --weights world --class-names dog grass sky --input photo.jpg

The original's name and command line work too; its YAML says image and names:

    python -m car.demo --cfg-path configs/demo/pokemon.yaml --output_path results
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from car.method import METHOD
from car.options import CaRSettings, add_model_arguments, load_segmenter, read_settings
from openvocab.cli import CommandParser, run
from openvocab.computation import choose_device
from openvocab.errors import InputError
from openvocab.predict import add_predict_arguments, run_prediction

if TYPE_CHECKING:
    from car.segmenter import CaRSegmenter


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser(
        prog="python -m car.predict",
        description="Find things in images by their names with two CLIPs that were never trained "
        "to segment. Names that the image does not show are dropped step by step; what no name "
        "wins stays blank. With --mode refer each name is a description that is looked for by "
        "itself.",
        epilog="The original's name for this command works too: python -m car.demo.",
    )
    add_predict_arguments(parser, templates="car")
    add_model_arguments(parser)
    more = parser.add_argument_group("CaR")
    more.add_argument(
        "--sam", metavar="FILE", help="replace masks by those of this SAM checkpoint that fit"
    )
    more.add_argument("--output_path", type=Path, metavar="DIR", help="the same as --output")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    args = build_parser().parse_args(argv)
    settings = read_settings(args)
    _take_over(args, settings)
    if settings.original is not None and settings.original.test.get("use_pseudo") is False:
        if args.sam is None:
            print("the file asks for SAM's masks; give --sam FILE to have them", file=sys.stderr)

    def load(args: argparse.Namespace) -> CaRSegmenter:
        sam = None
        if args.sam is not None:
            from car.sam import load_sam  # imports torch, which --help can do without

            sam = load_sam(args.sam, choose_device(args.device))
        segmenter = load_segmenter(args, settings.car)
        segmenter.mask_generator = sam
        return segmenter

    return run_prediction(args, load, METHOD.explain)


def _take_over(args: argparse.Namespace, settings: CaRSettings) -> None:
    """Put image and names of a file into the arguments, where these have none."""
    if args.output_path is not None:
        args.output = args.output_path
    original, named = settings.original, settings.named
    if args.class_names is None and args.vocabulary is None:
        if original is not None and original.image_caption:
            args.class_names = list(original.image_caption)
        elif named is not None and named.image_caption and original is None:
            args.class_names = list(named.image_caption)
        elif named is not None and named.vocabulary is not None and original is None:
            args.vocabulary = named.vocabulary
    if not args.images and not args.input and original is not None:
        if original.image_path is None:
            raise InputError(f"{args.cfg_path} has no image_path; name an image with --input")
        args.input = [str(original.image_path)]


if __name__ == "__main__":
    sys.exit(run(main))
