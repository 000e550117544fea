"""CaR, CLIP as RNN (Sun et al., CVPR 2024): segmentation by recurrence, without any training.

from car import load_car
load_car("world").segment("photo.jpg", ["cat", "sofa"]).save("labels.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from openvocab import __version__
from openvocab.lazy import lazy_names

if TYPE_CHECKING:
    from car.config import CaRConfig as CaRConfig
    from car.config import available_configs as available_configs
    from car.config import named_config as named_config
    from car.recurrence import Recurrence as Recurrence
    from car.recurrence import Step as Step
    from car.segmenter import CaRSegmenter as CaRSegmenter
    from car.segmenter import load_car as load_car

__all__ = [
    "CaRConfig",
    "CaRSegmenter",
    "Recurrence",
    "Step",
    "__version__",
    "available_configs",
    "load_car",
    "named_config",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CaRConfig": "car.config",
        "CaRSegmenter": "car.segmenter",
        "Recurrence": "car.recurrence",
        "Step": "car.recurrence",
        "available_configs": "car.config",
        "load_car": "car.segmenter",
        "named_config": "car.config",
    },
)
