"""Make label trees from the official downloads: `python -m openvocab.prepare NAME --source DIR`.

Nothing is downloaded; without `--source` the command says what to get, where, and what to accept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from openvocab.cli import CommandParser, run
from openvocab.datasets import (
    ade20k,
    ade20k_full,
    cityscapes,
    coco_object,
    coco_stuff,
    pascal_context,
    pascal_context_full,
    referring_prepare,
    voc,
)
from openvocab.datasets.archives import Source
from openvocab.datasets.catalog import CATALOG
from openvocab.datasets.labelled_set import data_root_of
from openvocab.datasets.pascal_context_compare import describe_disagreement
from openvocab.datasets.pascal_context_masks import ROUTES
from openvocab.datasets.preparation import Tree, default_workers, make_tree
from openvocab.datasets.referring import REFERRING
from openvocab.datasets.resolver import parse_name
from openvocab.datasets.spec import read_data
from openvocab.errors import InputError

Trees = Callable[[Source, Path, tuple[str, ...], str], Iterator[Tree]]

MAKERS: dict[str, Trees] = {
    "ade20k-150": ade20k.trees,
    "ade20k-847": ade20k_full.trees,
    "pascal-context-59": pascal_context.trees,
    "pascal-context-60": pascal_context.trees_60,
    "pascal-context-459": pascal_context_full.trees,
    "voc-20": voc.trees,
    "voc-20b": voc.trees_20b,
    "voc-21": voc.trees_21,
    "coco-stuff-171": coco_stuff.trees,
    "coco-object-80": coco_object.trees,
    "coco-object-81": coco_object.trees,
    "cityscapes-19": cityscapes.trees,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare a data set, compare routes, or say what to download."""
    args = build_parser().parse_args(argv)
    if args.name is None:
        print("\n".join([*CATALOG, *REFERRING]))
        return 0
    if args.name in REFERRING:
        keys = REFERRING[args.name].sources
    else:
        request = parse_name(args.name)
        if args.name not in CATALOG:  # an alias or NAME:SPLIT stands for one split
            args.split = args.split or [request.split]
        args.name, keys = request.spec.name, request.spec.sources
    if args.source is None:
        print(instructions(args.name, keys))
        return 0
    output = data_root_of(args.output)
    archives = tuple(name for key in keys for name in read_data("sources.json")[key]["archives"])
    source = Source(args.source, output, archives)
    if args.name in REFERRING:
        print(referring_prepare.prepare_referring(args.name, source, output, args.images))
        return 0
    splits = tuple(args.split or CATALOG[args.name].splits)
    if args.compare:
        _check_routes(args.name, args.compare)
        for split in splits:
            print(describe_disagreement(source, split, args.compare))
        return 0
    if args.route:
        _check_routes(args.name, [args.route])
    _make(args, source, output, splits)
    return 0


def instructions(name: str, keys: Sequence[str]) -> str:
    """Return what to get for a data set, where, and what to accept there."""
    lines = [f"{name} is made of these downloads (which this command does not fetch):", ""]
    for key in keys:
        entry = read_data("sources.json")[key]
        sizes = "; ".join(f"{archive}: {size}" for archive, size in entry["archives"].items())
        lines += [
            f"- {entry['title']}",
            f"    where:  {entry['address']}",
            f"    size:   {sizes}",
            f"    accept: {entry['accept']}",
        ]
    return "\n".join(
        [
            *lines,
            "",
            "Put the archives, or the folders unpacked from them, into one folder and run",
            f"  python -m openvocab.prepare {name} --source THAT_FOLDER --output DATA_ROOT",
        ]
    )


def _make(args: argparse.Namespace, source: Source, output: Path, splits: tuple[str, ...]) -> None:
    for tree in MAKERS[args.name](source, output, splits, args.route or ""):
        if not tree.tasks:
            raise InputError(
                f"{source.folder} holds no label maps of {args.name} ({tree.split}); run "
                f"'python -m openvocab.prepare {args.name}' to see what to get"
            )
        counts = make_tree(tree, workers=args.workers, placing=args.images, progress=not args.quiet)
        print(
            f"{args.name} {tree.split}: {counts['made']} label maps made, {counts['there']} were "
            f"there, {counts['void']} all void and left out, in {tree.folder}"
        )


def _check_routes(name: str, routes: Sequence[str]) -> None:
    known = list(ROUTES) if name.startswith("pascal-context") else []
    for route in routes:
        if route not in known:
            few = ", ".join(known) or "none: there is only one way to make it"
            raise InputError(f"{name} has no route {route!r}; known are {few}")


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = CommandParser("python -m openvocab.prepare", description=__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="a data set; none lists them all")
    parser.add_argument("--source", type=Path, metavar="DIR", help="what was downloaded")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="data root (default: $DETECTRON2_DATASETS)"
    )
    parser.add_argument("--split", nargs="+", choices=("train", "val"), help="default: all")
    parser.add_argument(
        "--route",
        help=f"for Pascal Context: {', '.join(ROUTES)} (default: mat, and detail for 60 classes)",
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        metavar="ROUTE",
        help="make nothing; print how much these routes to Pascal Context-59 disagree",
    )
    parser.add_argument(
        "--images",
        choices=("link", "copy"),
        default="link",
        help="how images come into the output: as hard links where possible, or as copies",
    )
    parser.add_argument("--workers", type=int, default=default_workers(), metavar="N")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


if __name__ == "__main__":
    sys.exit(run(main))
