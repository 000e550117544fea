"""Train a side adapter: `python -m san.train --config-file san_vit_b_16`.

Source: SAN paper section 4.1; SPEC san 8.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openvocab.cli import run
from openvocab.clip.weights import load_clip
from openvocab.datasets.samples import SampleSet
from openvocab.errors import InputError
from openvocab.training import RunConfig, World, decay_rule, parameter_groups
from openvocab.training.command import available_recipes
from openvocab.training.losses import Losses, PerImageDraws, Totals
from openvocab.training.segmentation import (
    SegmentationStep,
    SegmentationTask,
    SegmentationTrainConfig,
    segmentation_command,
)
from openvocab.training.segmentation_data import SegmentationBatch
from openvocab.weights.state_dict import fingerprint
from san import _convert
from san.config import ARCHITECTURES, SANConfig, from_detectron2
from san.criterion import CriterionConfig, SANCriterion
from san.model import SAN
from san.segmenter import SANSegmenter
from san.weights import (
    find_checkpoint,
    load_network,
    load_network_state,
    metadata_of,
    save_network,
)

# Positions and queries, which are not decayed.
_UNDECAYED = (
    "absolute_pos_embed",
    "positional_embedding",
    "pos_embed",
    "query_embed",
    "relative_position_bias_table",
)
_KEYS = {"SOLVER.BACKBONE_MULTIPLIER": "optimizer.side_multiplier",
         "SOLVER.CLIP_MULTIPLIER": "optimizer.clip_multiplier",
         "MODEL.SAN.CLASS_WEIGHT": "criterion.class_weight",
         "MODEL.SAN.MASK_WEIGHT": "criterion.mask_weight",
         "MODEL.SAN.DICE_WEIGHT": "criterion.dice_weight",
         "MODEL.SAN.TRAIN_NUM_POINTS": "criterion.points",
         "MODEL.SAN.OVERSAMPLE_RATIO": "criterion.oversample",
         "MODEL.SAN.IMPORTANCE_SAMPLE_RATIO": "criterion.importance"}  # fmt: skip
_ALIASES = {
    "san_clip_vit_res4_coco": "san_vit_b_16",
    "san_clip_vit_large_res4_coco": "san_vit_large_14",
}


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW as published.

    Attributes:
        base_lr: learning rate at the start.
        weight_decay: of everything but positions, queries and normalisation layers.
        side_multiplier: of the learning rate of the side adapter.
        clip_multiplier: of the learning rate of CLIP's position embedding.
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
    criterion: CriterionConfig = field(default_factory=CriterionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(precision="fp16"))


def make_optimizer(network: SAN, config: OptimizerConfig) -> torch.optim.AdamW:
    """Freeze what SAN does not train, and group the rest by learning rate and weight decay.

    The norms of the fusion layers are decayed: in the original they are a class of its own, which
    its rule for norms did not know (SPEC san 8).
    """
    network.requires_grad_(False)
    trained = network.trainable_parameters()

    def rate(name: str) -> float:
        side = config.side_multiplier if name.startswith("side_adapter.") else 1.0
        clip = config.clip_multiplier if name.startswith("clip.") else 1.0
        return config.base_lr * side * clip

    for parameter in trained.values():
        parameter.requires_grad_(True)
    decay = decay_rule(network, config.weight_decay, _UNDECAYED, but=".fusion_layers.")
    return torch.optim.AdamW(parameter_groups(trained, rate=rate, decay=decay))


class SANStep(SegmentationStep):
    """From a micro-batch to the losses of all supervised layers."""

    def __init__(self, network: SAN, criterion: SANCriterion) -> None:
        super().__init__()
        self.network, self.criterion = network, criterion

    def forward(self, batch: SegmentationBatch, totals: Totals) -> Losses:
        """See `SegmentationStep`."""
        images = self.network.preprocess(list(batch["images"]))
        classifier = self.network.classifier(self.text)
        predictions = self.network(images, classifier, all_layers=True)
        draw = PerImageDraws(batch["seeds"], images.device)
        return self.criterion(predictions, self.targets(batch), totals, draw)


class SANTask(SegmentationTask):
    """Everything the engine needs to train a SAN."""

    def __init__(self, network: SAN, config: SANTrainConfig, data: SampleSet) -> None:
        network.config = replace(network.config, num_classes=len(data.vocabulary))
        weight = network.config.no_object_weight
        super().__init__(
            config, data, num_queries=network.config.num_queries, no_object_weight=weight
        )
        self.network, self.clip = network, network.clip
        self.templates = network.config.templates
        self.module = SANStep(network, SANCriterion(config.criterion, weight))
        self.optimizer = make_optimizer(network, config.optimizer)

    @property
    def checkpointed(self) -> Sequence[nn.Module]:
        """The blocks of the side ViT and of CLIP's shallow half."""
        shallow = self.network.clip.visual.blocks[: self.network.config.split]
        return [*self.network.side_adapter.vit_model.blocks, *shallow]

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the weights under the original's names."""
        return _convert.to_official(self.network.state_dict(), self.network.config)

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load weights with the original's names."""
        load_network_state(self.network, tensors, source="the checkpoint")

    def metadata(self) -> Mapping[str, Any]:
        """Return the architecture."""
        return metadata_of(self.network)

    def export(self, folder: Path) -> None:
        """Write `model_final.safetensors`, which stores its configuration."""
        save_network(self.network, folder / "model_final.safetensors")

    def segmenter(self, world: World) -> SANSegmenter:
        """Return a segmenter with a copy of the weights, since it freezes them."""
        return _segmenter(copy.deepcopy(self.network), world)


