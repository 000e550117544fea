"""Writes docs/three-methods.md, its Chinese twin and their figures from measured structures.

`python benchmarks/reporting/three_methods.py output` takes results/structure-*.json of a finished
run into docs/three-methods.json; without a folder the pages are made anew from that file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.forms import Structure
from benchmarks.reporting.figures import diagrams
from benchmarks.reporting.structure_table import gflop_at_most, total_gflop
from openvocab.cli import CommandParser, run
from openvocab.errors import InputError
from openvocab.files import write_text
from openvocab.methods import available_methods
from openvocab.reading.json_files import read_json_file

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
DATA = "three-methods.json"
PAGES = ("three-methods.md", "three-methods.zh.md")


def read_structures(folder: Path) -> dict[str, Structure]:
    """Gather the structures of a finished run, of all methods that have one.

    Raises:
        InputError: one of the structures is missing.
    """
    paths = {
        key: folder / "results" / f"structure-{key}.json"
        for key, method in available_methods().items()
        if method.architecture is not None
    }
    if absent := [str(path) for path in paths.values() if not path.is_file()]:
        raise InputError(f"there is no {', '.join(absent)}; run benchmarks/run_all.py first")
    return {m: read_json_file(path, "structure") for m, path in paths.items()}


def pages(structures: Mapping[str, Structure]) -> dict[str, str]:
    """Render the pages, by file name."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["m"] = lambda count: f"{count / 1e6:,.1f}"
    values = {key: _numbers(structure) for key, structure in structures.items()}
    return {
        name: environment.get_template(f"{name}.jinja").render(**values, methods=values)
        for name in PAGES
    }


def _numbers(structure: Structure) -> dict[str, Any]:
    """Return what the pages quote of one method."""
    stages = {stage["key"]: f"{stage['gflop']:,.0f}" for stage in structure["stages"]}
    towers = structure["clip"]
    most = structure["pictures_at_most"]
    return {
        "title": structure["title"],
        "p": structure["parameters"],
        "gflop": stages,
        "total": f"{total_gflop(structure):,.0f}",
        "most": None if most is None else f"{gflop_at_most(structure):,.0f}",
        "at_most": most,
        "towers": towers,
        "pictures": " + ".join(str(tower["pictures"]) for tower in towers),
        "blocks": [tower["vision"]["layers"] for tower in towers],
        "side": towers[0]["input_sizes"][0][0],
        "added": structure["added_names"],
        "names": structure["names"],
        "image": structure["image"][0],
        "training": None
        if structure["training_mib"] is None
        else f"{structure['training_mib']:,.0f}",
        "gib": f"{structure['image_gib']:.1f}",
    }


def write(structures: Mapping[str, Structure], docs: Path) -> None:
    """Write data, figures and pages."""
    write_text(docs / DATA, json.dumps(structures, indent=1) + "\n")
    for method, svg in diagrams(structures).items():
        write_text(docs / "figures" / f"{method}.svg", svg)
    for name, text in pages(structures).items():
        write_text(docs / name, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages.

    Raises:
        InputError: see `read_structures`.
    """
    parser = CommandParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="output folder of run_all.py")
    args = parser.parse_args(argv)
    if args.folder is not None:
        structures = read_structures(args.folder)
    else:
        structures = read_json_file(DOCS / DATA, "structures")
    write(structures, DOCS)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
