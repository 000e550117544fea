"""Open-vocabulary semantic segmentation: what OVSeg, SAN and CaR share.

import openvocab

segmenter = openvocab.load("san", "world")
segmenter.segment("photo.jpg", ["dog", "grass"]).save("labels.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from openvocab.lazy import lazy_names

if TYPE_CHECKING:
    from openvocab.errors import InputError as InputError
    from openvocab.methods import available_methods as available_methods
    from openvocab.methods import load as load
    from openvocab.segmenter import Segmentation as Segmentation
    from openvocab.segmenter import Segmenter as Segmenter
    from openvocab.vocabulary import Vocabulary as Vocabulary

__version__ = "0.1.0"  # the only place

__all__ = [
    "InputError",
    "Segmentation",
    "Segmenter",
    "Vocabulary",
    "__version__",
    "available_methods",
    "load",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "InputError": "openvocab.errors",
        "Segmentation": "openvocab.segmenter",
        "Segmenter": "openvocab.segmenter",
        "Vocabulary": "openvocab.vocabulary",
        "available_methods": "openvocab.methods",
        "load": "openvocab.methods",
    },
)
