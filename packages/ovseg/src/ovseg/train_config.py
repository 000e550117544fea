"""The settings of OVSeg's two trainings, of the proposals and of CLIP on masked crops.

Source: OVSeg paper sections 3.1 to 3.3; SPEC ovseg 10 and 11.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from openvocab.clip.config import Activation
from openvocab.datasets.transforms import TransformConfig
from openvocab.errors import InputError
from openvocab.training.schedule import PolySchedule
from openvocab.training.settings import RunConfig, SegmentationTrainConfig

Duplicates = Literal["negative", "ignore"]


@dataclass(frozen=True)
class OVSegCriterionConfig:
    """Weights of the losses, which are also those of the matching costs.

    Attributes:
        class_weight: weight of the cross-entropy over classes.
        mask_weight: weight of the focal loss of masks.
        dice_weight: weight of the dice loss of masks.
    """

    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 1.0


@dataclass(frozen=True)
class OVSegOptimizerConfig:
    """AdamW as published.

    Attributes:
        base_lr: learning rate behind the warm-up.
        weight_decay: weight decay of all parameters but norms, embeddings and position tables.
        backbone_multiplier: factor of the learning rate of the backbone.
    """

    base_lr: float = 6e-5
    weight_decay: float = 0.01
    backbone_multiplier: float = 1.0


@dataclass(frozen=True)
class OVSegTrainConfig(SegmentationTrainConfig):
    """A training run of OVSeg's proposals.

    `clip` may also be a fine-tuned CLIP, and `weights` a pretrained backbone.

    Attributes:
        criterion: the losses.
        optimizer: AdamW.
    """

    variant: str = "ovseg_swinB_vitL_bs32_120k"
    clip: str = "ViT-L-14:openai"
    transform: TransformConfig = field(
        default_factory=lambda: TransformConfig(min_sizes=tuple(range(320, 1281, 64)))
    )
    criterion: OVSegCriterionConfig = field(default_factory=OVSegCriterionConfig)
    optimizer: OVSegOptimizerConfig = field(default_factory=OVSegOptimizerConfig)
    schedule: PolySchedule = field(default_factory=lambda: PolySchedule(120000, warmup_steps=1500))


@dataclass(frozen=True)
class FinetuneOptimizerConfig:
    """AdamW as published.

    Attributes:
        base_lr: learning rate behind the warm-up.
        weight_decay: weight decay of matrices; vectors, norms, biases and the temperature have
            none.
        prompt_weight_decay: weight decay of mask prompts.
        prompt_lr_multiplier: factor of the learning rate of mask prompts (the original's schedule
            overwrites it).
        beta1: AdamW's decay rate of the mean gradient.
        beta2: AdamW's decay rate of the mean squared gradient.
        eps: AdamW's constant against division by zero.
    """

    base_lr: float = 5e-6
    weight_decay: float = 0.2
    prompt_weight_decay: float = 0.0
    prompt_lr_multiplier: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6


@dataclass(frozen=True)
class FinetuneConfig:
    """An adaptation of CLIP.

    Attributes:
        clip: CLIP to start from: "name:tag", or a file; for mask prompts a fine-tuned CLIP.
        activation: activation function for a file that does not name one; None: QuickGELU, as in
            all CLIPs by OpenAI.
        pairs: TSV with the columns filepath and title, from `ovseg.collect_pairs`.
        validation: TSV of pairs to classify among all their titles; None for none.
        mask_prompt_depth: 0 fine-tunes the image tower; above, that many layers of prompts are
            learned and all else is locked.
        duplicates: treatment of a crop and the same noun of another crop: a "negative" pair as in
            the original, or one to "ignore". (To call them positive changes nothing: equal nouns
            have equal embeddings, so the sum over a group of them is the same.)
        scale: share of a crop's area that random crops keep.
        epochs: passes over the pairs.
        warmup_steps: number of steps in which the learning rate rises.
        optimizer: AdamW.
        run: settings of the run.
    """

    clip: str = "ViT-L-14:openai"
    activation: Activation | None = None
    pairs: Path = Path("pairs.tsv")
    validation: Path | None = None
    mask_prompt_depth: int = 0
    duplicates: Duplicates = "negative"
    scale: tuple[float, float] = (0.9, 1.0)
    epochs: int = 5
    warmup_steps: int = 100
    optimizer: FinetuneOptimizerConfig = field(default_factory=FinetuneOptimizerConfig)
    run: RunConfig = field(
        default_factory=lambda: RunConfig(batch=128, precision="fp16", clip_norm=None)
    )

    def __post_init__(self) -> None:
        if self.mask_prompt_depth < 0 or self.epochs < 1:
            raise InputError(
                f"mask_prompt_depth {self.mask_prompt_depth} and epochs {self.epochs} must be at "
                "least 0 and 1"
            )
