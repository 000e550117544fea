"""SAN's training loss: matching at random points, and losses at the most uncertain points.

Source: SAN paper section 3.3; SPEC san 8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openvocab.training.losses import (
    Draw,
    Losses,
    Targets,
    Totals,
    class_loss,
    cross_entropy_loss,
    dice_loss,
    layer_suffixes,
    matched_masks,
    sample_points,
    uncertain_points,
)
from openvocab.training.matching import Match, assign, class_cost, cross_entropy_cost, dice_cost
from san.model import SANPrediction
from san.train_config import SANCriterionConfig


class SANCriterion:
    """The weighted losses of all supervised layers."""

    def __init__(self, config: SANCriterionConfig, no_object_weight: float = 0.1) -> None:
        self.config = config
        self.no_object_weight = no_object_weight

    def __call__(
        self,
        predictions: Sequence[SANPrediction],
        targets: Sequence[Targets],
        totals: Totals,
        draw: Draw,
    ) -> Losses:
        """Match and compare every layer separately, the last one first.

        Args:
            predictions: predictions of the supervised layers in their order, the final one last.
            targets: targets of each of the B images, with masks of one size.
            totals: divisors of the losses, see `openvocab.training.losses.totals_of`.
            draw: source of random points.

        Returns:
            `loss_ce`, `loss_mask`, `loss_dice` of the last layer, and with a suffix `_0`, `_1`, ...
            those of the earlier ones; already multiplied by their weights.
        """
        losses: Losses = {}
        named = list(zip(predictions, layer_suffixes(len(predictions)), strict=True))
        for prediction, suffix in [named[-1], *named[:-1]]:
            matches = self.match(prediction, targets, draw)
            found = self.compare(prediction, targets, matches, totals, draw)
            losses |= {name + suffix: loss for name, loss in found.items()}
        return losses

    @torch.no_grad()
    def match(
        self, prediction: SANPrediction, targets: Sequence[Targets], draw: Draw
    ) -> list[Match]:
        """Pair the queries of each image with its targets at P random points."""
        points = draw([1] * len(targets), self.config.points)  # (B, P, 2)
        with torch.autocast(points.device.type, enabled=False):
            costs = [
                self.cost(classes, masks, target, point[None])
                for classes, masks, target, point in zip(
                    prediction.class_logits, prediction.mask_logits, targets, points, strict=True
                )
            ]
        return [assign(cost) for cost in costs]

    def cost(
        self, class_logits: Tensor, mask_logits: Tensor, target: Targets, points: Tensor
    ) -> Tensor:
        """Return the matching cost (Q, T) of one image at points (1, P, 2)."""
        config = self.config
        logits = sample_points(mask_logits.float(), points)  # (Q, P)
        wanted = sample_points(target.masks.float(), points)  # (T, P)
        return (
            config.mask_weight * cross_entropy_cost(logits, wanted)
            + config.class_weight * class_cost(class_logits, target.labels)
            + config.dice_weight * dice_cost(logits, wanted)
        )

    def compare(
        self,
        prediction: SANPrediction,
        targets: Sequence[Targets],
        matches: Sequence[Match],
        totals: Totals,
        draw: Draw,
    ) -> Losses:
        """Return the weighted losses of one layer."""
        config = self.config
        with torch.autocast(prediction.mask_logits.device.type, enabled=False):
            logits, masks = matched_masks(prediction.mask_logits, targets, matches)
            counts = [len(match.queries) for match in matches]
            points = uncertain_points(
                logits,
                counts,
                config.points,
                oversample=config.oversample,
                importance=config.importance,
                draw=draw,
            )
            logits = sample_points(logits, points)  # (N, P)
            with torch.no_grad():
                masks = sample_points(masks, points)
            classes = class_loss(
                prediction.class_logits,
                targets,
                matches,
                self.no_object_weight,
                totals.class_weight,
            )
            return {
                "loss_ce": config.class_weight * classes,
                "loss_mask": config.mask_weight * cross_entropy_loss(logits, masks, totals.masks),
                "loss_dice": config.dice_weight * dice_loss(logits, masks, totals.masks),
            }
