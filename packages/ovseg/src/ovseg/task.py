"""The training task of OVSeg's proposals: its parameters, its initial weights and its losses.

Source: OVSeg paper section 3.1; SPEC ovseg 10.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openvocab.datasets.samples import SampleSet
from openvocab.training.distributed import Processes
from openvocab.training.losses import Losses, Targets, Totals
from openvocab.training.schedule import decay_rule, parameter_groups
from openvocab.training.segmentation import SegmentationStep, SegmentationTask
from openvocab.training.segmentation_data import SegmentationBatch
from openvocab.weights.shipped import read_shared
from openvocab.weights.state_dict import fingerprint, load_strict
from ovseg._convert import (
    PROMPTS,
    config_from_detectron2,
    load_backbone,
    override,
    read_mask_clip,
)
from ovseg.config import InferenceConfig, OVSegConfig, load_published
from ovseg.criterion import OVSegCriterion
from ovseg.model import ClassWeights, OVSeg
from ovseg.segmenter import OVSegSegmenter
from ovseg.train_config import OVSegOptimizerConfig, OVSegTrainConfig
from ovseg.weights import (
    find_checkpoint,
    load_model,
    metadata_of,
    read_config,
    save_model,
)

_TRAINED = ("backbone.", "sem_seg_head.", "clip_adapter.non_object_embedding")
_UNDECAYED = ("relative_position_bias_table", "absolute_pos_embed")
_CLIPS = {"ViT-L/14": "ViT-L-14:openai", "ViT-B/16": "ViT-B-16:openai"}


def mark_trainable(model: OVSeg) -> dict[str, nn.Parameter]:
    """Freeze CLIP, and return the trained parameters; frozen stages of the backbone stay frozen."""
    trained = {}
    for name, parameter in model.named_parameters():
        if not name.startswith(_TRAINED):
            parameter.requires_grad_(False)
        elif parameter.requires_grad:
            trained[name] = parameter
    return trained


def make_optimizer(model: OVSeg, config: OVSegOptimizerConfig) -> torch.optim.AdamW:
    """Group the trained parameters by learning rate and weight decay."""

    def rate(name: str) -> float:
        backbone = "backbone" in name
        return config.base_lr * (config.backbone_multiplier if backbone else 1.0)

    decay = decay_rule(model, config.weight_decay, _UNDECAYED)
    return torch.optim.AdamW(parameter_groups(mark_trainable(model), rate=rate, decay=decay))


def stack_targets(targets: Sequence[Targets], size: Sequence[int]) -> list[Targets]:
    """Pad masks (T, h, w) with zeros, on the right and below, to one size (H, W)."""
    padded = []
    for labels, masks in targets:
        below, right = size[0] - masks.shape[1], size[1] - masks.shape[2]
        padded.append(Targets(labels, F.pad(masks, (0, right, 0, below))))
    return padded


class OVSegStep(SegmentationStep):
    """The step from a micro-batch to the losses of all decoder layers."""

    def __init__(self, model: OVSeg, criterion: OVSegCriterion) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion

    def forward(self, batch: SegmentationBatch, totals: Totals) -> Losses:
        """See `SegmentationStep`."""
        images, step = batch["images"], self.model.config.size_divisibility
        nothing = F.normalize(self.model.clip_adapter.non_object_embedding, dim=-1, eps=0.0)
        classifier = torch.cat([self.text, nothing])
        size = [-(-side // step) * step for side in images.shape[-2:]]
        proposals = self.model(list(images), classifier, all_layers=True)
        return self.criterion(proposals, stack_targets(self.targets(batch), size), totals)


class OVSegTask(SegmentationTask):
    """Everything the engine needs to train OVSeg's proposals."""

    def __init__(
        self,
        model: OVSeg,
        config: OVSegTrainConfig,
        data: SampleSet,
        inference: InferenceConfig | None = None,
    ) -> None:
        weight, classes = model.config.no_object_weight, len(data.vocabulary)
        model.config = replace(model.config, num_training_classes=classes)
        model.criterion = ClassWeights(classes, weight)
        super().__init__(
            config, data, num_queries=model.config.num_queries, no_object_weight=weight
        )
        self.model, self.inference = model, inference or InferenceConfig()
        self.clip = model.clip_adapter.clip_model
        own = self.inference.own_templates
        self.templates = own or self.inference.template_set or "vild"
        self.module = OVSegStep(model, OVSegCriterion(config.criterion, weight))
        self.optimizer = make_optimizer(model, config.optimizer)

    @classmethod
    def build(
        cls,
        config: OVSegTrainConfig,
        original: Mapping[str, Any],
        data: SampleSet,
        *,
        resumed: bool,
    ) -> OVSegTask:
        """See `SegmentationTask`."""
        model, inference = build_model(config, original, resumed=resumed)
        return cls(model, config, data, inference)

    @classmethod
    def load_segmenter(
        cls, config: OVSegTrainConfig, original: Mapping[str, Any], device: torch.device
    ) -> OVSegSegmenter:
        """See `SegmentationTask`."""
        return _segmenter(*build_model(config, original, resumed=False), device)

    @property
    def checkpointed(self) -> Sequence[nn.Module]:
        """The blocks of the backbone."""
        blocks = ("SwinBlock", "Bottleneck")
        return [m for m in self.model.backbone.modules() if type(m).__name__ in blocks]

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the weights under the official names, which are ours."""
        return self.model.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load weights with the official names."""
        load_strict(self.model, tensors, source="the checkpoint")

    def metadata(self) -> Mapping[str, Any]:
        """Return the architecture, the rules of inference and the names of the training."""
        return {**metadata_of(self.model, self.inference), **self.trained_on()}

    def export(self, folder: Path) -> None:
        """Write `model_final.safetensors`, which stores its configuration."""
        final = folder / "model_final.safetensors"
        save_model(self.model, final, self.inference, self.trained_on())

    def segmenter(self, processes: Processes) -> OVSegSegmenter:
        """Return a segmenter with a copy of the weights, since it freezes them."""
        return _segmenter(copy.deepcopy(self.model), self.inference, processes.device)


