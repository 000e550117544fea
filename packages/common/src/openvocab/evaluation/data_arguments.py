"""The options that name the data of a command: a known data set, or the user's own folders."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from openvocab.datasets import resolve
from openvocab.datasets.samples import FolderDataset, SampleSet
from openvocab.errors import InputError


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `sample_set` reads."""
    data = parser.add_argument_group("data (--dataset, or --images with --labels and --names)")
    data.add_argument("--dataset", metavar="NAME", help="a known data set, such as ade20k-150")
    data.add_argument(
        "--data-root",
        type=Path,
        metavar="DIR",
        help="where the data sets lie (default: $DETECTRON2_DATASETS, else ./datasets)",
    )
    data.add_argument("--images", type=Path, metavar="DIR", help="folder of images")
    data.add_argument("--labels", type=Path, metavar="DIR", help="folder of label maps")
    data.add_argument("--names", type=Path, metavar="FILE", help="one class name per line")
    data.add_argument(
        "--label-offset",
        type=int,
        default=0,
        metavar="N",
        help="added to the values of these label maps: -1 where they count from 1 (then 0 is void)",
    )


def sample_set(args: argparse.Namespace) -> SampleSet:
    """Return the data that the arguments name, and say on stderr where a known set was found.

    Raises:
        InputError: they name none, or it is not there.
    """
    folders = {"--images": args.images, "--labels": args.labels, "--names": args.names}
    given = [flag for flag, value in folders.items() if value is not None]
    if args.dataset is not None:
        if given:
            raise InputError(f"give --dataset or {given[0]}, not both")
        if args.label_offset:
            raise InputError(
                f"--label-offset is {args.label_offset}, but the label values of {args.dataset} "
                "are known; leave it out"
            )
        found = resolve(args.dataset, args.data_root)
        print(found.describe(), file=sys.stderr)
        return found
    if len(given) < len(folders):
        missing = [flag for flag in folders if flag not in given]
        raise InputError(
            f"missing {' and '.join(missing)}; give --dataset NAME, or --images, --labels and "
            f"--names"
        )
    given_void = getattr(args, "ignore_index", None)  # commands that score have the option
    void = None if given_void is None else tuple(given_void)
    return FolderDataset(args.images, args.labels, args.names, void, args.label_offset)
