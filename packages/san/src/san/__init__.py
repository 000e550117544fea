"""SAN, Side Adapter Network (Xu et al., CVPR 2023).

from san import load_san
load_san("san_vit_b_16").segment("photo.jpg", ["cat", "sofa"]).save("labels.png")
"""

from san.config import SANConfig, san_vit_b_16, san_vit_large_14
from san.model import SAN, SANPrediction
from san.segmenter import SANSegmenter, load_san

__all__ = [
    "SAN",
    "SANConfig",
    "SANPrediction",
    "SANSegmenter",
    "load_san",
    "san_vit_b_16",
    "san_vit_large_14",
]
