"""OVSeg: open-vocabulary segmentation with mask-adapted CLIP (Liang et al., CVPR 2023).

from ovseg import load_ovseg
load_ovseg("ovseg_swinbase_vitL14_ft_mpt.pth").segment("photo.jpg", ["cat", "sofa"]).save("l.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from openvocab import __version__
from openvocab.lazy import lazy_names

if TYPE_CHECKING:
    from ovseg.config import InferenceConfig as InferenceConfig
    from ovseg.config import OVSegConfig as OVSegConfig
    from ovseg.config import RegionConfig as RegionConfig
    from ovseg.config import load_published as load_published
    from ovseg.mask_clip import MaskCLIP as MaskCLIP
    from ovseg.model import OVSeg as OVSeg
    from ovseg.segmenter import OVSegSegmenter as OVSegSegmenter
    from ovseg.weights import load_ovseg as load_ovseg
    from ovseg.weights import save_model as save_model

__all__ = [
    "InferenceConfig",
    "MaskCLIP",
    "OVSeg",
    "OVSegConfig",
    "OVSegSegmenter",
    "RegionConfig",
    "__version__",
    "load_ovseg",
    "load_published",
    "save_model",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "InferenceConfig": "ovseg.config",
        "MaskCLIP": "ovseg.mask_clip",
        "OVSeg": "ovseg.model",
        "OVSegConfig": "ovseg.config",
        "OVSegSegmenter": "ovseg.segmenter",
        "RegionConfig": "ovseg.config",
        "load_ovseg": "ovseg.weights",
        "load_published": "ovseg.config",
        "save_model": "ovseg.weights",
    },
)