def build_model(
    config: OVSegTrainConfig, original: Mapping[str, Any], *, resumed: bool
) -> tuple[OVSeg, InferenceConfig]:
    """Build the model to start from.

    Args:
        config: the training configuration, which names a checkpoint of OVSeg, or a CLIP and perhaps
            a pretrained backbone.
        original: an original configuration, whose `MODEL` tells the architecture; or nothing.
        resumed: all weights come from a checkpoint of this run, so none are needed here.
    """
    weights = None if config.weights is None else find_checkpoint(config.weights)
    tensors = {} if weights is None else _checkpoint(weights)
    if weights is not None and tensors:
        if "BACKBONE" in original.get("MODEL", {}):
            architecture, inference = _architecture(config, original)
        else:  # what the checkpoint stores, with the KEY VALUE pairs over it
            architecture, inference = read_config(None, tensors, weights, original)
        return load_model(architecture, tensors, source=str(weights)), inference
    architecture, inference = _architecture(config, original)
    if resumed:
        return OVSeg(architecture), inference
    clip, clip_tensors, prompted = read_mask_clip(_CLIPS.get(config.clip, config.clip), None)
    depth = len(clip_tensors[PROMPTS]) if prompted else architecture.mask_prompt_depth
    model = OVSeg(replace(architecture, clip=clip, mask_prompt_depth=depth))
    encoder = model.clip_adapter.clip_model
    if not prompted:
        clip_tensors = {**clip_tensors, PROMPTS: encoder.visual.mask_embedding.detach()}
    load_strict(encoder, clip_tensors, source=config.clip)
    if weights is not None:
        load_backbone(model.backbone, weights)
    return model, inference


def _checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an OVSeg checkpoint, or nothing if the file holds a backbone."""
    tensors = read_shared(path)
    return tensors if any(name.startswith("sem_seg_head.") for name in tensors) else {}


def _architecture(
    config: OVSegTrainConfig, original: Mapping[str, Any]
) -> tuple[OVSegConfig, InferenceConfig]:
    if "MODEL" not in original or "BACKBONE" not in original["MODEL"]:
        return override(*load_published(config.variant), original)
    known = None if config.clip in _CLIPS else load_published(config.variant)[0].clip
    return config_from_detectron2(original, clip=known)


def _segmenter(model: OVSeg, inference: InferenceConfig, device: torch.device) -> OVSegSegmenter:
    sha256 = fingerprint(model.state_dict())
    return OVSegSegmenter(model, inference, device=str(device), weights_sha256=sha256)
