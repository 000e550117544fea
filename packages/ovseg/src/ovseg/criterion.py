"""The loss of OVSeg's first stage: MaskFormer's, on whole masks.

Source: OVSeg paper section 3.1; SPEC ovseg 10.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from openvocab.training.losses import (
    Losses,
    Targets,
    Totals,
    class_loss,
    dice_loss,
    focal_loss,
    layer_suffixes,
    matched_masks,
)
from openvocab.training.matching import Match, assign, class_cost, dice_cost, focal_cost
from ovseg.model import Proposals
from ovseg.train_config import OVSegCriterionConfig


class OVSegCriterion:
    """The weighted losses of all decoder layers."""

    def __init__(self, config: OVSegCriterionConfig, no_object_weight: float = 0.1) -> None:
        self.config = config
        self.no_object_weight = no_object_weight

    def __call__(self, proposals: Proposals, targets: Sequence[Targets], totals: Totals) -> Losses:
        """Match and compare every layer separately.

        Args:
            proposals: proposals of all L decoder layers, the final ones last.
            targets: targets of each of the B images, with masks of one size.
            totals: divisors of the losses, see `openvocab.training.losses.totals_of`.

        Returns:
            `loss_ce`, `loss_mask`, `loss_dice` of the last layer, and with a suffix `_0`, `_1`, ...
            those of the earlier ones; already multiplied by their weights.
        """
        losses: Losses = {}
        for classes, masks, suffix in zip(
            proposals.class_logits,
            proposals.mask_logits,
            layer_suffixes(len(proposals.class_logits)),
            strict=True,
        ):
            matches = self.match(classes, masks, targets)
            found = self.compare(classes, masks, targets, matches, totals)
            losses |= {name + suffix: loss for name, loss in found.items()}
        return losses

    @torch.no_grad()
    def match(
        self, class_logits: Tensor, mask_logits: Tensor, targets: Sequence[Targets]
    ) -> list[Match]:
        """Pair the queries of each image with its targets.

        Args:
            class_logits: (B, Q, K + 1).
            mask_logits: (B, Q, h, w).
            targets: targets of each image.
        """
        with torch.autocast(mask_logits.device.type, enabled=False):
            costs = [
                self.cost(*image) for image in zip(class_logits, mask_logits, targets, strict=True)
            ]
        return [assign(cost) for cost in costs]

    def cost(self, class_logits: Tensor, mask_logits: Tensor, target: Targets) -> Tensor:
        """Return the matching cost (Q, T) of one image, at the resolution of its predictions."""
        config = self.config
        wanted = F.interpolate(target.masks[:, None].float(), mask_logits.shape[-2:])
        wanted = wanted.flatten(1)  # (T, h * w)
        logits = mask_logits.float().flatten(1)  # (Q, h * w)
        return (
            config.class_weight * class_cost(class_logits, target.labels)
            + config.mask_weight * focal_cost(logits, wanted)
            + config.dice_weight * dice_cost(logits, wanted)
        )

    def compare(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        targets: Sequence[Targets],
        matches: Sequence[Match],
        totals: Totals,
    ) -> Losses:
        """Return the weighted losses of one layer; masks are compared at the targets' size."""
        config = self.config
        with torch.autocast(mask_logits.device.type, enabled=False):
            logits, masks = matched_masks(mask_logits, targets, matches)
            size = masks.shape[-2:]
            logits = F.interpolate(logits[:, None], size, mode="bilinear").flatten(1)
            masks = masks.flatten(1)  # (N, H * W)
            classes = class_loss(
                class_logits, targets, matches, self.no_object_weight, totals.class_weight
            )
            return {
                "loss_ce": config.class_weight * classes,
                "loss_mask": config.mask_weight * focal_loss(logits, masks, totals.masks),
                "loss_dice": config.dice_weight * dice_loss(logits, masks, totals.masks),
            }
