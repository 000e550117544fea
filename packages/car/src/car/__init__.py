"""CaR, CLIP as RNN (Sun et al., CVPR 2024): segmentation by recurrence, without any training."""

from car.config import CaRConfig, named_config
from car.segmenter import CaRSegmenter, load_car

__all__ = ["CaRConfig", "CaRSegmenter", "load_car", "named_config"]
