"""The figure of a training run, with its losses over the steps and its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openvocab.files import atomic_path

_WINDOW = 0.04  # of all points, over which a curve is smoothed


def plot_losses(lines: Sequence[Mapping[str, Any]], picture: Path) -> None:
    """Draw every loss of a log over the iterations, smoothed over its points, and every score."""
    from matplotlib.figure import Figure

    steps = [line for line in lines if line.get("loss") is not None]
    scores = [line for line in lines if "loss" not in line]
    names = [name for name in (steps[-1] if steps else {}) if "loss" in name]
    if not names:
        return
    figure = Figure(figsize=(9, 7 if scores else 5), layout="constrained")
    rows = figure.subplots(1 + bool(scores), 1, sharex=True, squeeze=False)[:, 0]
    _draw_losses(rows[0], steps, names)
    if scores:
        _draw_scores(rows[1], scores)
    rows[-1].set_xlabel("iteration")
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, dpi=120)


def _draw_losses(axes: Any, steps: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Draw the sum in black, and its parts with one color for all layers of a kind."""
    kinds = sorted({_kind(name) for name in names} - {"loss"})
    for name in names:
        points = [(line["iteration"], line[name]) for line in steps if line.get(name) is not None]
        iterations, values = np.array(points, dtype=float).T
        kind = _kind(name)
        color = "black" if kind == "loss" else f"C{kinds.index(kind)}"
        earlier = kind != name
        axes.plot(iterations, values, color=color, alpha=0.12, linewidth=0.8)
        style = {"linestyle": "--" if earlier else "-", "alpha": 0.55 if earlier else 1.0}
        width = 2 if name == "loss" else 1.2
        axes.plot(iterations, _smooth(values), color=color, label=name, linewidth=width, **style)
    if all((line.get(name) or 1) > 0 for line in steps for name in names):
        axes.set_yscale("log")
    axes.set_ylabel("weighted loss")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_scores(axes: Any, scores: Sequence[Mapping[str, Any]]) -> None:
    for name in dict.fromkeys(key for line in scores for key in line if key != "iteration"):
        points = [(line["iteration"], line[name]) for line in scores if line.get(name) is not None]
        axes.plot(*np.array(points, dtype=float).T, marker="o", markersize=4, label=name)
    axes.set_ylabel("score")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def _kind(name: str) -> str:
    """Return the name of a loss without the number of its layer."""
    return name.rstrip("0123456789").removesuffix("_")


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average over a window around each point, narrower at the ends."""
    half = int(len(values) * _WINDOW / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return np.asarray((sums[last] - sums[first]) / (last - first))
