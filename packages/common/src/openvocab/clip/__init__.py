"""One small CLIP with block-level access, its weights, tokenizer and prompts."""

from openvocab.clip.model import CLIP, PIXEL_MEAN, PIXEL_STD, CLIPConfig, TextConfig, VisionConfig
from openvocab.clip.weights import load_clip

__all__ = [
    "CLIP",
    "PIXEL_MEAN",
    "PIXEL_STD",
    "CLIPConfig",
    "TextConfig",
    "VisionConfig",
    "load_clip",
]