def build_network(config: SANTrainConfig, original: Mapping[str, Any], *, resumed: bool) -> SAN:
    """Build the network to start from.

    Args:
        config: names a checkpoint, or a CLIP.
        original: an original configuration, whose `MODEL` tells the architecture; or nothing.
        resumed: all weights come from a checkpoint of this run, so none are needed here.
    """
    architecture = from_detectron2(original) if "SAN" in original.get("MODEL", {}) else None
    if config.weights is not None:
        return load_network(find_checkpoint(config.weights), architecture)
    architecture = architecture or _variant(config.variant)
    if resumed:
        return SAN(architecture)
    clip = load_clip(config.clip)
    if clip.config != architecture.clip:
        raise InputError(f"the CLIP {config.clip} is not the one of variant {config.variant}")
    return SAN(architecture, clip)


def _variant(name: str) -> SANConfig:
    if name not in ARCHITECTURES:
        raise InputError(f"variant {name!r} is unknown; use {' or '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]()


def _segmenter(network: SAN, world: World) -> SANSegmenter:
    return SANSegmenter(
        network, device=str(world.device), weights_sha256=fingerprint(network.state_dict())
    )


def make_task(
    config: SANTrainConfig, original: Mapping[str, Any], data: SampleSet, resumed: bool
) -> SANTask:
    """Return what is trained; see `segmentation_command`."""
    return SANTask(build_network(config, original, resumed=resumed), config, data)


def make_segmenter(
    config: SANTrainConfig, original: Mapping[str, Any], world: World
) -> SANSegmenter:
    """Return what `--eval-only` evaluates."""
    return _segmenter(build_network(config, original, resumed=False), world)


COMMAND = segmentation_command(
    "san.train",
    SANTrainConfig,
    make_task,
    make_segmenter,
    description="Train a side adapter network beside a frozen CLIP.",
    recipes=f"recipes: {', '.join(available_recipes('san'))}\n\n"
    "The published recipe (san_vit_b_16):",
    keys=_KEYS,
    aliases=_ALIASES,
)
build_parser, main = COMMAND.build_parser, COMMAND.main


def cli() -> None:
    """Run as an installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    sys.exit(run(main))
