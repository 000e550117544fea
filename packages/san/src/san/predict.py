"""`python -m san.predict`: photos and a list of names in, label maps out.

    python -m san.predict photo.jpg --class-names cat sofa "potted plant" --output results

The options of the original's `predict.py` are understood too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from openvocab.cli import CommandParser, run
from openvocab.predict import add_predict_arguments, run_prediction
from openvocab.vocabulary import parse_names
from san.loading import add_model_arguments, load_from_arguments
from san.method import METHOD


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = CommandParser(
        prog="python -m san.predict",
        description="Find what names describe in images, with a Side Adapter Network. Writes for "
        "each image a label map, an overlay with a legend, and the masks as JSON.",
    )
    add_predict_arguments(parser)
    add_model_arguments(parser)
    original = parser.add_argument_group("options of the original's predict.py")
    original.add_argument("--img-path", metavar="FILE", help="the same as --input FILE")
    original.add_argument("--vocab", metavar="'A,B'", help="the same as --class-names 'A,B'")
    original.add_argument(
        "--aug-vocab",
        action="store_true",
        help="the same as --augment-vocabulary coco-all (the original always did that)",
    )
    original.add_argument(
        "--output-file", type=Path, metavar="FILE", help="the same as --output FILE: an overlay"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Predict; 0, 1 if some images could not be used.

    Raises:
        InputError: the arguments, the weights or all images cannot be used.
    """
    args = build_parser().parse_args(argv)
    if args.img_path:
        args.input = [*args.input, args.img_path]
    if args.vocab is not None:
        args.class_names = [*(args.class_names or []), *parse_names([args.vocab])]
    if args.aug_vocab:
        args.augment_vocabulary = args.augment_vocabulary or "coco-all"
    if args.output_file:
        args.output = args.output_file
    return run_prediction(args, load_from_arguments, METHOD.explain)


if __name__ == "__main__":
    sys.exit(run(main))
