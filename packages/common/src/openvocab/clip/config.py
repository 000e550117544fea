"""The architecture of a CLIP; reading it needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["quick_gelu", "gelu"]

# What every OpenAI, LAION, DFN and MetaCLIP model was trained with, on the 0..1 scale.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisionConfig:
    """The image tower: `image_size` is the side in pixels of the native, square input.

    `stem` is the channels of 3x3 convolutions before the patch embedding, each of which halves the
    sides; none in a plain ViT. A patch is `patch_size` pixels wide with them or without.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    stem: tuple[int, ...] = ()

    @property
    def grid_size(self) -> int:
        """Patches on a side of the native input."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class TextConfig:
    """The text tower.

    `vocab_size` is the rows of its table: all of the tokenizer's, or, where `reduced`, those of the
    tokens that the model knows.
    """

    context_length: int
    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    reduced: bool = False


@dataclass(frozen=True)
class CLIPConfig:
    """The architecture of a CLIP, with the activation that its weights were trained with."""

    embed_dim: int
    vision: VisionConfig
    text: TextConfig
    activation: Activation
