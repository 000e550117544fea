"""Boundary IoU, which measures how well the outlines of masks agree, for each class.

Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation",
CVPR 2021, section 4, on the mask of each class (not on label maps, where the outline between two
classes would count for both whatever the prediction).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from openvocab.formats.run_length import Mask
from openvocab.metrics.scores import FloatArray, Ignore, IntArray, void_values

BOUNDARY_RATIO = 0.02  # width of the boundary as a share of the diagonal


def boundary_counts(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    num_classes: int,
    ignore_index: Ignore = None,
    ratio: float = BOUNDARY_RATIO,
) -> IntArray:
    """Count the pixels of the boundaries of every class of one image.

    Void pixels are not counted, but a region of void has a boundary with the classes around it.

    Args:
        prediction: `(H, W)` integers in `-1..K-1`.
        truth: `(H, W)` integers in `0..K-1` or void.
        num_classes: K.
        ignore_index: void value or values, see `openvocab.metrics.scores.void_values`.
        ratio: width of the boundary as a share of the diagonal.

    Returns:
        `(3, K)`: boundary pixels that agree, of the ground truth, and predicted, per class.
        Sums over images go to `boundary_iou`.
    """
    reach = boundary_width(truth.shape[0], truth.shape[1], ratio)
    valid = ~np.isin(truth, list(void_values(num_classes, ignore_index)))
    totals = np.zeros((3, num_classes), dtype=np.int64)
    for class_id in np.union1d(np.unique(truth[valid]), np.unique(prediction[prediction >= 0])):
        true_edge = _inner_boundary(truth == class_id, reach) & valid
        predicted_edge = _inner_boundary(prediction == class_id, reach) & valid
        totals[:, class_id] = [
            np.count_nonzero(true_edge & predicted_edge),
            np.count_nonzero(true_edge),
            np.count_nonzero(predicted_edge),
        ]
    return totals


def boundary_iou(totals: NDArray[Any]) -> FloatArray:
    """Return boundary IoU per class `(K,)` in percent, nan for classes without ground truth.

    Args:
        totals: `(3, K)`, the sum of `boundary_counts` over images.
    """
    hits, truth, predicted = np.asarray(totals, dtype=np.float64)
    iou = np.full(len(hits), np.nan)
    np.divide(100 * hits, truth + predicted - hits, out=iou, where=truth > 0)
    return iou


def _inner_boundary(mask: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Return the boundary of a mask `(H, W)`, computed only inside its bounding box."""
    boundary = np.zeros_like(mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows):
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        boundary[box] = boundary_of_mask(mask[box], reach)
    return boundary


def boundary_width(height: int, width: int, ratio: float = 0.02) -> int:
    """Return the width of the boundaries: a share of the image's diagonal, at least 1 pixel.

    Source: Cheng et al., "Boundary IoU", CVPR 2021.

    Examples:
        >>> boundary_width(480, 640)
        16
    """
    return max(1, round(ratio * float(np.hypot(height, width))))


def boundary_of_mask(mask: NDArray[Any], width: int = 1) -> Mask:
    """Return the pixels inside a mask that are at most `width` from its outside.

    All pixels beyond the image count as outside. The distance is the number of steps to one of the
    eight neighbors.

    Args:
        mask: (H, W), non-zero is inside.
        width: width of the boundary in pixels, at least 1.

    Returns:
        (H, W) bool.
    """
    inside = np.pad((mask != 0).astype(np.uint8), 1)  # the border of the image is outside
    core = cv2.erode(inside, np.ones((3, 3), np.uint8), iterations=width)
    return np.asarray((inside != 0) & (core == 0))[1:-1, 1:-1]


def boundary_of_labels(labels: NDArray[Any]) -> Mask:
    """Return the pixels of (H, W) labels whose right, lower or lower right neighbour differs."""
    edge = np.zeros(labels.shape, dtype=np.bool_)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:-1, :-1] |= labels[:-1, :-1] != labels[1:, 1:]
    return edge
