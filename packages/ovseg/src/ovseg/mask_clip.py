"""Mask-adapted CLIP, which classifies regions of an image.

Three lines are enough, without any of the rest of OVSeg:

    clip = MaskCLIP.load("ovseg_swinbase_vitL14_ft_mpt.pth")
    embeddings = clip.embed(image, masks)  # (Q, E), unit length
    probabilities = clip.classify(image, masks, ["cat", "dog", "grass"])  # (Q, 3)

Source: OVSeg paper sections 3.2 and 3.3; SPEC ovseg 5, 6 and 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from openvocab.clip.config import PIXEL_MEAN, PIXEL_STD, Activation, CLIPConfig, VisionConfig
from openvocab.clip.model import CLIP, VisionTransformer, normal_parameter
from openvocab.clip.prompts import TextEncoder
from openvocab.clip.template_sets import Templates
from openvocab.errors import InputError
from openvocab.image import ImageSource, read_image
from openvocab.weights.state_dict import load_strict, unfilled
from ovseg._convert import read_mask_clip
from ovseg.config import RegionConfig
from ovseg.regions import Regions, binarize, expand_boxes, extract_regions, tight_boxes

LOGIT_SCALE = 100.0  # OVSeg never uses CLIP's own logit_scale


class MaskPromptedViT(VisionTransformer):
    """CLIP's image tower, with learned prompts in place of background patches.

    Source: OVSeg paper section 3.3, "mask prompt tuning"; SPEC ovseg 5.
    """

    def __init__(
        self, config: VisionConfig, embed_dim: int, activation: Activation, depth: int
    ) -> None:
        super().__init__(config, embed_dim, activation)
        self.mask_embedding = nn.Parameter(torch.zeros(depth, config.grid_size**2, config.width))

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        """Encode regions at the tower's native size.

        Args:
            images: normalised (N, 3, S, S).
            masks: foreground (N, 1, S, S), 0..1; None for plain CLIP.

        Returns:
            Embeddings (N, E), not unit length.
        """
        patches, grid = self.patchify(images)
        keep = None if masks is None else patch_masks(masks, self.config.patch_size)
        if keep is not None:  # before the positions, which prompts get too
            patches = torch.where(keep, patches, self.mask_embedding[0].to(patches.dtype))
        x = self.add_positions(patches, grid)  # (N, 1 + h·w, D)
        *trunk, last = self.blocks
        for index, block in enumerate(trunk, start=1):
            x = block(x)
            if keep is not None and index < len(self.mask_embedding):
                prompts = self.mask_embedding[index].to(x.dtype)
                x = torch.cat([x[:, :1], torch.where(keep, x[:, 1:], prompts)], 1)
        return self.project(last.class_token(x)[:, 0])  # only the class token is read


class MaskPromptedCLIP(CLIP):
    """A CLIP whose image tower takes masks, under the official names (`visual.mask_embedding`)."""

    visual: MaskPromptedViT

    def __init__(self, config: CLIPConfig, depth: int) -> None:
        super().__init__(config)
        if depth < 1:
            raise InputError(f"mask_prompt_depth is {depth}; give at least 1")
        self.visual = MaskPromptedViT(config.vision, config.embed_dim, config.activation, depth)


def patch_masks(masks: Tensor, patch: int) -> Tensor:
    """Return which patches hold any foreground.

    Args:
        masks: (N, 1, S, S) or (N, S, S), 0..1.
        patch: side of a patch in pixels.

    Returns:
        (N, h·w, 1) bool: a single foreground pixel keeps its patch.
    """
    masks = masks.reshape(len(masks), 1, *masks.shape[-2:]).float()
    return (F.max_pool2d(masks, patch) > 0).flatten(1).unsqueeze(-1)


class MaskCLIP(nn.Module):
    """A mask-prompted CLIP that classifies regions of an image, without the rest of OVSeg.

    Args:
        config: the CLIP.
        depth: number of blocks in front of which background patches are replaced.
        region: rules by which a mask becomes an input of CLIP; it may be replaced at any time.

    Source: SPEC ovseg 4 to 6.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self, config: CLIPConfig, depth: int = 3, region: RegionConfig | None = None
    ) -> None:
        super().__init__()
        self.region = region or RegionConfig()
        self.clip_model = MaskPromptedCLIP(config, depth)
        self.clip_model.requires_grad_(False)
        self.register_buffer("pixel_mean", _on_255_scale(PIXEL_MEAN))
        self.register_buffer("pixel_std", _on_255_scale(PIXEL_STD))
        self._text: TextEncoder | None = None

    @classmethod
    def load(
        cls,
        source: str | Path | Mapping[str, Tensor],
        *,
        activation: Activation | None = None,
        heads: tuple[int, int] | None = None,
        region: RegionConfig | None = None,
    ) -> MaskCLIP:
        """Load a mask-adapted CLIP, ready to name regions.

        Args:
            source: an OVSeg checkpoint, a fine-tuned CLIP checkpoint, a plain CLIP such as
                "ViT-L-14:openai" (its regions are then encoded without prompts), or a state dict.
            activation: activation function, see `openvocab.clip.weights.load_clip`; QuickGELU where
                the weights have mask prompts and do not name theirs.
            heads: numbers of heads, see `openvocab.clip.weights.load_clip`.
            region: rules by which a mask becomes an input of CLIP.

        Raises:
            InputError: if the weights are none of these.
        """
        config, tensors, prompted = read_mask_clip(source, activation, heads)
        region = region or RegionConfig(mask_prompts=prompted)
        depth = len(tensors["visual.mask_embedding"])
        with unfilled():
            model = cls(config, depth, region)
        model.to_empty(device="cpu")
        model.pixel_mean.copy_(_on_255_scale(PIXEL_MEAN))
        model.pixel_std.copy_(_on_255_scale(PIXEL_STD))
        load_strict(model.clip_model, tensors, source=str(source)[:200])
        return model.eval()

    @torch.no_grad()
    def embed(self, image: ImageSource, masks: NDArray[np.generic] | Tensor) -> Tensor:
        """Embed regions of an image.

        Args:
            image: a path, an RGB array (H, W, 3) uint8, or whatever `read_image` takes.
            masks: (Q, H, W), bool, or probabilities 0..1 that are thresholded.

        Returns:
            Unit-length embeddings (Q, E); zeros for empty masks.

        Raises:
            InputError: if the masks do not fit the image.
        """
        pixels = read_image(image)
        probability = checked_masks(masks, pixels.shape[:2]).to(self.pixel_mean.device)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).to(self.pixel_mean.device)
        features, valid = self.encode_proposals(tensor, probability)
        embeddings = features.new_zeros(len(valid), features.shape[-1])
        embeddings[valid] = features
        return embeddings

    @torch.no_grad()
    def classify(
        self,
        image: ImageSource,
        masks: NDArray[np.generic] | Tensor,
        names: Sequence[str],
        templates: Templates = "vild",
    ) -> Tensor:
        """Return the class probabilities of each region.

        Args:
            image: the image, see `embed`.
            masks: the masks of the regions, see `embed`.
            names: K class names.
            templates: prompt templates.

        Returns:
            Probabilities (Q, K), each row sums to 1; uniform for empty masks.
        """
        logits = LOGIT_SCALE * self.embed(image, masks) @ self.embed_names(names, templates).T
        return logits.softmax(-1)

    def embed_names(self, names: Sequence[str], templates: Templates = "vild") -> Tensor:
        """Return prompt-ensembled embeddings of K names, unit length (K, E)."""
        return self.text_encoder.encode_names(names, templates)

    @property
    def text_encoder(self) -> TextEncoder:
        """The cached text encoder of this CLIP."""
        if self._text is None:
            self._text = TextEncoder(self.clip_model)
        return self._text

    @text_encoder.setter
    def text_encoder(self, encoder: TextEncoder) -> None:
        self._text = encoder

    @torch.no_grad()
    def encode_proposals(
        self, image: Tensor, probability: Tensor, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode all proposals that have any foreground.

        Args:
            image: RGB (3, h, w), 0..255, any dtype.
            probability: mask probabilities (Q, h, w), 0..1.
            keep: proposals to look at (Q,), bool; None for all.

        Returns:
            Unit-length float32 embeddings of the V valid proposals in order (V, E), and which of
            the Q they are (Q,).
        """
        binary, valid = binarize(probability, self.region.mask_threshold)
        if keep is not None:
            valid = valid & keep
        indices = valid.nonzero().squeeze(1)
        normalized = self.normalize(image)
        features = [
            self.encode_regions(self.cut(normalized, probability[chunk], binary[chunk]))
            for chunk in torch.split(indices, self.regions_per_batch)
        ]
        width = self.clip_model.config.embed_dim
        return torch.cat(features) if len(indices) else image.new_zeros(0, width).float(), valid

    def normalize(self, image: Tensor) -> Tensor:
        """Map RGB (3, h, w) in 0..255 to what CLIP expects."""
        return (image.float() - self.pixel_mean[0]) / self.pixel_std[0]

    def cut(self, normalized: Tensor, probability: Tensor, binary: Tensor) -> Regions:
        """Cut V non-empty proposals out of a normalised image (3, h, w).

        Args:
            normalized: the image (3, h, w).
            probability: (V, h, w), used only for matting.
            binary: (V, h, w) bool, each with at least one pixel.
        """
        size = (normalized.shape[-2], normalized.shape[-1])
        boxes = expand_boxes(tight_boxes(binary), self.region.expand_ratio, size)
        background = torch.zeros_like(self.pixel_mean).flatten()
        if self.region.mask_fill == "zero":
            background = (-self.pixel_mean / self.pixel_std).flatten()
        return extract_regions(
            normalized,
            probability if self.region.matting else binary,
            boxes,
            size=self.clip_model.config.vision.image_size,
            background=background,
        )

    def encode_regions(self, regions: Regions) -> Tensor:
        """Encode resized regions to unit-length float32 embeddings (V, E)."""
        visual = self.clip_model.visual
        masks = regions.masks if self.region.mask_prompts else None
        features: Tensor = visual(regions.images.to(visual.proj.dtype), masks)
        return F.normalize(features.float(), dim=-1, eps=0.0)

    @property
    def regions_per_batch(self) -> int:
        """Return how many regions fit into `region.memory_mb` on their way through a block."""
        vision = self.clip_model.config.vision
        values = (1 + vision.grid_size**2) * (6 * vision.width + 2 * vision.mlp_width)
        per_region = values * self.clip_model.visual.proj.element_size()
        return max(1, self.region.memory_mb * 2**20 // per_region)


class CLIPAdapter(MaskCLIP):
    """The CLIP of an OVSeg model, which also holds MaskFormer's learned "no object" class.

    Source: SPEC ovseg 4.
    """

    def __init__(
        self, config: CLIPConfig, depth: int = 3, region: RegionConfig | None = None
    ) -> None:
        super().__init__(config, depth, region)
        self.non_object_embedding = normal_parameter(
            1, config.embed_dim, std=config.text.width**-0.5
        )

    def classifier(self, names: Sequence[str], templates: Templates = "vild") -> Tensor:
        """Return the text classifier (K + 1, E): K names, then "no object", all unit length."""
        names_part = self.embed_names(names, templates)
        nothing = F.normalize(self.non_object_embedding, dim=-1, eps=0.0)
        return torch.cat([names_part.to(nothing), nothing])


def checked_masks(masks: NDArray[np.generic] | Tensor, size: Sequence[int]) -> Tensor:
    """Return masks as float probabilities (Q, H, W).

    Raises:
        InputError: if they are not (Q, H, W) of the image's size.
    """
    tensor = torch.as_tensor(masks)
    if tensor.ndim != 3 or tuple(tensor.shape[1:]) != tuple(size):
        raise InputError(
            f"masks have shape {tuple(tensor.shape)}; give (Q, {size[0]}, {size[1]}), "
            "one mask of the image's size for each region"
        )
    return tensor.float()


def _on_255_scale(values: Sequence[float]) -> Tensor:
    return torch.tensor([255 * value for value in values]).view(1, 3, 1, 1)
