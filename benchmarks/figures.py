"""All figures of a report, as SVG by name, and as PNG beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import charts
import diagram
import numpy as np
import resvg_py

from openvocab.files import atomic_path, write_text
from openvocab.fonts import FOLDER
from openvocab.results import Result

_MOST_BARS = 12  # classes shown on each side of a difference
_PNG_WIDTH = 1440
_AXES = {"names": "names", "side": "side of the image in pixels"}


def write_figures(figures: Mapping[str, str], folder: Path) -> None:
    """Write figures by name as SVG and as PNG on white; empty ones are left out."""
    fonts = [str(FOLDER / f"{name}.ttf") for name in ("DejaVuSans", "DejaVuSans-Bold")]
    for name, svg in figures.items():
        if not svg:
            continue
        write_text(folder / f"{name}.svg", svg)
        png = resvg_py.svg_to_bytes(
            svg_string=svg,
            width=_PNG_WIDTH,
            background="#ffffff",
            skip_system_fonts=True,
            font_files=fonts,
            sans_serif_family="DejaVu Sans",
        )
        with atomic_path(folder / f"{name}.png") as path:
            path.write_bytes(png)


def latency_figures(curves: Mapping[str, Any]) -> dict[str, str]:
    """Draw latency against names and sizes, by axis.

    Args:
        curves: of each method, as `latency.curves` measures them.
    """
    return {
        axis: charts.curves(
            {m: _measured(points[axis], axis) for m, points in curves.items()},
            title,
            "seconds for an image",
        )
        for axis, title in _AXES.items()
    }


def _measured(points: Sequence[Mapping[str, Any]], axis: str) -> list[tuple[float, float]]:
    return [(point[axis], point["seconds"]) for point in points if point["seconds"]]


def diagrams(structures: Mapping[str, Any]) -> dict[str, str]:
    """Draw one diagram for each method, in one scale."""
    costs = [
        stage["gflop"]
        for structure in structures.values()
        for stage in structure["stages"]
        if stage["key"] != "text"
    ]
    return {m: diagram.draw(s, max(costs)) for m, s in structures.items()}


def set_figures(found: Mapping[str, Result], comparison: Mapping[str, Any]) -> dict[str, str]:
    """Draw what is shown of one data set: classes that differ most, and accuracy against cost."""
    drawn = {}
    times = {m: t for m, t in comparison["times"].items() if t}
    axes = {
        "seconds": ("seconds for an image", lambda t: t["seconds"]),
        "memory": ("peak memory beyond Python and libraries, MiB", own_mib),
    }
    for key, (title, x) in axes.items():
        series = {m: [(x(t), found[m].scores().miou)] for m, t in times.items()}
        drawn[f"accuracy-{key}"] = charts.points(series, title, "mIoU")
    for pair in comparison["paired"]:
        first, second = pair["first"], pair["second"]
        drawn[f"classes-{first}-{second}"] = charts.bars(
            class_differences(found[first], found[second]),
            f"IoU of each class, {second} minus {first}",
            f"{charts.TITLES[first]} better",
            f"{charts.TITLES[second]} better",
        )
    return drawn


def own_mib(times: Mapping[str, Any]) -> float:
    """Return the MiB of memory that an evaluation took beyond Python and libraries."""
    return max(1024 * (times["peak_gib"] - times["libraries_gib"]), 1.0)


def class_differences(first: Result, second: Result) -> list[tuple[str, float]]:
    """Return the classes whose IoU differs most, sorted by second minus first."""
    difference = second.scores().iou - first.scores().iou
    order = [int(i) for i in np.argsort(difference) if not np.isnan(difference[i])]
    if len(order) > 2 * _MOST_BARS:
        order = order[:_MOST_BARS] + order[-_MOST_BARS:]
    return [(first.names[i], float(difference[i])) for i in order]
