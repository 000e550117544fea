"""Spreading a coarse map along CLIP's own attention.

Source: Lin et al. 2023, "CLIP is Also an Efficient Segmenter" (CLIP-ES), section 3.3; SPEC car 3.6
and 3.7.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

SINKHORN_ROUNDS = 3
THRESHOLD_STEP = 0.1


def balance(attention: Tensor) -> Tensor:
    """Divide (n, n) attention by its column and row sums in turn, in place."""
    for _ in range(SINKHORN_ROUNDS):
        attention /= attention.sum(dim=0, keepdim=True)
        attention /= attention.sum(dim=1, keepdim=True)
    return attention


def refine(affinity: Tensor, maps: Tensor, sources: Tensor) -> Tensor:
    """Spread maps along the affinity, twice.

    With T the mean of the affinity and its transpose, the original computes T @ T, which costs n^3,
    masks columns and multiplies; from right to left it costs n^2 for each map.

    Args:
        affinity: balanced (n, n).
        maps: (K, n).
        sources: (K, n), which pixels may give to others.

    Returns:
        (K, n).
    """
    spread = (maps * sources).T  # (n, K)
    for _ in range(2):
        spread = (affinity @ spread + affinity.T @ spread) / 2
    return spread.T


def salient_boxes(
    score_map: NDArray[np.float32], threshold: float, *, faithful: bool = False
) -> NDArray[np.int64]:
    """Find boxes around the salient regions of a map.

    Args:
        score_map: (h, w) in 0..1.
        threshold: relative to the map's maximum; lowered in steps until something is above it.
        faithful: let no box reach the last row or column, as in the original.

    Returns:
        (B, 4) left, top, right, bottom, the latter two exclusive; one empty box if there is none.
    """
    levels = (score_map * 255).astype(np.uint8)
    highest = int(levels.max())
    binary = levels > int(threshold * highest)
    while not binary.any() and threshold > 0:
        threshold -= THRESHOLD_STEP
        binary = levels > int(threshold * highest)
    contours: Any = cv2.findContours(
        binary.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE
    )[0]
    if not contours:
        return np.zeros((1, 4), dtype=np.int64)
    height, width = score_map.shape
    corners = np.array([cv2.boundingRect(contour) for contour in contours], dtype=np.int64)
    corners[:, 2:] += corners[:, :2]  # sizes become ends
    if faithful:
        corners[:, 2] = corners[:, 2].clip(max=width - 1)
        corners[:, 3] = corners[:, 3].clip(max=height - 1)
    return corners


def box_mask(boxes: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the union (h, w) of boxes."""
    mask = np.zeros(size, dtype=bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return mask
