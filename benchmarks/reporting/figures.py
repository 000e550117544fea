"""All figures of a report, as SVG and PNG files, and the pictures of its gallery."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import resvg_py

from benchmarks.forms import Comparison, Costs, Curves, Example, Point, Structure
from benchmarks.reporting import charts, diagram
from openvocab.drawing.fonts import FOLDER
from openvocab.evaluation.results import Result
from openvocab.files import atomic_path, write_text
from openvocab.methods import title_of

_MOST = 15  # classes shown on each side of a difference
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


def write_gallery(gallery: Sequence[Example], folder: Path, slug: str) -> None:
    """Write the panels of a gallery as JPEG."""
    for number, entry in enumerate(gallery, start=1):
        for panel in entry["panels"]:
            with atomic_path(folder / f"{slug}-gallery-{number}-{panel['key']}.jpg") as path:
                path.write_bytes(base64.b64decode(panel["jpeg"]))


def latency_figures(curves: Mapping[str, Curves]) -> dict[str, str]:
    """Draw latency against names and sizes, by axis.

    Args:
        curves: The curves of each method, as `latency.measure_curves` measures them.
    """
    return {
        axis: charts.draw_curves(
            {m: _measured(points[axis], axis) for m, points in curves.items()},
            title,
            "seconds for an image",
        )
        for axis, title in _AXES.items()
    }


def _measured(points: Sequence[Point], axis: str) -> list[tuple[float, float]]:
    return [
        (point["names"] if axis == "names" else point["side"], point["seconds"])
        for point in points
        if point["seconds"]
    ]


def diagrams(structures: Mapping[str, Structure]) -> dict[str, str]:
    """Draw one diagram for each method, in one scale."""
    costs = [
        stage["gflop"]
        for structure in structures.values()
        for stage in structure["stages"]
        if stage["key"] != "text"
    ]
    return {m: diagram.draw_diagram(s, max(costs, default=0.0)) for m, s in structures.items()}


def set_figures(found: Mapping[str, Result], comparison: Comparison) -> dict[str, str]:
    """Draw what is shown of one data set: accuracy against cost, and class against class."""
    drawn = {}
    titles = {key: title_of(key) for key in found} | comparison.get("titles", {})
    times = {m: t for m, t in comparison["times"].items() if t}
    axes: dict[str, tuple[str, Callable[[Costs], float]]] = {
        "seconds": ("seconds for an image", lambda t: t["seconds"]),
        "memory": ("peak memory beyond Python and libraries, MiB", own_mib),
    }
    for key, (title, x) in axes.items():
        series = {m: [(x(t), found[m].scores().miou)] for m, t in times.items()}
        drawn[f"accuracy-{key}"] = charts.points(series, title, "mIoU, %")
    known = comparison.get("calibration", {})
    drawn["confidence-reliability"] = charts.percentages(
        {m: _joined(c["confidence"], c["accuracy"]) for m, c in known.items()},
        "confidence, %", "right pixels, %", diagonal=True,
        intervals={m: _joined(c["accuracy_low"], c["accuracy_high"]) for m, c in known.items()},
    )  # fmt: skip
    drawn["confidence-risk"] = charts.percentages(
        {m: _joined(c["coverage"], c["risk"]) for m, c in known.items()},
        "kept pixels, %", "wrong ones among the kept pixels, %",
    )  # fmt: skip
    for pair in comparison["paired"]:
        first, second = pair["first"], pair["second"]
        drawn[f"classes-{first}-{second}"] = charts.pairs(
            class_differences(found[first], found[second]),
            first,
            second,
            f"IoU of each class by {titles[first]} and {titles[second]}",
            titles,
        )
    return drawn


def _joined(
    across: Sequence[float | None], up: Sequence[float | None]
) -> list[tuple[float, float]]:
    """Return the points of two lists of shares, in percent, without those that have no value."""
    pairs = zip(across, up, strict=True)
    return [(100 * x, 100 * y) for x, y in pairs if x is not None and y is not None]


def own_mib(times: Costs) -> float:
    """Return the peak memory of an evaluation beyond that of Python and its libraries, in MiB."""
    return max(1024 * (times["peak_gib"] - times["libraries_gib"]), 1.0)


def class_differences(first: Result, second: Result) -> list[tuple[str, float, float] | None]:
    """Return (class, first IoU, second IoU), sorted by the second minus the first.

    Where there are many classes, those with small differences are left out; one None marks them.
    """
    a, b = first.scores().iou, second.scores().iou
    order = [int(i) for i in np.argsort(b - a, kind="stable") if not np.isnan(b[i] - a[i])]
    rows: list[tuple[str, float, float] | None] = [
        (first.names[i].strip(), float(a[i]), float(b[i])) for i in order
    ]
    return rows if len(rows) <= 2 * _MOST else [*rows[:_MOST], None, *rows[-_MOST:]]
