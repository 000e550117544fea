"""The architecture of a SAN (`SANConfig`) and its rules of inference (`SANInference`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from openvocab.clip import CLIPConfig
from openvocab.errors import InputError
from openvocab.formats.overrides import check_types
from openvocab.vocabulary import WORLD
from san.option_keys import OPTIONS


@dataclass(frozen=True)
class SANConfig:
    """The architecture of a Side Adapter Network.

    Attributes:
        clip: the CLIP beside which the adapter runs.
        clip_resolution: side of CLIP's input as a fraction of the adapter's.
        split: CLIP blocks 1..split give features to the adapter, the rest recognises.
        fusion: pairs (CLIP block, side block) whose outputs are fused; 0 is the input.
        side_width: channels of the side ViT.
        side_depth: number of blocks of the side adapter.
        side_heads: number of attention heads of the side adapter.
        side_patch: patch size of the side adapter in pixels.
        side_image_size: side in pixels for which its positions are stored.
        num_queries: mask proposals.
        supervised: side blocks (from 1) whose outputs are decoded in training; the last one is
            decoded at inference.
        bias_heads: attention biases per layer: CLIP's number of heads, or 1 for all.
        bias_layers: one bias for all recognition blocks, or one for each.
        embed_channels: number of channels of the decoder's common space.
        mlp_channels: number of channels of the decoder's hidden layers.
        mlp_layers: number of layers of each of the decoder's perceptrons.
        rescale_bias: learn a scale and an offset of the attention bias.
        num_classes: number of classes of the training vocabulary.
        no_object_weight: weight of unmatched queries in the classification loss.
        asymmetric_input: False gives CLIP the adapter's resolution.
        size_divisibility: images are padded to a multiple of it.
    """

    clip: CLIPConfig
    clip_resolution: float = 0.5
    split: int = 9
    fusion: tuple[tuple[int, int], ...] = ((0, 0), (3, 1), (6, 2), (9, 3))
    side_width: int = 240
    side_depth: int = 8
    side_heads: int = 6
    side_patch: int = 16
    side_image_size: int = 640
    num_queries: int = 100
    supervised: tuple[int, ...] = (7, 8)
    bias_heads: int = 12
    bias_layers: int = 1
    embed_channels: int = 256
    mlp_channels: int = 256
    mlp_layers: int = 3
    rescale_bias: bool = True
    num_classes: int = 171
    no_object_weight: float = 0.1
    asymmetric_input: bool = True
    size_divisibility: int = 32

    def __post_init__(self) -> None:
        """Refuse settings that do not fit each other."""
        blocks, heads = self.clip.vision.layers, self.clip.vision.heads
        if not 0 < self.split < blocks:
            raise InputError(
                f"split is {self.split}, but this CLIP has blocks 1..{blocks}; choose one of them"
            )
        if self.bias_heads not in (1, heads):
            raise InputError(f"bias_heads is {self.bias_heads}; this CLIP needs {heads}, or 1")
        if self.bias_layers not in (1, blocks - self.split):
            raise InputError(f"bias_layers is {self.bias_layers}; use 1 or {blocks - self.split}")
        if any(clip > self.split or side > self.side_depth for clip, side in self.fusion):
            raise InputError(
                f"fusion {self.fusion} names blocks that the towers do not have; "
                "use blocks that both towers have"
            )
        if not self.supervised or max(self.supervised) > self.side_depth:
            raise InputError(
                f"supervised is {self.supervised}, of {self.side_depth} side blocks; "
                "name existing blocks"
            )


@dataclass(frozen=True)
class SANInference:
    """The rules of inference of a Side Adapter Network; the defaults are the published ones.

    Attributes:
        templates: prompt templates with which names become sentences.
        resize_masks_first: resize mask logits to the output size before scoring, not the scores.
        short_side: pixels to which the short side of an image is resized.
        max_side: pixels that the long side may have; longer images are shrunk until it fits.
    """

    templates: str = "vild"
    resize_masks_first: bool = True
    short_side: int = 640
    max_side: int = 2560

    def __post_init__(self) -> None:
        """Refuse sizes that no image can have."""
        if self.short_side < 1 or self.max_side < 1:
            raise InputError(
                f"short_side is {self.short_side} and max_side {self.max_side}; give positive "
                "numbers of pixels"
            )


def san_vit_b_16() -> SANConfig:
    """SAN with CLIP ViT-B/16, as published (`san_vit_b_16.pth`)."""
    from openvocab.clip.weights import open_clip_config  # late: it imports torch

    return SANConfig(clip=open_clip_config("ViT-B-16", "quick_gelu"))


def san_vit_large_14() -> SANConfig:
    """SAN with CLIP ViT-L/14 at 336 pixels, as published (`san_vit_large_14.pth`)."""
    from openvocab.clip.weights import open_clip_config  # late: it imports torch

    return SANConfig(
        clip=open_clip_config("ViT-L-14-336", "quick_gelu"),
        clip_resolution=0.7,
        split=18,
        fusion=((0, 0), (6, 1), (12, 2), (18, 3)),
        bias_heads=16,
    )


def san_world() -> SANConfig:
    """SAN beside the small CLIP of the embedded world, whose scenes have 128 pixels a side."""
    from openvocab.clip.weights import load_clip  # late: it imports torch

    clip = load_clip(WORLD).config
    return SANConfig(
        clip=clip,
        clip_resolution=2 / 3,
        split=2,
        fusion=((0, 0), (1, 1), (2, 2)),
        side_width=128,
        side_depth=4,
        side_heads=4,
        side_patch=8,
        side_image_size=192,
        num_queries=24,
        supervised=(3, 4),
        bias_heads=clip.vision.heads,
        embed_channels=64,
        mlp_channels=128,
    )


VARIANTS = {"san_vit_b_16": san_vit_b_16, "san_vit_large_14": san_vit_large_14}
ARCHITECTURES = {**VARIANTS, WORLD: san_world}
_WORLD_INFERENCE = SANInference(short_side=192, max_side=1024)


def load_published(name: str) -> tuple[SANConfig, SANInference]:
    """Return a published variant, or the world's, by name.

    Raises:
        InputError: if there is no such variant.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"variant {name!r} is unknown; use {' or '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name](), _WORLD_INFERENCE if name == WORLD else SANInference()


