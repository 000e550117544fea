"""The set-prediction losses of SAN and OVSeg: for classes, masks, and points of masks.

Source: Cheng et al. 2022 (Mask2Former), section 3.3 for the points; SPEC san 8, SPEC ovseg 10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from openvocab.training.matching import Match

Losses = dict[str, Tensor]

# draw(counts, points) gives `points` uniform points (x, y) in 0..1 for each of `counts[b]` masks of
# every image b: (sum(counts), points, 2). Injected, so that who trains decides what they depend on.
Draw = Callable[[Sequence[int], int], Tensor]


class Targets(NamedTuple):
    """The classes (T,) int64 of one image, and their masks (T, H, W) bool."""

    labels: Tensor
    masks: Tensor


class Totals(NamedTuple):
    """The divisors of losses: the number of targets, and the summed class weight of all queries.

    Both are means over processes and accumulated batches, so that the mean loss over them is the
    loss of the whole batch, however it is split.
    """

    masks: float
    class_weight: float


class PerImageDraws:
    """Random points that depend on each image's own seed, not on the other images of the batch."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = device
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, counts: Sequence[int], points: int) -> Tensor:
        """See `Draw`."""
        drawn = [
            torch.rand(count, points, 2, generator=generator, device=self.device)
            for count, generator in zip(counts, self.generators, strict=True)
        ]
        return torch.cat(drawn)


def targets_of(label: Tensor, num_classes: int) -> Targets:
    """Make one target of each class in a label map (H, W); values outside 0..K-1 are void.

    Void pixels are outside of every mask, and so count as negatives.
    """
    labels = torch.unique(label)
    labels = labels[(labels >= 0) & (labels < num_classes)].long()
    return Targets(labels, label[None] == labels[:, None, None])


def totals_of(
    counts: Sequence[int],
    num_queries: int,
    no_object_weight: float,
    *,
    shares: int = 1,
    add: Callable[[Sequence[float]], Sequence[float]] = list,
) -> Totals:
    """Return the divisors of a batch, which do not depend on predictions.

    Args:
        counts: targets of each image of this process's part of the batch.
        num_queries: Q; an image with T targets has min(Q, T) matched queries.
        no_object_weight: class weight of the others.
        shares: into how many parts (processes x accumulated batches) the batch is split.
        add: sums numbers over the processes.
    """
    matched = sum(min(num_queries, count) for count in counts)
    masks, matched_all, queries = add([sum(counts), matched, num_queries * len(counts)])
    weight = matched_all + no_object_weight * (queries - matched_all)
    return Totals(max(masks / shares, 1.0), weight / shares)


def class_loss(
    logits: Tensor,
    targets: Sequence[Targets],
    matches: Sequence[Match],
    no_object_weight: float,
    total_weight: float,
) -> Tensor:
    """Cross-entropy of all queries, unmatched ones against "no object".

    Args:
        logits: (B, Q, K + 1), "no object" last.
        targets: targets of each image.
        matches: matched pairs of each image.
        no_object_weight: weight of the last class; all others have 1.
        total_weight: divisor of the weighted sum.
    """
    nothing = logits.shape[-1] - 1
    wanted = torch.full(logits.shape[:2], nothing, dtype=torch.long, device=logits.device)
    for row, target, match in zip(wanted, targets, matches, strict=True):
        row[match.queries.to(row.device)] = target.labels[match.targets.to(row.device)]
    weight = logits.new_ones(nothing + 1, dtype=torch.float32)
    weight[-1] = no_object_weight
    loss = F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), weight, reduction="sum")
    return loss / total_weight


def matched_masks(
    mask_logits: Tensor, targets: Sequence[Targets], matches: Sequence[Match]
) -> tuple[Tensor, Tensor]:
    """Collect the matched pairs of a batch.

    Args:
        mask_logits: (B, Q, h, w).
        targets: targets of each image, with masks of one size (T, H, W).
        matches: matched pairs of each image.

    Returns:
        Predicted logits (N, h, w) and target masks (N, H, W) float, images in order.
    """
    device = mask_logits.device
    pairs = list(zip(mask_logits, targets, matches, strict=True))
    predicted = torch.cat([logits[match.queries.to(device)] for logits, _, match in pairs])
    wanted = torch.cat([target.masks[match.targets.to(device)] for _, target, match in pairs])
    return predicted.float(), wanted.float()


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps at points, bilinearly, with zeros outside.

    Args:
        maps: (N, H, W) float.
        points: (N, P, 2), or (1, P, 2) for all maps: (x, y) in 0..1 of the side lengths.

    Returns:
        (N, P).
    """
    if len(points) == 1 and len(maps) != 1:  # one grid: the maps are its channels
        return _grid_sample(maps[None], points)[0]
    return _grid_sample(maps[:, None], points)[:, 0]


def uncertain_points(
    logits: Tensor,
    counts: Sequence[int],
    points: int,
    *,
    oversample: float,
    importance: float,
    draw: Draw,
) -> Tensor:
    """Choose points: most of them where a mask is least certain, the others anywhere.

    Args:
        logits: (N, h, w) of matched masks.
        counts: number of masks that belong to each image.
        points: P.
        oversample: candidates, as a multiple of P.
        importance: share of P that is taken from the candidates with the smallest |logit|.
        draw: source of random points.

    Returns:
        (N, P, 2), without gradient.
    """
    with torch.no_grad():
        candidates = draw(counts, int(points * oversample))
        kept = int(importance * points)
        certainty = sample_points(logits, candidates).abs()  # (N, candidates)
        index = certainty.topk(kept, dim=1, largest=False).indices
        chosen = candidates.gather(1, index[..., None].expand(-1, -1, 2))
        return torch.cat([chosen, draw(counts, points - kept)], dim=1)


def cross_entropy_loss(logits: Tensor, targets: Tensor, total_masks: float) -> Tensor:
    """Mean binary cross-entropy of each of (N, P) masks, summed and divided by `total_masks`."""
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return loss.mean(1).sum() / total_masks


def focal_loss(
    logits: Tensor, targets: Tensor, total_masks: float, alpha: float = 0.25, gamma: float = 2
) -> Tensor:
    """Mean focal loss of each of (N, P) masks, summed and divided by `total_masks`."""
    prob = logits.sigmoid()
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    missed = prob * (1 - targets) + (1 - prob) * targets
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return (balance * missed**gamma * loss).mean(1).sum() / total_masks


def dice_loss(logits: Tensor, targets: Tensor, total_masks: float) -> Tensor:
    """1 - (2 s.t + 1) / (sum s + sum t + 1) of (N, P) masks, summed, divided by `total_masks`."""
    prob = logits.sigmoid()
    overlap = 2 * (prob * targets).sum(1)
    return (1 - (overlap + 1) / (prob.sum(1) + targets.sum(1) + 1)).sum() / total_masks


def layer_suffixes(layers: int) -> list[str]:
    """Name the losses of supervised layers: `_0`, `_1`, ... and nothing for the last."""
    return [f"_{index}" for index in range(layers - 1)] + [""]


def _grid_sample(maps: Tensor, points: Tensor) -> Tensor:
    """Sample (N, C, H, W) at (N, P, 2): (N, C, P)."""
    grid = 2 * points[:, :, None].to(maps.dtype) - 1
    return F.grid_sample(maps, grid, align_corners=False)[..., 0]
