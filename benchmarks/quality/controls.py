"""The shuffled-name control: the same masks, with every name exchanged for another one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.forms import Control
from openvocab.metrics.scores import IntArray, class_totals, mean_iou

SEED, PERMUTATIONS = 0, 200


def shuffled_names(matrix: IntArray) -> float | None:
    """Return the mIoU in percent of the shuffled-name control.

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
    """Return a random permutation of at least two places in which none keeps its place."""
    places = np.arange(count)
    while True:  # every third permutation or so is one
        drawn = random.permutation(count)
        if (drawn != places).all():
            return drawn.astype(np.intp)


def control_of(matrix: IntArray, miou: float | None) -> Control:
    """Return the mIoU of the control, and the ratio of the method's mIoU to it."""
    control = shuffled_names(matrix)
    ratio = miou / control if miou is not None and control else None
    return {"miou": control, "ratio": ratio, "permutations": PERMUTATIONS, "seed": SEED}
