"""SAN, Side Adapter Network (Xu et al., CVPR 2023).

from san import load_san
load_san("san_vit_b_16").segment("photo.jpg", ["cat", "sofa"]).save("labels.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from openvocab import __version__
from openvocab.lazy import lazy_names

if TYPE_CHECKING:
    from san.config import SANConfig as SANConfig
    from san.config import SANInference as SANInference
    from san.config import san_vit_b_16 as san_vit_b_16
    from san.config import san_vit_large_14 as san_vit_large_14
    from san.model import SAN as SAN
    from san.model import SANPrediction as SANPrediction
    from san.segmenter import SANSegmenter as SANSegmenter
    from san.segmenter import load_san as load_san

__all__ = [
    "SAN",
    "SANConfig",
    "SANInference",
    "SANPrediction",
    "SANSegmenter",
    "__version__",
    "load_san",
    "san_vit_b_16",
    "san_vit_large_14",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "SAN": "san.model",
        "SANConfig": "san.config",
        "SANInference": "san.config",
        "SANPrediction": "san.model",
        "SANSegmenter": "san.segmenter",
        "load_san": "san.segmenter",
        "san_vit_b_16": "san.config",
        "san_vit_large_14": "san.config",
    },
)
