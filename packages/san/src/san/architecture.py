"""SAN's published architecture with random weights, for the measurements of structure and cost."""

from __future__ import annotations

from typing import Any

import torch

from openvocab.stages import Architecture, train_only
from san.config import san_vit_b_16
from san.model import SAN
from san.segmenter import SANSegmenter
from san.stages import anatomy


def architecture() -> Architecture:
    """Return SAN with CLIP ViT-B/16."""
    network = SAN(san_vit_b_16())
    segmenter = SANSegmenter(network, cache_dir=False)
    trained = set(network.trainable_parameters())
    classes = torch.randn(172, network.config.clip.embed_dim)

    def forward() -> Any:
        train_only(network, trained)
        return network(torch.randn(1, 3, 640, 640), classes, all_layers=True)

    return Architecture(
        title="SAN, CLIP ViT-B/16",
        segmenter=segmenter,
        anatomy=anatomy(segmenter),
        sides=(240, 480, 960),
        notes=("Images are resized to a short side of 640 pixels, whatever they measure.",),
        templates=("vild",),
        forward=forward,
    )
