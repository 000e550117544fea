"""The matching of queries and targets, by pairwise costs and the cheapest assignment.

Source: Carion et al. 2020 (DETR), section 3.1; Cheng et al. 2021 and 2022 (MaskFormer, Mask2Former)
for the mask costs; SPEC san 8, SPEC ovseg 10.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

_WORST = 1e6  # stands for a cost that is not a number, so that the loss can report it


class Match(NamedTuple):
    """The pairs of one image: query `queries[i]` and target `targets[i]`; both (M,) int64."""

    queries: Tensor
    targets: Tensor


def assign(cost: Tensor) -> Match:
    """Pair queries with targets so that the summed cost is the smallest possible.

    Args:
        cost: (Q, T), any dtype and device.

    Returns:
        min(Q, T) pairs, sorted by query, on the CPU.
    """
    finite = cost.detach().float().cpu().nan_to_num(_WORST, _WORST, -_WORST)
    rows, columns = linear_sum_assignment(finite.numpy())
    return Match(torch.as_tensor(rows), torch.as_tensor(columns))


def class_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Return minus the probability of each target's class.

    Args:
        logits: (Q, K + 1), "no object" last; it takes part in the softmax.
        labels: (T,) in 0..K-1.

    Returns:
        (Q, T) in -1..0.
    """
    return -logits.float().softmax(-1)[:, labels]


def cross_entropy_cost(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean binary cross-entropy between every mask and every target.

    Args:
        logits: (Q, P) at P points or pixels.
        targets: (T, P) in 0..1.

    Returns:
        (Q, T).
    """
    positive, negative = F.softplus(-logits), F.softplus(logits)
    return (positive @ targets.T + negative @ (1 - targets).T) / logits.shape[1]


def focal_cost(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2) -> Tensor:
    """Return the mean focal loss between every mask (Q, P) and every target (T, P): (Q, T)."""
    prob = logits.sigmoid()
    positive = alpha * (1 - prob) ** gamma * F.softplus(-logits)
    negative = (1 - alpha) * prob**gamma * F.softplus(logits)
    return (positive @ targets.T + negative @ (1 - targets).T) / logits.shape[1]


def dice_cost(logits: Tensor, targets: Tensor) -> Tensor:
    """Return 1 - (2 s.t + 1) / (sum s + sum t + 1) for every mask (Q, P) and target (T, P)."""
    prob = logits.sigmoid()
    total = prob.sum(-1)[:, None] + targets.sum(-1)[None]
    return 1 - (2 * prob @ targets.T + 1) / (total + 1)