def from_detectron2(
    config: Mapping[str, Any],
    clip: CLIPConfig | None = None,
    base: tuple[SANConfig, SANInference] | None = None,
) -> tuple[SANConfig, SANInference]:
    """Translate a configuration of the original release, given as nested mappings.

    Args:
        config: `MODEL`, `INPUT` and so on; what it leaves out keeps the value of `base`.
        clip: the CLIP's architecture; None looks `MODEL.SAN.CLIP_MODEL_NAME` up.
        base: the configuration that is changed; None is the published ViT-B/16.

    Raises:
        InputError: an option that the published models do not use and this one does not have, or a
            value of another type.
    """
    config = check_types(config, OPTIONS, "the configuration")
    model = config.get("MODEL", {})
    san, side = model.get("SAN", {}), model.get("SIDE_ADAPTER", {})
    bias, test_input = side.get("ATTN_BIAS", {}), config.get("INPUT", {})
    _refuse_unused(san)
    values: dict[str, Any] = {
        "clip_resolution": san.get("CLIP_RESOLUTION"),
        "split": san.get("FEATURE_LAST_LAYER_IDX"),
        "fusion": _pairs(side.get("FUSION_MAP")),
        "side_image_size": side.get("IMAGE_SIZE"),
        "num_queries": side.get("NUM_QUERIES"),
        "supervised": _ints(side.get("DEEP_SUPERVISION_IDXS")),
        "bias_heads": bias.get("NUM_HEADS"),
        "bias_layers": bias.get("NUM_LAYERS"),
        "embed_channels": bias.get("EMBED_CHANNELS"),
        "mlp_channels": bias.get("MLP_CHANNELS"),
        "mlp_layers": _starting(bias, "MLP_NUM", "MLP_LAYERS", "NUM_MLP"),
        "rescale_bias": _starting(bias, "RESCALE"),
        "num_classes": san.get("NUM_CLASSES"),
        "no_object_weight": san.get("NO_OBJECT_WEIGHT"),
        "asymmetric_input": san.get("ASYMETRIC_INPUT"),
        "size_divisibility": san.get("SIZE_DIVISIBILITY"),
        **_side_vit(side.get("VIT_NAME")),
    }
    inference = {
        "templates": _starting(san, "CLIP_TEMPLATE"),
        "resize_masks_first": _starting(san | model, "SEM_SEG_POSTPROCESS_BEFORE_INFERENCE"),
        "short_side": test_input.get("MIN_SIZE_TEST"),
        "max_side": test_input.get("MAX_SIZE_TEST"),
    }
    if clip is None and base is not None and "CLIP_MODEL_NAME" not in san:
        clip = base[0].clip
    if clip is None:
        from openvocab.clip.weights import open_clip_config  # late: it imports torch

        name = san.get("CLIP_MODEL_NAME", "ViT-B/16")
        tag = san.get("CLIP_PRETRAINED_NAME", "openai")
        clip = open_clip_config(name, "quick_gelu" if tag == "openai" else "gelu")
    given, run = _given(values), _given(inference)
    if base is None:
        return SANConfig(clip, **given), SANInference(**run)
    return replace(base[0], clip=clip, **given), replace(base[1], **run)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _starting(section: Mapping[str, Any], *prefixes: str) -> Any:
    """Return the value whose key begins with a prefix; forks of the original differ in the rest."""
    return next((value for key, value in section.items() if key.startswith(prefixes)), None)


def _refuse_unused(san: Mapping[str, Any]) -> None:
    known = {"SOS_TOKEN_FORMAT": "cls_token", "REC_DOWNSAMPLE_METHOD": "max"}
    for key, value in known.items():
        if san.get(key, value) != value:
            raise InputError(f"MODEL.SAN.{key} {san[key]!r} is not supported; use {value!r}")


def _pairs(fusion: list[str] | None) -> tuple[tuple[int, int], ...] | None:
    """Parse ["3->1", ...] into ((3, 1), ...)."""
    if fusion is None:
        return None
    found = [re.fullmatch(r"\s*(\d+)\s*->\s*(\d+)\s*", text) for text in fusion]
    if None in found:
        raise InputError(f"FUSION_MAP {fusion} must be a list of 'clip block->side block'")
    return tuple((int(m[1]), int(m[2])) for m in found if m)


def _ints(values: list[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


def _side_vit(name: str | None) -> dict[str, int]:
    """Parse the original's name of a side ViT, such as vit_w240n6d8_patch16."""
    if name is None:
        return {}
    found = re.fullmatch(r"vit_w(\d+)n(\d+)d(\d+)_patch(\d+)", name)
    if not found:
        raise InputError(f"VIT_NAME {name!r} must look like vit_w240n6d8_patch16")
    keys = ("side_width", "side_heads", "side_depth", "side_patch")
    return dict(zip(keys, map(int, found.groups()), strict=True))
