"""Collect masked crops with nouns: `python -m ovseg.collect_pairs --images DIR --nouns FILE ...`.

Each noun of an image's caption gets the proposals that CLIP finds most like it; or, from a labelled
data set, every class that an image shows gets its true mask.

Source: OVSeg paper section 3.2 ("collecting diverse mask-category pairs from captions"); the
original release has no code for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from openvocab.cli import CommandParser, run
from openvocab.computation import add_device_argument
from openvocab.errors import InputError


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    result = CommandParser(prog="python -m ovseg.collect_pairs", description=__doc__)
    words = result.add_argument_group("from captions or nouns")
    words.add_argument("--images", type=Path, metavar="DIR", help="folder of images")
    words.add_argument("--captions", type=Path, metavar="FILE", help="COCO's JSON, or a TSV")
    words.add_argument("--captions-per-image", type=int, default=1, metavar="N")
    words.add_argument("--nouns", type=Path, metavar="FILE", help="nouns by image: JSON, or a TSV")
    words.add_argument("--weights", type=Path, metavar="FILE", help="a stage-1 OVSeg checkpoint")
    words.add_argument("--config-file", metavar="FILE", help="its configuration")
    words.add_argument(
        "--clip", metavar="NAME", help="what names the proposals (default: the checkpoint's CLIP)"
    )
    words.add_argument("--per-noun", type=int, default=1, metavar="N", help="proposals per noun")
    words.add_argument("--min-area", type=float, default=0.001, metavar="SHARE")
    labels = result.add_argument_group("from labels")
    labels.add_argument("--dataset", metavar="NAME", help="a known data set")
    labels.add_argument("--data-root", type=Path, metavar="DIR")
    labels.add_argument("--labels", type=Path, metavar="DIR", help="label maps of --images")
    labels.add_argument("--names", type=Path, metavar="FILE", help="names of the labels")
    labels.add_argument(
        "--label-offset", type=int, default=0, metavar="N", help="-1 where labels count from 1"
    )
    labels.add_argument("--min-size", type=int, default=640, help="short side of the images")
    labels.add_argument("--max-size", type=int, default=2560, help="their longest long side")
    result.add_argument(
        "--expand-ratio", type=float, default=1.0, metavar="FACTOR",
        help="how much longer the sides of a crop are than those of its mask's box; as "
        "--region.expand-ratio of the model that will use the CLIP (default: 1)",
    )  # fmt: skip
    result.add_argument("--output", type=Path, default=Path("pairs"), metavar="DIR")
    result.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    add_device_argument(result)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Collect pairs; a second call goes on where the first was stopped."""
    args = build_parser().parse_args(argv)
    if not args.expand_ratio >= 1:
        raise InputError(f"--expand-ratio is {args.expand_ratio}; give a number of at least 1")
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit is {args.limit}; give at least 1")
    from ovseg import crops  # late: it imports torch

    if args.dataset is not None or args.labels is not None:
        crops.collect_from_labels(args)
    else:
        crops.collect_from_words(args)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
