"""OVSeg as a segmenter, which turns images and names into label maps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from openvocab.clip.prompts import TextEncoder
from openvocab.computation import Precision, dtype_of, to_device
from openvocab.errors import InputError, NamesError
from openvocab.image import ImageArray, resize_shortest_edge
from openvocab.inference.confidence import (
    Evidence,
    calibration_line,
    grid_evidence,
    rated,
    use_calibration,
)
from openvocab.segmenter import BaseSegmenter, Names, Segmentation
from openvocab.semantic import (
    MaskGeometry,
    semantic_scores,
    vocabulary_labels,
    vocabulary_scores,
)
from openvocab.vocabulary import Vocabulary
from openvocab.weights.pretrained import Pretrained
from openvocab.weights.state_dict import save_state_dict
from ovseg.config import METADATA, InferenceConfig, SwinConfig, to_dict
from ovseg.ensemble import OTHERS, Branches, Votes, demo_names, ensemble
from ovseg.mask_clip import LOGIT_SCALE
from ovseg.model import OVSeg, mask_probability, vote

ProposalSource = Callable[[ImageArray], NDArray[Any] | Tensor]
"""Gives masks (Q, H, W), bool or 0..1, of any size, for an RGB image (h, w, 3) uint8."""

_CERTAIN = 200.0  # a logit whose sigmoid is exactly 0 or 1 in float32


@dataclass(frozen=True)
class ImageBranches:
    """The intermediate results for one resized image, before the ensemble and the choice of labels.

    Attributes:
        branches: both opinions on the proposals.
        no_object: MaskFormer's probability of "no object" (Q,).
        mask_logits: mask logits (Q, hs, ws), on a grid that is resized to `padded`.
        padded: size of the network's input (H, W).
        size: size (h, w) of the resized image.
    """

    branches: Branches
    no_object: Tensor
    mask_logits: Tensor
    padded: tuple[int, int]
    size: tuple[int, int]

    def mask_prob(self) -> Tensor:
        """Return mask probabilities at the resized image's size (Q, h, w)."""
        return mask_probability(self.mask_logits, self.padded, self.size)


@dataclass(frozen=True)
class Painting:
    """Class weights (R, W) and masks (R, hs, ws) that are summed to scores."""

    weights: Tensor
    no_object: Tensor
    mask_logits: Tensor
    padded: tuple[int, int]
    size: tuple[int, int]

    def geometry(self, output: tuple[int, int]) -> MaskGeometry:
        """Return how the masks are turned into masks of an output size."""
        return MaskGeometry(self.padded, self.size, output, resize_logits=False)


