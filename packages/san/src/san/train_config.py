"""The settings of a training of SAN; the defaults are the published ones.

Source: SAN paper section 4.1; SPEC san 8.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from openvocab.training.settings import RunConfig, SegmentationTrainConfig


@dataclass(frozen=True)
class SANCriterionConfig:
    """Weights of the losses, which are also those of the matching costs, and numbers of points.

    Attributes:
        class_weight: weight of the cross-entropy over classes.
        mask_weight: weight of the binary cross-entropy of masks.
        dice_weight: weight of the dice loss of masks.
        points: number of points P at which masks are compared.
        oversample: candidates for uncertain points, as a multiple of P.
        importance: share of P that is chosen by uncertainty.
    """

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75


@dataclass(frozen=True)
class SANOptimizerConfig:
    """AdamW as published.

    Attributes:
        base_lr: learning rate at the start.
        weight_decay: weight decay of all parameters but position embeddings, queries and
            normalisation layers.
        side_multiplier: factor of the learning rate of the side adapter.
        clip_multiplier: factor of the learning rate of CLIP's position embedding.
    """

    base_lr: float = 1e-4
    weight_decay: float = 1e-4
    side_multiplier: float = 1.0
    clip_multiplier: float = 1.0


@dataclass(frozen=True)
class SANTrainConfig(SegmentationTrainConfig):
    """A training run of SAN.

    Attributes:
        criterion: the losses.
        optimizer: AdamW.
    """

    variant: str = "san_vit_b_16"
    clip: str = "ViT-B-16:openai"
    criterion: SANCriterionConfig = field(default_factory=SANCriterionConfig)
    optimizer: SANOptimizerConfig = field(default_factory=SANOptimizerConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(precision="fp16"))
