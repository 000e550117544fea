"""A small CLIP with access to single blocks, and its weights, tokenizer and prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openvocab.lazy import lazy_names

if TYPE_CHECKING:
    from openvocab.clip.config import PIXEL_MEAN as PIXEL_MEAN
    from openvocab.clip.config import PIXEL_STD as PIXEL_STD
    from openvocab.clip.config import CLIPConfig as CLIPConfig
    from openvocab.clip.config import TextConfig as TextConfig
    from openvocab.clip.config import VisionConfig as VisionConfig
    from openvocab.clip.model import CLIP as CLIP
    from openvocab.clip.weights import load_clip as load_clip

__all__ = [
    "CLIP",
    "PIXEL_MEAN",
    "PIXEL_STD",
    "CLIPConfig",
    "TextConfig",
    "VisionConfig",
    "load_clip",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CLIP": "openvocab.clip.model",
        "PIXEL_MEAN": "openvocab.clip.config",
        "PIXEL_STD": "openvocab.clip.config",
        "CLIPConfig": "openvocab.clip.config",
        "TextConfig": "openvocab.clip.config",
        "VisionConfig": "openvocab.clip.config",
        "load_clip": "openvocab.clip.weights",
    },
)
