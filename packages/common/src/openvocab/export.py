"""Write results in the formats of other tools: `python -m openvocab.export RESULTS --format coco`.

RESULTS is the output folder of `predict` with the results as JSON. `predict --save coco`
writes a format directly. From Python, `export` does the same for any `Segmentation`s.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from openvocab.cli import CommandParser, run
from openvocab.errors import InputError
from openvocab.formats.regions import ImageResult, read_results
from openvocab.formats.writers import FORMATS, FlatNames, Item, write_format


def export(results: Iterable[ImageResult], name: str, output: Path) -> Path:
    """Write results in a format of another tool.

    Args:
        results: from `openvocab.formats.regions.result_of` or `read_results`.
        name: of the format, a key of `openvocab.formats.writers.FORMATS`.
        output: folder; the format decides the name of its file or folder in it.

    Returns:
        The file or folder that was written.

    Raises:
        InputError: the format is not known or cannot hold these results, or an image that it needs
            cannot be read.
    """
    if name not in FORMATS:
        raise InputError(f"there is no format {name!r}; give one of {', '.join(FORMATS)}")
    flat = FlatNames()
    return write_format((Item(one, flat.name(one.stem)) for one in results), name, output)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    listing = "\n".join(f"  {name:<14} {entry.help}" for name, entry in FORMATS.items())
    parser = CommandParser(
        prog="python -m openvocab.export",
        description=f"Write the results of predict in the formats of other tools.\n\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, help="the output folder of predict")
    parser.add_argument(
        "--format", nargs="+", required=True, choices=FORMATS, metavar="NAME", dest="formats"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder (default: the folder of the results)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Export the results of a run; see the module."""
    args = build_parser().parse_args(argv)
    for name in args.formats:
        print(export(read_results(args.results), name, args.output or args.results))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
