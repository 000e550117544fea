"""Makes report.html and report.md from the JSON files of an output folder, and nothing else."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import charts
import diagram
import jinja2
import numpy as np
from jinja2 import Environment, FileSystemLoader

from openvocab.cli import run
from openvocab.errors import InputError
from openvocab.files import write_text
from openvocab.metrics import CONVENTIONS
from openvocab.results import Result

HERE = Path(__file__).parent
METHODS = ("san", "ovseg", "car")
_MOST_BARS = 12  # classes shown on each side of a difference


def build_report(folder: Path) -> Path:
    """Write figures, report.html and report.md into an output folder.

    Raises:
        InputError: it holds no results.
    """
    page = read_page(folder)
    for name, svg in page["figures"].items():
        if svg:
            write_text(folder / "figures" / f"{name}.svg", svg)
    for suffix in ("html", "md"):
        write_text(folder / f"report.{suffix}", _render(f"report.{suffix}.jinja", page))
    return folder / "report.html"


def read_page(folder: Path) -> dict[str, Any]:
    """Gather everything that the templates show."""
    results = folder / "results"
    structures = {m: _json(results / f"structure-{m}.json") for m in METHODS}
    structures = {m: value for m, value in structures.items() if value}
    comparisons = [_json(path) for path in sorted(results.glob("*--comparison.json"))]
    if not structures and not comparisons:
        raise InputError(f"{results} holds no results; run benchmarks/run_all.py first")
    sets = [_data_set(results, value) for value in comparisons]
    return {
        "structures": structures,
        "titles": charts.TITLES,
        "colours": charts.COLOURS,
        "side_by_side": side_by_side(structures),
        "figures": _figures(structures, sets),
        "sets": sets,
        "missing": (_json(results / "missing.json") or {"missing": []})["missing"],
    }


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def _render(template: str, page: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape="html" in template,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "millions": millions, "seconds": seconds}
    return environment.get_template(template).render(**page)


def cell(value: float | None) -> str:
    """Show points of mIoU."""
    return "–" if value is None or np.isnan(value) else f"{value:.2f}"


def millions(value: int) -> str:
    """Show a number of parameters."""
    return f"{value / 1e6:,.1f} M" if value >= 1e5 else f"{value:,}"


def seconds(value: float | None) -> str:
    """Show a time."""
    return "no time left" if value is None else f"{value:.2f} s"


def side_by_side(structures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the table of structure: a title and one cell for each method."""
    rows = {
        "Parameters": lambda s: millions(s["parameters"]["total"]),
        "of them trained by the method": lambda s: millions(s["parameters"]["trained"]),
        "of them frozen": lambda s: millions(s["parameters"]["frozen"]),
        "CLIP sees": pictures_sentence,
        "CLIP layers read or changed": layers_sentence,
        "Where names enter": names_sentence,
        "One more name costs": added_sentence,
        "GFLOP, this image": gflop_sentence,
        "Seconds, this image": lambda s: f"{total_seconds(s):.1f}",
        "Kept for the backward pass": lambda s: (
            "nothing is trained" if s["training_mib"] is None else f"{s['training_mib']:,.0f} MiB"
        ),
        "Peak memory of the process": lambda s: f"{s['peak_gib']:.1f} GiB",
    }
    return [
        {"title": title, "cells": [show(s) for s in structures.values()]}
        for title, show in rows.items()
    ]


def names_sentence(structure: Mapping[str, Any]) -> str:
    """Say which stages use the names."""
    titles = {stage["key"]: stage["title"] for stage in structure["stages"]}
    return " and ".join(f"“{titles[key]}”" for key in structure["names_enter"])


def pictures_sentence(structure: Mapping[str, Any]) -> str:
    """Say what CLIP's image towers were fed."""
    sentences = []
    for tower in structure["clip"]:
        sizes = ", ".join(f"{h} × {w}" for h, w in tower["input_sizes"])
        pictures = tower["pictures"]
        sentences.append(f"{pictures} picture{'s' * (pictures != 1)} of {sizes} ({tower['role']})")
    return "; ".join(sentences)


def layers_sentence(structure: Mapping[str, Any]) -> str:
    """Say which blocks of CLIP were used in another way than CLIP does."""
    sentences = []
    for tower in structure["clip"]:
        layers = tower["vision"]["layers"]
        parts = []
        if extra := _larger(tower["tokens"]):
            count = tower["tokens"][extra[0] - 1] - tower["tokens"][0]
            parts.append(f"{count} more tokens in {_blocks(extra)}")
        if replaced := tower["replaced_before"]:
            parts.append(f"tokens replaced before {_blocks(replaced)}")
        if recomposed := tower["attention_recomposed"]:
            parts.append(f"attention taken apart in {_blocks(recomposed)}")
        if gradients := tower["gradients"]:
            parts.append(f"gradients through {_blocks(gradients)}")
        if unused := [i for i in range(1, layers + 1) if _idle(tower["tokens"], i)]:
            parts.append(f"{_blocks(unused)} not run")
        role = tower["role"]
        sentences.append(f"{role}: {', '.join(parts) or 'none'} (of {layers})")
    return "; ".join(sentences)


def _idle(tokens: Sequence[int], block: int) -> bool:
    return block > len(tokens) or tokens[block - 1] == 0


def _larger(tokens: Sequence[int]) -> list[int]:
    return [i for i, count in enumerate(tokens, start=1) if count > tokens[0]]


def _blocks(numbers: Sequence[int]) -> str:
    """Say "block 3" or "blocks 1 to 4" or "blocks 1, 5"."""
    if len(numbers) == 1:
        return f"block {numbers[0]}"
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"blocks {numbers[0]} to {numbers[-1]}"
    return "blocks " + ", ".join(map(str, numbers))


