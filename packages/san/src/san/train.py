"""Train a side adapter: `python -m san.train --config-file san_vit_b_16`.

Source: SAN paper section 4.1; SPEC san 8.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openvocab.cli import run
from openvocab.clip.prompts import TextEncoder
from openvocab.clip.weights import load_clip
from openvocab.datasets.transforms import TransformConfig
from openvocab.errors import InputError
from openvocab.losses import Losses, PerImageDraws, Totals, targets_of
from openvocab.samples import SampleSet
from openvocab.training import (
    PolySchedule,
    RunConfig,
    World,
    names_of_embeddings,
    names_of_norms,
    parameter_groups,
)
from openvocab.training.command import (
    Settings,
    add_training_arguments,
    available_recipes,
    describe_recipe,
    launch_if_asked,
    load_settings,
    settings_of,
)
from openvocab.training.segmentation import (
    SegmentationTask,
    evaluate_segmentation,
    train_segmentation,
)
from openvocab.training.segmentation_data import DataConfig, SegmentationBatch
from openvocab.weights import fingerprint
from san import _convert
from san.config import ARCHITECTURES, SANConfig, from_detectron2
from san.criterion import CriterionConfig, SANCriterion
from san.model import SAN
from san.segmenter import SANSegmenter
from san.weights import find_checkpoint, load_network, load_network_state, save_network

# Names (their last part) whose values are positions or queries and are not decayed.
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
class SANTrainConfig:
    """A training run of SAN.

    Attributes:
        variant: the architecture, where neither weights nor an original configuration tell it.
        clip: the CLIP beside which the adapter is trained, "name:tag" or a file.
        weights: a SAN checkpoint to start from (its CLIP is taken too); None starts from `clip`.
        data: what to train and evaluate on.
        transform: how images are varied.
        criterion: the losses.
        optimizer: AdamW.
        schedule: of the learning rate.
        run: how it is carried out.
    """

    variant: str = "san_vit_b_16"
    clip: str = "ViT-B-16:openai"
    weights: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    transform: TransformConfig = field(default_factory=TransformConfig)
    criterion: CriterionConfig = field(default_factory=CriterionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: PolySchedule = field(default_factory=lambda: PolySchedule(60000))
    run: RunConfig = field(default_factory=lambda: RunConfig(precision="fp16"))


def make_optimizer(network: SAN, config: OptimizerConfig) -> torch.optim.AdamW:
    """Freeze what SAN does not train, and group the rest by learning rate and weight decay.

    The norms of the fusion layers are decayed: in the original they are a class of its own, which
    its rule for norms did not know (SPEC san 8).
    """
    network.requires_grad_(False)
    trained = network.trainable_parameters()
    norms = {n for n in names_of_norms(network) if ".fusion_layers." not in n}
    undecayed = norms | names_of_embeddings(network)

    def decay(name: str) -> float:
        last = name.rpartition(".")[2]
        free = name in undecayed or any(word in last for word in _UNDECAYED)
        return 0.0 if free else config.weight_decay

    def rate(name: str) -> float:
        side = config.side_multiplier if name.startswith("side_adapter.") else 1.0
        clip = config.clip_multiplier if name.startswith("clip.") else 1.0
        return config.base_lr * side * clip

    for parameter in trained.values():
        parameter.requires_grad_(True)
    return torch.optim.AdamW(parameter_groups(trained, rate=rate, decay=decay))


class SANStep(nn.Module):
    """From a micro-batch to weighted losses: what the processes run in parallel."""

    text: Tensor

    def __init__(self, network: SAN, criterion: SANCriterion) -> None:
        super().__init__()
        self.network, self.criterion = network, criterion
        self.register_buffer("text", torch.empty(0), persistent=False)

    def forward(self, batch: SegmentationBatch, totals: Totals) -> Losses:
        """Return the losses of all supervised layers."""
        images = self.network.preprocess(list(batch["images"]))
        targets = [targets_of(label, len(self.text)) for label in batch["labels"]]
        classifier = self.network.classifier(self.text)
        predictions = self.network(images, classifier, all_layers=True)
        draw = PerImageDraws(batch["seeds"], images.device)
        return self.criterion(predictions, targets, totals, draw)


class SANTask(SegmentationTask):
    """Everything the engine needs to train a SAN."""

    def __init__(self, network: SAN, config: SANTrainConfig, data: SampleSet) -> None:
        network.config = replace(network.config, num_classes=len(data.vocabulary))
        weight = network.config.no_object_weight
        super().__init__(
            config, data, num_queries=network.config.num_queries, no_object_weight=weight
        )
        self.network = network
        self.module = self.step = SANStep(network, SANCriterion(config.criterion, weight))
        self.optimizer = make_optimizer(network, config.optimizer)

    @property
    def checkpointed(self) -> Sequence[nn.Module]:
        """The blocks of the side ViT and of CLIP's shallow half."""
        shallow = self.network.clip.visual.blocks[: self.network.config.split]
        return [*self.network.side_adapter.vit_model.blocks, *shallow]

    def begin(self, device: torch.device) -> None:
        """Embed the training vocabulary, once: the text tower is frozen."""
        text = TextEncoder(self.network.clip)
        self.step.text = text.encode_names(self.names, self.network.config.templates).clone()

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the weights under the original's names."""
        return _convert.to_official(self.network.state_dict(), self.network.config)

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load weights with the original's names."""
        load_network_state(self.network, tensors, source="the checkpoint")

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


def train(config: SANTrainConfig, original: Mapping[str, Any], *, resume: bool) -> int:
    """Run a training; returns the exit code."""

    def make_task(data: SampleSet, resumed: bool) -> SANTask:
        return SANTask(build_network(config, original, resumed=resumed), config, data)

    return train_segmentation(config, make_task, resume=resume)


def evaluate_only(config: SANTrainConfig, original: Mapping[str, Any]) -> int:
    """Evaluate the given weights on every evaluation set, and print the scores."""
    if config.weights is None:
        raise InputError("--eval-only needs weights; give MODEL.WEIGHTS FILE, or --weights FILE")

    def make_segmenter(world: World) -> SANSegmenter:
        return _segmenter(build_network(config, original, resumed=False), world)

    return evaluate_segmentation(config, make_segmenter)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    result = argparse.ArgumentParser(
        prog="python -m san.train",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train a side adapter network beside a frozen CLIP.",
        epilog=f"recipes: {', '.join(available_recipes('san'))}\n\nThe published recipe "
        f"(san_vit_b_16):\n\n{describe_recipe(SANTrainConfig())}",
    )
    add_training_arguments(result, SANTrainConfig)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or evaluate."""
    args = build_parser().parse_args(argv)
    settings: Settings = settings_of(
        args, SANTrainConfig, package="san", keys=_KEYS, aliases=_ALIASES
    )
    config = load_settings(SANTrainConfig, settings)
    code = launch_if_asked(args, "san.train", argv)
    if code is not None:
        return code
    if args.eval_only:
        return evaluate_only(config, settings.original)
    return train(config, settings.original, resume=args.resume)


def cli() -> None:
    """Run as an installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    sys.exit(run(main))
