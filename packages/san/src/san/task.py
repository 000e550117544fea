"""The training task of SAN: its parameters, its initial weights and its losses.

Source: SAN paper section 4.1; SPEC san 8.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openvocab.clip.weights import load_clip
from openvocab.datasets.samples import SampleSet
from openvocab.errors import InputError
from openvocab.training.distributed import Processes
from openvocab.training.losses import Losses, PerImageDraws, Totals
from openvocab.training.schedule import decay_rule, parameter_groups
from openvocab.training.segmentation import SegmentationStep, SegmentationTask
from openvocab.training.segmentation_data import SegmentationBatch
from openvocab.weights.state_dict import fingerprint
from san import _convert
from san.config import SANInference, from_detectron2, load_published
from san.criterion import SANCriterion
from san.model import SAN
from san.segmenter import SANSegmenter
from san.train_config import SANOptimizerConfig, SANTrainConfig
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


def make_optimizer(network: SAN, config: SANOptimizerConfig) -> torch.optim.AdamW:
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
    """The step from a micro-batch to the losses of all supervised layers."""

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

    def __init__(
        self,
        network: SAN,
        config: SANTrainConfig,
        data: SampleSet,
        inference: SANInference | None = None,
    ) -> None:
        network.config = replace(network.config, num_classes=len(data.vocabulary))
        weight = network.config.no_object_weight
        super().__init__(
            config, data, num_queries=network.config.num_queries, no_object_weight=weight
        )
        self.network, self.clip = network, network.clip
        self.inference = inference or SANInference()
        self.templates = self.inference.templates
        self.module = SANStep(network, SANCriterion(config.criterion, weight))
        self.optimizer = make_optimizer(network, config.optimizer)

    @classmethod
    def build(
        cls,
        config: SANTrainConfig,
        original: Mapping[str, Any],
        data: SampleSet,
        *,
        resumed: bool,
    ) -> SANTask:
        """See `SegmentationTask`."""
        network, inference = build_network(config, original, resumed=resumed)
        return cls(network, config, data, inference)

    @classmethod
    def load_segmenter(
        cls, config: SANTrainConfig, original: Mapping[str, Any], device: torch.device
    ) -> SANSegmenter:
        """See `SegmentationTask`."""
        return _segmenter(*build_network(config, original, resumed=False), device)

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
        """Return the architecture, the rules of inference and the names of the training."""
        return {**metadata_of(self.network, self.inference), **self.trained_on()}

    def export(self, folder: Path) -> None:
        """Write `model_final.safetensors`, which stores its configuration."""
        final = folder / "model_final.safetensors"
        save_network(self.network, final, self.inference, self.trained_on())

    def segmenter(self, processes: Processes) -> SANSegmenter:
        """Return a segmenter with a copy of the weights, since it freezes them."""
        return _segmenter(copy.deepcopy(self.network), self.inference, processes.device)


def build_network(
    config: SANTrainConfig, original: Mapping[str, Any], *, resumed: bool
) -> tuple[SAN, SANInference]:
    """Build the network to start from, and return its rules of inference as well.

    Args:
        config: the training configuration, which names a checkpoint or a CLIP.
        original: an original configuration, whose `MODEL` tells the architecture; or nothing.
        resumed: all weights come from a checkpoint of this run, so none are needed here.
    """
    # An original file describes the architecture as a whole; KEY VALUE pairs alone change one.
    whole = from_detectron2(original) if "META_ARCHITECTURE" in original.get("MODEL", {}) else None
    if config.weights is not None:
        given, run = whole or (None, None)
        return load_network(find_checkpoint(config.weights), given, run, original)
    base = load_published(config.variant)
    architecture, inference = whole or from_detectron2(original, base=base)
    if resumed:
        return SAN(architecture), inference
    clip = load_clip(config.clip)
    if clip.config != architecture.clip:
        raise InputError(
            f"the CLIP {config.clip} is not the one of variant {config.variant}; "
            "leave out one of the two"
        )
    return SAN(architecture, clip), inference


def _segmenter(network: SAN, inference: SANInference, device: torch.device) -> SANSegmenter:
    return SANSegmenter(
        network, inference, device=str(device), weights_sha256=fingerprint(network.state_dict())
    )
