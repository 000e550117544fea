"""The ensemble of both branches, and the choice of the pixels that a proposal covers.

MaskFormer gives each proposal class probabilities p, and CLIP gives class probabilities c to each
proposal with any foreground. The published evaluation uses p^(1-w) c^w for every proposal and sums
soft masks. The demo keeps only the best proposal of each class and only pixels that it covers.

Source: OVSeg paper section 3.4; SPEC ovseg 7, 8, 16 and 17.9.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

OTHERS = "others"  # what the demo adds to a single class name


class Branches(NamedTuple):
    """The predictions of both branches for the proposals of one image."""

    class_prob: Tensor
    """MaskFormer's class probabilities without "no object", so rows sum to at most 1 (Q, K)."""
    clip_prob: Tensor
    """CLIP's class probabilities of the valid proposals (V, K)."""
    valid: Tensor
    """Which proposals have any foreground (Q,), bool."""


class Votes(NamedTuple):
    """The terms of the sum over proposals, `score[k] = sum_r weights[r, k] * masks[rows[r]]`."""

    weights: Tensor
    """(R, K)."""
    rows: Tensor
    """Proposals that take part (R,), int64."""


def ensemble(branches: Branches, weight: float) -> Votes:
    """Combine the branches as in the evaluation.

    A proposal that CLIP has not seen counts as c = 1, which lifts it above the others; the
    published numbers have this.

    Args:
        branches: predictions of both branches for one image.
        weight: exponent of CLIP; 0 and below: CLIP alone, on the valid proposals.

    Source: SPEC ovseg 7, 16.2.3 and 16.2.4.
    """
    class_prob, clip_prob, valid = branches
    if weight <= 0:
        return Votes(clip_prob, valid.nonzero().squeeze(1))
    everywhere = torch.ones_like(class_prob).masked_scatter(valid[:, None], clip_prob)
    weights = class_prob ** (1 - weight) * everywhere**weight
    return Votes(weights, torch.arange(len(valid), device=valid.device))


def maskformer_only(branches: Branches) -> Votes:
    """Return MaskFormer's probabilities of all proposals, without CLIP."""
    rows = torch.arange(len(branches.valid), device=branches.valid.device)
    return Votes(branches.class_prob, rows)


def only_valid(votes: Votes, valid: Tensor) -> Votes:
    """Keep only the votes of proposals that have foreground."""
    kept = valid[votes.rows].nonzero().squeeze(1)
    return Votes(votes.weights[kept], votes.rows[kept])


def best_proposals(votes: Votes, names: Sequence[str]) -> Votes:
    """Keep, for each class, the proposal with the highest weight, with its weights for all classes.

    If there are exactly two names and the last one is "others", a proposal is kept only for the
    first.

    Source: SPEC ovseg 8 and 17.9.
    """
    if not len(votes.rows):
        return votes
    best = votes.weights.argmax(0)  # (K,)
    if len(names) == 2 and names[-1] == OTHERS:
        best = best[:-1]
    selected = best.unique()  # type: ignore[no-untyped-call]
    return Votes(votes.weights[selected], votes.rows[selected])


def demo_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names that the demo classifies: "others" is added to a single name."""
    return (*names, OTHERS) if len(names) == 1 else tuple(names)
