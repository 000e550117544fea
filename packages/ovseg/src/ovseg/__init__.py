"""OVSeg: open-vocabulary segmentation with mask-adapted CLIP (Liang et al., CVPR 2023)."""

from ovseg.config import InferenceConfig, OVSegConfig, RegionConfig, load_published
from ovseg.mask_clip import MaskCLIP
from ovseg.model import OVSeg
from ovseg.segmenter import OVSegSegmenter
from ovseg.weights import load_ovseg, save_model

__all__ = [
    "InferenceConfig",
    "MaskCLIP",
    "OVSeg",
    "OVSegConfig",
    "OVSegSegmenter",
    "RegionConfig",
    "load_ovseg",
    "load_published",
    "save_model",
]