def added_sentence(structure: Mapping[str, Any]) -> str:
    """Say what a name costs when it is added."""
    added = structure["added_names"]
    once = f"{added['text_gflop_once']:.0f} GFLOP once for its text"
    each = added["clip_gflop_each_image"]
    return f"{once}, and {each:.0f} GFLOP on every image" if each else f"{once}; no CLIP pass"


def total_gflop(structure: Mapping[str, Any]) -> float:
    """Sum the stages without the text, which is paid once."""
    return sum(s["gflop"] for s in structure["stages"] if s["key"] != "text")


def gflop_sentence(structure: Mapping[str, Any]) -> str:
    """Say what an image costs, and what it costs at most where CLIP was spared pictures."""
    total, most = total_gflop(structure), structure["pictures_at_most"]
    if most is None:
        return f"{total:,.0f}"
    return f"{total:,.0f}; with all {most} pictures {gflop_at_most(structure):,.0f}"


def gflop_at_most(structure: Mapping[str, Any]) -> float:
    """Scale CLIP's share to all pictures that it may be shown."""
    clip = next(s["gflop"] for s in structure["stages"] if s["key"] == "clip")
    shown = sum(tower["pictures"] for tower in structure["clip"])
    return total_gflop(structure) + clip * (structure["pictures_at_most"] / shown - 1)


def total_seconds(structure: Mapping[str, Any]) -> float:
    """Sum the stages without the text, which is paid once."""
    return sum(s["seconds"] for s in structure["stages"] if s["key"] != "text")


def _figures(structures: Mapping[str, Any], sets: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Draw everything; by file name."""
    figures = {f"diagram-{m}": svg for m, svg in diagrams(structures).items()}
    for axis, title in (("names", "names"), ("side", "side of the image in pixels")):
        series = {
            m: [(p[axis], p["seconds"]) for p in s[f"latency_{axis}"] if p["seconds"]]
            for m, s in structures.items()
        }
        figures[f"latency-{axis}"] = charts.curves(series, title, "seconds for an image")
    for data in sets:
        for name, svg in data["charts"].items():
            figures[f"{data['slug']}-{name}"] = svg
    return figures


def diagrams(structures: Mapping[str, Any]) -> dict[str, str]:
    """Draw one diagram for each method, in one scale."""
    costs = [
        stage["gflop"]
        for structure in structures.values()
        for stage in structure["stages"]
        if stage["key"] != "text"
    ]
    return {m: diagram.draw(s, max(costs)) for m, s in structures.items()}


def _data_set(results: Path, comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Gather what is shown of one data set."""
    found = {m: Result.load(results / name) for m, name in comparison["results"].items()}
    first = next(iter(found.values()))
    rows = [_row(m, c, r, comparison) for m, r in found.items() for c in CONVENTIONS]
    slug = next(iter(comparison["results"].values())).partition("--")[0]
    return {
        "name": comparison["title"],
        "slug": slug,
        "n_images": first.card.n_images,
        "classes": len(first.names),
        "present": first.scores().n_present,
        "rows": rows,
        "paired": comparison["paired"],
        "seen": comparison["seen"],
        "gallery": comparison["gallery"],
        "charts": _set_charts(found, comparison),
    }


def _row(
    method: str, convention: Any, result: Result, comparison: Mapping[str, Any]
) -> dict[str, Any]:
    interval = result.intervals.get(convention)
    times = comparison["times"].get(method) or {}
    miou = result.scores(convention).miou
    return {
        "method": method,
        "variant": result.card.variant,
        "convention": convention,
        "miou": miou,
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
        "published": [
            {**row, "difference": miou - row["miou"]}
            for row in published()
            if (row["method"].lower(), row["data_set"], row["convention"])
            == (method, comparison["data_set"], convention)
        ],
        "seconds": times.get("seconds"),
        "peak_gib": times.get("peak_gib"),
    }


def published() -> list[dict[str, Any]]:
    """Return the numbers that the authors report."""
    rows: list[dict[str, Any]] = json.loads((HERE / "published.json").read_text("utf-8"))["rows"]
    return rows


def _set_charts(found: Mapping[str, Result], comparison: Mapping[str, Any]) -> dict[str, str]:
    drawn = {}
    for pair in comparison["paired"]:
        first, second = pair["first"], pair["second"]
        drawn[f"classes-{first}-{second}"] = charts.bars(
            class_differences(found[first], found[second]),
            f"IoU of each class, {second} minus {first}",
            f"{charts.TITLES[first]} better",
            f"{charts.TITLES[second]} better",
        )
    for key, title in (("seconds", "seconds for an image"), ("peak_gib", "peak memory, GiB")):
        points = {
            m: [(comparison["times"][m][key], max(r.scores().miou, 0.1))]
            for m, r in found.items()
            if comparison["times"].get(m)
        }
        drawn[f"accuracy-{key}"] = charts.curves(points, title, "mIoU", lines=False)
    return drawn


def class_differences(first: Result, second: Result) -> list[tuple[str, float]]:
    """Return the classes whose IoU differs most, sorted by second minus first."""
    difference = second.scores().iou - first.scores().iou
    order = [int(i) for i in np.argsort(difference) if not np.isnan(difference[i])]
    if len(order) > 2 * _MOST_BARS:
        order = order[:_MOST_BARS] + order[-_MOST_BARS:]
    return [(first.names[i], float(difference[i])) for i in order]


def main(argv: Sequence[str] | None = None) -> int:
    """Make the report of an output folder anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("output"))
    print(build_report(parser.parse_args(argv).folder))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