class OVSegSegmenter(Pretrained, BaseSegmenter):
    """Segments images of any size with any names; implements `openvocab.segmenter.Segmenter`."""

    method_key = "ovseg"

    def __init__(
        self,
        model: OVSeg,
        inference: InferenceConfig | None = None,
        *,
        device: str = "cpu",
        precision: Precision = "fp32",
        compile: bool = False,
        weights_sha256: str | None = None,
        variant: str | None = None,
        proposals: ProposalSource | None = None,
        cache_dir: str | Path | Literal[False] | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: the model; it is moved to the device, and lowered to the precision, in place.
            inference: rules of inference.
            device: device to run on.
            precision: number format of both branches, see `OVSeg.lower`; names are always encoded
                in fp32.
            compile: compile the networks with torch.compile, in place.
            weights_sha256: hash of the checkpoint, for the protocol card.
            variant: name of the configuration, for the protocol card.
            proposals: function that makes masks in place of MaskFormer, so that CLIP alone names
                them.
            cache_dir: folder for text embeddings, see `TextEncoder`.
        """
        self.model = model.eval().requires_grad_(False).to(device)
        self.inference, self.precision = inference or InferenceConfig(), precision
        self.weights_sha256 = weights_sha256 or "unsaved"
        self.variant = variant or _variant(model)
        self.proposals = proposals
        model.clip_adapter.text_encoder = TextEncoder(model.clip_adapter.clip_model, cache_dir)
        model.lower(dtype_of(precision))
        if compile:
            for part in (model.backbone, model.sem_seg_head, model.clip_adapter.clip_model.visual):
                part.compile()

    @property
    def text(self) -> TextEncoder:
        """The encoder of the names."""
        return self.model.clip_adapter.text_encoder

    def segment_arrays(
        self, images: list[ImageArray], vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        """Name every pixel; in demo mode pixels that no chosen proposal covers are -1."""
        return [self._segment(image, vocabulary, return_scores) for image in images]

    @torch.inference_mode()
    def scores_at(
        self, image: ImageArray, vocabulary: Vocabulary, output_size: tuple[int, int]
    ) -> Tensor:
        """Score an image in its own size, without resizing it first, for test-time augmentation.

        Args:
            image: (h, w, 3) uint8 RGB.
            vocabulary: vocabulary whose W words are scored.
            output_size: (H, W) of the scores.

        Returns:
            (W, H, W) float32.
        """
        painting = self.paint(self.look(image, vocabulary), vocabulary)
        geometry = painting.geometry(output_size)
        return semantic_scores(painting.weights, painting.mask_logits, geometry)

    def resize(self, image: ImageArray) -> ImageArray:
        """Resize an image (H, W, 3) by the configured rule."""
        return resize_shortest_edge(image, self.inference.min_size, self.inference.max_size)

    @torch.inference_mode()
    def look(self, image: ImageArray, vocabulary: Vocabulary) -> ImageBranches:
        """Run both branches on a resized image (h, w, 3)."""
        adapter = self.model.clip_adapter
        adapter.region = self.inference.region
        size = (image.shape[0], image.shape[1])
        tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        tensor = to_device(tensor, adapter.pixel_mean.device)
        classifier = self.classifier(vocabulary)
        if self.proposals is not None:
            return self._look_at(size, tensor, self.proposals(image), classifier)
        out = self.model([tensor], classifier)
        mask_logits = out.mask_logits[-1, 0].float()  # (Q, H/4, W/4)
        step = self.model.config.size_divisibility
        padded = (-(-size[0] // step) * step, -(-size[1] // step) * step)
        class_logits = out.class_logits[-1, 0].float()
        if self.inference.clip_ensemble:
            mask_prob = mask_probability(mask_logits, padded, size)
            branches = self.model.branches(tensor, class_logits, mask_prob, classifier)
        else:
            branches = _without_clip(class_logits)
        no_object = class_logits.softmax(-1)[:, -1]
        return ImageBranches(branches, no_object, mask_logits, padded, size)

    def _look_at(
        self,
        size: tuple[int, int],
        tensor: Tensor,
        masks: NDArray[Any] | Tensor,
        classifier: Tensor,
    ) -> ImageBranches:
        """Classify masks from another source with CLIP."""
        mask_prob = _fit(torch.as_tensor(masks).to(tensor.device), size)
        features, valid = self.model.clip_adapter.encode_proposals(tensor, mask_prob)
        clip_prob = (LOGIT_SCALE * features @ classifier[:-1].T).softmax(-1)
        everything = clip_prob.new_ones(len(valid), classifier.shape[0] - 1)
        branches = Branches(everything, clip_prob, valid)
        logits = mask_prob.logit().clamp(-_CERTAIN, _CERTAIN)
        return ImageBranches(branches, clip_prob.new_zeros(len(valid)), logits, size, size)

    @torch.inference_mode()
    def paint(self, found: ImageBranches, vocabulary: Vocabulary) -> Painting:
        """Return the weight of each proposal for each word, and the masks to sum."""
        votes = self.votes(found, vocabulary)
        if not len(votes.rows):
            return _nothing(found, len(vocabulary.words))
        no_object = found.no_object[votes.rows]
        if self.inference.mode == "eval" or self.proposals is not None:
            logits = found.mask_logits[votes.rows]
            return Painting(votes.weights, no_object, logits, found.padded, found.size)
        covered = self._covered(found, votes)
        logits = torch.where(covered, _CERTAIN, -_CERTAIN)  # the sigmoid gives back 1 and 0
        return Painting(votes.weights, no_object, logits, found.size, found.size)

    def votes(self, found: ImageBranches, vocabulary: Vocabulary) -> Votes:
        """Return the weight of each proposal for each word."""
        if self.proposals is not None:
            return ensemble(found.branches, 0.0)
        return vote(found.branches, self.inference, vocabulary.words)

    def _covered(self, found: ImageBranches, votes: Votes) -> Tensor:
        """Return the binary masks (R, h, w) of the proposals that vote."""
        chosen = replace(found, mask_logits=found.mask_logits[votes.rows])
        return chosen.mask_prob() > self.inference.region.mask_threshold

    def stored_settings(self) -> dict[str, Any]:
        """Return architecture and settings, see `Pretrained`."""
        if self.proposals is not None:
            raise InputError(
                "this OVSeg takes its masks from elsewhere, and no folder can hold that; save it "
                "without `proposals`, and give them again when loading"
            )
        return {METADATA: to_dict(self.model.config, self.inference)}

    def write_weights(self, files: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        """Write the checkpoint, see `Pretrained`."""
        save_state_dict(files[0], self.model.state_dict(), metadata)

    def describe(self) -> dict[str, Any]:
        """Return the lines of the protocol card that describe this segmenter."""
        inference, region = self.inference, self.inference.region
        lines: dict[str, Any] = {
            "method": "OVSeg",
            "variant": self.variant,
            "weights_sha256": self.weights_sha256,
            "resize_rule": f"short side {inference.min_size}, long side <= {inference.max_size}, "
            "Pillow bilinear on uint8, halves round up",
            "thresholds": {
                "mask_threshold": region.mask_threshold,
                "ensemble_weight": inference.ensemble_weight,
            },
            "post_processing": "best proposal of each class, thresholded, then resized"
            if inference.mode == "demo"
            else "soft masks weighted by class, then resized",
            "precision": self.precision,
            "device": str(self.model.clip_adapter.pixel_mean.device),
            "calibration": calibration_line(self),
            "mode": inference.mode,
            "clip_ensemble": inference.clip_ensemble,
            "mask_prompts": region.mask_prompts,
            "mask_fill": region.mask_fill,
            "expand_ratio": region.expand_ratio,
            "matting": region.matting,
            "max_regions": region.max_regions,
            "proposals": "MaskFormer" if self.proposals is None else type(self.proposals).__name__,
        }
        if own := inference.own_templates or inference.template_set:
            lines["model_templates"] = own
        return lines

    def vocabulary(self, names: Names) -> Vocabulary:
        """Return the vocabulary that is segmented; in demo mode a single name gets "others" too."""
        vocabulary = super().vocabulary(names)
        if self.inference.mode == "demo" and len(vocabulary.words) == 1 and self._knows_others:
            return Vocabulary(demo_names(vocabulary.names), vocabulary.templates)
        return vocabulary

    @cached_property
    def _knows_others(self) -> bool:
        """Whether this CLIP can encode the name that the demo adds; warns if it cannot."""
        try:
            self.text.encode_texts([OTHERS])
        except NamesError:
            warnings.warn(
                f"this CLIP does not know the word '{OTHERS}', which OVSeg sets beside a single "
                "name; give a second name, so that the first need not win everywhere",
                stacklevel=2,
            )
            return False
        return True

    def classifier(self, vocabulary: Vocabulary) -> Tensor:
        """Return the text classifier (W + 1, E) of a vocabulary's words and "no object"."""
        own = self.inference.own_templates or self.inference.template_set
        templates = own or vocabulary.templates
        return self.model.clip_adapter.classifier(vocabulary.words, templates)

    def with_inference(self, inference: InferenceConfig) -> OVSegSegmenter:
        """Return a segmenter of the same model with other rules of inference."""
        other = copy(self)
        other.inference = inference
        use_calibration(other, self.calibration)
        return other

    def with_proposals(self, proposals: ProposalSource) -> OVSegSegmenter:
        """Return a segmenter of the same model with another source of masks."""
        other = copy(self)
        other.proposals = proposals
        use_calibration(other, self.calibration)
        return other

    @torch.inference_mode()
    def label(
        self, painting: Painting, size: tuple[int, int], vocabulary: Vocabulary
    ) -> NDArray[np.int32]:
        """Return the labels (H, W) of a painting for an image of a size."""
        labels = vocabulary_labels(
            painting.weights,
            painting.no_object,
            painting.mask_logits,
            painting.geometry(size),
            vocabulary,
        )
        if self.inference.mode == "demo":
            labels[_blank(painting, size)] = -1
        return labels

    @torch.inference_mode()
    def _segment(
        self, image: ImageArray, vocabulary: Vocabulary, return_scores: bool
    ) -> Segmentation:
        painting = self.paint(self.look(self.resize(image), vocabulary), vocabulary)
        size = (image.shape[0], image.shape[1])
        labels = self.label(painting, size, vocabulary)
        scores = None
        if return_scores:
            words = semantic_scores(painting.weights, painting.mask_logits, painting.geometry(size))
            scores = vocabulary_scores(words, vocabulary)
        found = Segmentation(labels=labels, vocabulary=vocabulary, scores=scores)
        return rated(self, found, lambda: _evidence(painting, size, vocabulary))


def _evidence(painting: Painting, size: tuple[int, int], vocabulary: Vocabulary) -> Evidence:
    geometry = painting.geometry(size)
    return grid_evidence(painting.weights, painting.mask_logits, geometry, vocabulary)


def _nothing(found: ImageBranches, words: int) -> Painting:
    """Return one proposal without pixels and with zero probabilities, so that all scores are 0."""
    logits = found.mask_logits.new_full((1, *found.size), -_CERTAIN)
    silence = logits.new_zeros(1, words)
    return Painting(silence, silence[:, 0], logits, found.size, found.size)


def _blank(painting: Painting, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels (H, W) whose first score is exactly zero.

    A chosen proposal has a probability above 0 for every class, so testing the first class is
    enough.

    Source: SPEC ovseg 8.
    """
    first = semantic_scores(painting.weights[:, :1], painting.mask_logits, painting.geometry(size))
    blank: NDArray[np.bool_] = (first[0] == 0).cpu().numpy()
    return blank


def _without_clip(class_logits: Tensor) -> Branches:
    """Return MaskFormer's predictions alone."""
    prob = class_logits.softmax(-1)[:, :-1]
    return Branches(prob, prob[:0], torch.zeros(len(prob), dtype=torch.bool, device=prob.device))


def _fit(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize masks (Q, H, W): binary ones by nearest neighbor, soft ones bilinearly."""
    if tuple(masks.shape[1:]) == size:
        return masks.float()
    if masks.dtype == torch.bool:
        return F.interpolate(masks[None].float(), size=size, mode="nearest")[0]
    return F.interpolate(masks[None].float(), size=size, mode="bilinear")[0]


def _variant(model: OVSeg) -> str:
    backbone = "Swin" if isinstance(model.config.backbone, SwinConfig) else "ResNet"
    vision = model.config.clip.vision
    return f"{backbone}, CLIP ViT of width {vision.width} and patch {vision.patch_size}"
