"""Writes measured numbers into the documents: `python benchmarks/reporting/document.py output`.

Documents hold blocks from `<!-- measured: NAME -->` to `<!-- end -->`. What stands between is made
from the template NAME in benchmarks/reporting/templates/measured and the JSON files in
benchmarks/measured; tests compare. With the output folder of a finished run_all.py its numbers are
first taken over into benchmarks/measured/world.json and docs/three-methods.json, and scenes into a
picture.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from benchmarks.forms import Comparison
from benchmarks.layout import read_json, result_file
from benchmarks.quality.acceptance import threshold_rows
from benchmarks.quality.published import published
from benchmarks.reporting import three_methods
from benchmarks.reporting.figures import own_mib
from benchmarks.reporting.report import AS_IT_IS, bound, cell, verdict
from benchmarks.reporting.wording import distractor_curves
from openvocab.cli import CommandParser, run
from openvocab.drawing.overlay import side_by_side
from openvocab.errors import InputError
from openvocab.evaluation.results import Result
from openvocab.files import atomic_path, write_text
from openvocab.image import read_image
from openvocab.methods import available_methods, title_of
from openvocab.vocabulary import WORLD
from openvocab.world import COUNTS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MEASURED = HERE.parent / "measured"
PICTURE = ROOT / "docs" / "pictures" / "methods.png"
CURVES = ROOT / "docs" / "figures" / "wording.svg"
_SCENES, _SIDE = 4, 180  # in the picture
BLOCK = re.compile(r"(<!-- measured: ([\w-]+) -->\n*)(.*?)(\n*<!-- end -->)", re.DOTALL)


def documents() -> list[Path]:
    """Return the documents that may hold blocks."""
    found = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("packages/*/README.md")]
    return sorted(path for path in found if path.name not in three_methods.PAGES)


def collect_world(folder: Path) -> dict[str, Any]:
    """Gather what the documents quote of a finished run on the world.

    Raises:
        InputError: there is none, or not of all scenes.
    """
    path = result_file(folder, WORLD, "comparison")
    found: Comparison | None = read_json(path)
    if found is None:
        raise InputError(f"there is no {path}; run benchmarks/run_all.py first")
    results = {m: Result.load(path.parent / name) for m, name in found["results"].items()}
    images = min(result.card.n_images for result in results.values())
    if images < COUNTS["val"] or not available_methods().keys() <= results.keys():
        raise InputError(
            f"{path} is of {', '.join(results)} on {images} scenes; documents quote all methods on "
            f"{COUNTS['val']}, as run_all.py measures them without --models and --limit"
        )
    first = next(iter(results.values()))
    intervals = {m: result.intervals["detectron2"] for m, result in results.items()}
    return {
        "about": "made by benchmarks/reporting/document.py from a finished run of run_all.py",
        "code_version": first.card.code_version,
        "label_tree_hash": first.card.label_tree_hash,
        "weights_sha256": {m: result.card.weights_sha256 for m, result in results.items()},
        "images": images,
        "classes": len(first.names),
        "seen_classes": 0 if found["seen"] is None else found["seen"]["classes"],
        "titles": {m: title_of(m) for m in results},
        "scores": found["scores"],
        "intervals": {m: [interval.low, interval.high] for m, interval in intervals.items()},
        "control": found["control"],
        "diagnoses": found["diagnoses"],
        "crops": found["crops"],
        "seconds": {m: times["seconds"] for m, times in found["times"].items() if times},
        "mib": {m: own_mib(times) for m, times in found["times"].items() if times},
        "thresholds": threshold_rows(found, images),
    }


def write_gallery_picture(folder: Path, path: Path) -> None:
    """Draw scenes that all methods get right, that one gets wrong, and so on, as PNG."""
    gallery, rows = read_json(result_file(folder, WORLD, "comparison"))["gallery"], []
    kinds = [entry["agreement"] for entry in gallery]
    # The first scene of each kind, then the second of each.
    chosen = sorted(range(len(kinds)), key=lambda i: kinds[:i].count(kinds[i]))[:_SCENES]
    for entry in (gallery[i] for i in sorted(chosen)):
        panels = [read_image(base64.b64decode(panel["jpeg"])) for panel in entry["panels"]]
        titles = [_panel_title(panel["key"]) for panel in entry["panels"]]
        rows.append(side_by_side(panels, titles, height=_SIDE))
    with atomic_path(path) as file:
        Image.fromarray(np.concatenate(rows)).save(file, "PNG")


def _panel_title(key: str) -> str:
    return "ground truth" if key == "truth" else title_of(key)


def measurements() -> dict[str, Any]:
    """Return everything that was measured, by the name of the file, and what was published."""
    found = {path.stem: read_json(path) for path in sorted(MEASURED.glob("*.json"))}
    rows = [row for key in available_methods() for row in published(key)]
    return {WORLD: None, **found, "published": rows}


def wording_curves(values: Mapping[str, Any]) -> str:
    """Draw the curves of the wording from what was measured, as SVG."""
    methods = values["wording"]["methods"]
    return distractor_curves({key: found["wording"] for key, found in methods.items()})


def rendered(text: str, values: Mapping[str, Any]) -> str:
    """Return a document with all its blocks made anew.

    Raises:
        InputError: there is no template of a block's name.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates" / "measured"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "bound": bound, "verdict": verdict}

    def fill(match: re.Match[str]) -> str:
        start, name, _, end = match.groups()
        try:
            template = environment.get_template(f"{name}.md.jinja")
        except jinja2.TemplateNotFound:
            raise InputError(
                f"there is no template {name!r} in benchmarks/reporting/templates/measured; "
                "write one, or mend the name of the block"
            ) from None
        return start + template.render(**values, as_it_is=AS_IT_IS).strip() + end

    return BLOCK.sub(fill, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Take over the numbers of a run, if one is named, and write all documents.

    Raises:
        InputError: see `collect_world` and `rendered`.
    """
    parser = CommandParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="output folder of run_all.py")
    args = parser.parse_args(argv)
    if args.folder is not None:
        world, structures = collect_world(args.folder), three_methods.read_structures(args.folder)
        write_text(MEASURED / f"{WORLD}.json", json.dumps(world, indent=1) + "\n")
        three_methods.write(structures, three_methods.DOCS)
        write_gallery_picture(args.folder, PICTURE)
    values = measurements()
    write_text(CURVES, wording_curves(values))
    for path in documents():
        text = path.read_text("utf-8")
        if (new := rendered(text, values)) != text:
            write_text(path, new)
            print(f"written: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
