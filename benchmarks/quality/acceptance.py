"""Acceptance thresholds for scores on the embedded world, which were set before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.forms import Comparison, ThresholdRow
from benchmarks.layout import read_json
from openvocab.methods import available_methods


def threshold_rows(comparison: Comparison, images: int) -> list[ThresholdRow]:
    """Compare scores on the world with the acceptance thresholds of the methods.

    Args:
        comparison: the comparison, as `comparison.py` writes it.
        images: number of evaluated images.

    Returns:
        For each threshold what it is about, the bound, what was reached, and whether it holds; None
        where that was not measured, or on too few images.
    """
    rows: list[ThresholdRow] = []
    for key, method in available_methods().items():
        if key not in comparison["scores"] or method.acceptance is None:
            continue
        content = read_json(method.acceptance)
        thresholds: list[ThresholdRow] = content["thresholds"]
        for threshold in thresholds:
            table, *rest = threshold["path"].split(".")
            reached = _value(comparison, [table, key, *rest])
            enough = images >= content["images"]
            holds = _holds(threshold, reached) if reached is not None and enough else None
            rows.append({**threshold, "reached": reached, "holds": holds})
    return rows


def _holds(threshold: ThresholdRow, reached: float) -> bool:
    if "above" in threshold:
        return reached > threshold["above"]
    return reached >= threshold["at_least"]


def _value(tree: Any, path: list[str]) -> float | None:
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return None if tree is None else float(tree)
