"""What scores mean: the same masks with names exchanged, and floors that were set beforehand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openvocab.metrics.scores import IntArray, class_totals, mean_iou

SEED, PERMUTATIONS = 0, 200
FLOORS = Path(__file__).parent / "floors.json"


def shuffled_names(matrix: IntArray) -> float | None:
    """Return mIoU in percent if every predicted name stood for another one.

    The mean over permutations of the names in which none stays in its place; None for one name.

    Args:
        matrix: (K, K + 1), the last column is nothing and stays.
    """
    classes = len(matrix)
    if classes < 2:
        return None
    random = np.random.default_rng(SEED)
    values = []
    for _ in range(PERMUTATIONS):
        shuffled = matrix.copy()
        shuffled[:, derangement(classes, random)] = matrix[:, :classes]
        values.append(float(mean_iou(class_totals(shuffled))))
    return float(np.mean(values))


def derangement(count: int, random: np.random.Generator) -> NDArray[np.intp]:
    """Return a random permutation of at least two places that leaves none where it is."""
    places = np.arange(count)
    while True:  # every third permutation or so is one
        drawn = random.permutation(count)
        if (drawn != places).all():
            return drawn.astype(np.intp)


def control_of(matrix: IntArray, miou: float | None) -> dict[str, Any]:
    """Return mIoU with exchanged names, and how many times as much the method reaches."""
    control = shuffled_names(matrix)
    ratio = miou / control if miou is not None and control else None
    return {"miou": control, "ratio": ratio, "permutations": PERMUTATIONS, "seed": SEED}


def floor_rows(comparison: Mapping[str, Any], images: int) -> list[dict[str, Any]]:
    """Hold a comparison on the world against its floors.

    Args:
        comparison: as `comparison.py` writes it.
        images: how many were evaluated.

    Returns:
        For each floor what it is about, the bound, what was reached, and whether it holds; None
        where that was not measured, or on too few images.
    """
    floors = json.loads(FLOORS.read_text("utf-8"))
    rows = []
    for floor in floors["floors"]:
        reached = _value(comparison, floor["path"].split("."))
        enough = images >= floors["images"]
        holds = _holds(floor, reached) if reached is not None and enough else None
        rows.append({**floor, "reached": reached, "holds": holds})
    return rows


def _holds(floor: Mapping[str, Any], reached: float) -> bool:
    return reached > floor["above"] if "above" in floor else reached >= floor["at_least"]


def _value(tree: Any, path: list[str]) -> float | None:
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree
