"""The way from masks of names to labels of pixels, or to the mask of one described object.

Source: SPEC car 8 and 9.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SMALLEST_SHARE = 0.05  # of the image; smaller merged masks are not trusted


def paint(
    labels: NDArray[np.int32],
    masks: NDArray[np.bool_],
    scores: NDArray[np.float32],
    ids: Sequence[int] | NDArray[np.int32],
) -> None:
    """Paint masks over labels (H, W) in place; where they overlap, the highest score wins.

    Args:
        labels: labels to paint on; earlier labels are covered.
        masks: (N, H, W).
        scores: (N,); masks with a score of 0 are left out.
        ids: (N,) the label of each.
    """
    for index in np.argsort(scores, kind="stable"):
        if scores[index] > 0:
            labels[masks[index]] = ids[index]


def raise_scores(
    scores: NDArray[np.float32],
    marginals: NDArray[np.float32],
    ids: Sequence[int] | NDArray[np.int32],
) -> None:
    """Raise scores of labels (K, H, W), in place, to the marginals (N, H, W) of their words.

    Args:
        scores: scores of all labels.
        marginals: marginals of the words that were looked for.
        ids: (N,) the label of each word; those of none are left out.
    """
    for index, marginal in zip(ids, marginals, strict=True):
        if index >= 0:
            np.maximum(scores[index], marginal, out=scores[index])


def merge_descriptions(masks: NDArray[np.bool_], scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Merge the masks of several descriptions of one object.

    Args:
        masks: (N, H, W).
        scores: (N,), their weights.

    Returns:
        (H, W), where at least half of the weight agrees; the union of all masks, if that is no
        more than a twentieth of the image.
    """
    total = scores.sum()
    if total <= 0:
        return np.zeros(masks.shape[1:], dtype=bool)
    mean = np.tensordot(scores / total, masks.astype(np.float32), axes=1)  # (H, W)
    agreed = np.asarray(mean >= 0.5)
    return agreed if agreed.mean() > SMALLEST_SHARE else np.asarray(masks.any(axis=0))
