"""Put weights on the Hugging Face Hub, or into a folder that goes there.

    python -m openvocab.publish --method san --weights output/model_final.pth --to ORG/NAME
    python -m openvocab.publish --method san --weights output/model_final.pth --output FOLDER

Everybody then loads them with `--weights hf:ORG/NAME`, or with the folder's path.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from openvocab.cli import CommandParser, run
from openvocab.computation import add_computation_arguments
from openvocab.errors import InputError
from openvocab.evaluation.results import Result
from openvocab.methods import add_method_arguments, load_from_arguments


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = CommandParser(
        prog="python -m openvocab.publish",
        description="Put weights on the Hugging Face Hub, or into a folder: as safetensors, with "
        "their settings, the names whose masks were seen in training, the calibration beside the "
        "weights, and a model card made of the protocol. Log in with `hf auth login` before, or "
        "set HF_TOKEN.",
    )
    add_method_arguments(parser)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--to", metavar="ORG/NAME", help="upload to this repository, which is made if it is new"
    )
    target.add_argument("--output", type=Path, metavar="DIR", help="write this folder instead")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument(
        "--branch", metavar="NAME", help="upload to this branch of the repository (default: main)"
    )
    parser.add_argument(
        "--results",
        nargs="+",
        default=[],
        metavar="FILE",
        help="results of evaluations with these weights, for the model card",
    )
    add_computation_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Publish; see the module.

    Raises:
        InputError: the weights, a result or the target cannot be used.
    """
    args = build_parser().parse_args(argv)
    if args.to is None and (args.private or args.branch):
        raise InputError("--private and --branch belong to an upload; give --to ORG/NAME")
    results = [Result.load(file) for file in args.results]
    segmenter = load_from_arguments(args)

    from openvocab.weights.pretrained import Pretrained  # late: it imports torch

    if not isinstance(segmenter, Pretrained):
        raise InputError(
            f"the method {args.method!r} cannot be published: it has no save_pretrained; publish "
            "its weights with the tools they come from"
        )
    card = {"results": results}
    if args.output is not None:
        segmenter.save_pretrained(args.output, model_card_kwargs=card)
        print(args.output)
        return 0
    private = True if args.private else None
    print(
        segmenter.push_to_hub(args.to, private=private, branch=args.branch, model_card_kwargs=card)
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
