"""Look at data sets as they lie on this disk, and say what is wrong and how to repair it.

`python -m openvocab.doctor [NAME ...]`; without a name, every set that is found is looked at.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openvocab.cli import CommandParser, run
from openvocab.datasets.catalog import CATALOG
from openvocab.datasets.diagnosis import Finding, diagnose, prepare_command
from openvocab.datasets.inspection import TreeInspection, inspect_set
from openvocab.datasets.labelled_set import LabelledSet, data_root_of
from openvocab.datasets.preparation import default_workers
from openvocab.datasets.resolver import DataRequest, find_layouts, load_layout, parse_name
from openvocab.drawing.overlay import draw_overlay, side_by_side
from openvocab.errors import InputError
from openvocab.files import atomic_path, write_text
from openvocab.image import ImageArray, read_image

_SHEET = 12  # images on a sample sheet
_COLUMNS = 3
_SHEET_HEIGHT = 300
_LARGEST = 5  # classes in the printed histogram
_MARKS = {"error": "WRONG", "warning": "CAREFUL", "note": "note"}


def main(argv: Sequence[str] | None = None) -> int:
    """Look at data sets; return 1 if something is wrong with one, else 0."""
    args = build_parser().parse_args(argv)
    root = data_root_of(args.data_root)
    if not root.is_dir():
        raise InputError(
            f"the data root {root} is no folder; set $DETECTRON2_DATASETS or --data-root"
        )
    names = args.names or [f"{n}:{s}" for n, spec in CATALOG.items() for s in spec.splits]
    reports = []
    for name in names:
        request = parse_name(name)
        if args.names or find_layouts(request, root):
            reports.append(examine(request, root, args))
    if not reports:
        print(f"None of {', '.join(CATALOG)} is below {root}.")
        print("'python -m openvocab.prepare NAME' says what to download for one of them.")
        return 1
    if args.output is not None:
        write_text(args.output / "doctor.json", json.dumps(reports, indent=1) + "\n")
    return int(any(report["wrong"] for report in reports))


def examine(request: DataRequest, root: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Look at one set, print what was found, and return it for the report."""
    name, split = request.spec.name, request.split
    layouts = find_layouts(request, root)
    try:
        if not layouts:
            raise InputError(f"expected it below {root} in a known layout, but none is there")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what was left out is among the findings
            data = load_layout(request, *layouts[0])
    except InputError as error:
        fix = prepare_command(name, split, root)
        _print_set(f"{name} ({split})", [], [Finding("error", str(error), fix)])
        return {"data_set": name, "split": split, "wrong": True, "error": str(error), "fix": fix}
    seen = inspect_set(data, workers=args.workers, progress=not args.quiet)
    findings = diagnose(seen, root)
    others = dict.fromkeys(layout.name for layout, _ in layouts[1:])
    lines = [*_facts(seen), *(f"also there: {name}@{other}" for other in others)]
    sheet = None
    if args.output is not None:
        sheet = args.output / f"{name}-{split}.png"
        save_sheet(seen, sheet)
        lines.append(f"sample sheet: {sheet}")
    _print_set(data.describe(), lines, findings)
    return {
        "data_set": name,
        "split": split,
        "layout": data.layout.name,
        "images": len(data.samples),
        "labels_folder": str(data.labels_folder),
        "label_tree_hash": seen.label_tree_hash(),
        "histogram": {str(value): count for value, count in seen.histogram().items()},
        "findings": [asdict(finding) for finding in findings],
        "wrong": any(finding.severity == "error" for finding in findings),
        "sheet": None if sheet is None else str(sheet),
    }


def save_sheet(seen: TreeInspection, path: Path) -> None:
    """Save images with their labels drawn over them, evenly spread over the set."""
    usable = [
        image.sample
        for image in seen.images
        if image.image_size is not None and image.image_size == image.label_size
    ]
    if not usable:
        return
    chosen = np.linspace(0, len(usable) - 1, min(_SHEET, len(usable))).astype(int)
    panels = [(usable[i].id, _overlay(seen.data, i, usable)) for i in chosen]
    rows = [
        side_by_side(
            [panel for _, panel in panels[i : i + _COLUMNS]],
            [title for title, _ in panels[i : i + _COLUMNS]],
            height=_SHEET_HEIGHT,
        )
        for i in range(0, len(panels), _COLUMNS)
    ]
    width = max(row.shape[1] for row in rows)
    padded = [
        np.pad(row, ((0, 12), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    with atomic_path(path) as temporary:
        Image.fromarray(np.concatenate(padded)).save(temporary)


def _overlay(data: LabelledSet, index: int, samples: Sequence[Any]) -> ImageArray:
    sample = samples[index]
    labels = data.read_label(sample)
    names = data.label_names
    shown = np.where((labels >= 0) & (labels < len(names)), labels, -1)
    image = read_image(sample.image)
    return draw_overlay(image, shown, names, legend=False, max_side=2 * _SHEET_HEIGHT)


def _facts(seen: TreeInspection) -> list[str]:
    data, histogram = seen.data, seen.histogram()
    names = data.label_names
    total = max(sum(histogram.values()), 1)
    classes = {v: n for v, n in histogram.items() if 0 <= v < len(names)}
    void = sum(histogram.get(v, 0) for v in data.ignore_index)
    largest = sorted(classes, key=lambda v: -classes[v])[:_LARGEST]
    shown = ", ".join(f"{names[v]} {100 * classes[v] / total:.1f} %" for v in largest)
    return [
        f"labels: {len(classes)} of {len(names)} classes occur; {shown}; void "
        f"{100 * void / total:.1f} %",
        f"content of the label maps (SHA-256): {seen.label_tree_hash() or 'some are damaged'}",
    ]


def _print_set(title: str, lines: Sequence[str], findings: Sequence[Finding]) -> None:
    print(title)
    for line in lines:
        print(f"  {line}")
    for finding in findings:
        print(f"  {_MARKS[finding.severity]}: {finding.text}")
        if finding.fix:
            print(f"    to repair: {finding.fix}")
    if not any(finding.severity != "note" for finding in findings):
        print("  all is well")
    print()


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = CommandParser("python -m openvocab.doctor", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="NAME, NAME:train, NAME@LAYOUT")
    parser.add_argument("--data-root", type=Path, metavar="DIR")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="for doctor.json and a sample sheet of each set"
    )
    parser.add_argument("--workers", type=int, default=default_workers(), metavar="N")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


if __name__ == "__main__":
    sys.exit(run(main))
