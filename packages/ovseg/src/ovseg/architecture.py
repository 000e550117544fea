"""OVSeg's published architecture with random weights, for measurements of structure and cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from openvocab.stages import Architecture, train_only
from ovseg.config import RegionConfig, load_published
from ovseg.model import OVSeg
from ovseg.segmenter import OVSegSegmenter
from ovseg.stages import anatomy

REGIONS = 2  # crops that CLIP sees here; it sees up to 100


def architecture() -> Architecture:
    """Return OVSeg with Swin-B and CLIP ViT-L/14."""
    config, inference = load_published("ovseg_swinB_vitL_bs32_120k")
    model = OVSeg(config)
    # Prompts are zero until they are trained; any other value shows where they enter.
    torch.nn.init.normal_(model.clip_adapter.clip_model.visual.mask_embedding)
    region = RegionConfig(mask_threshold=0.5, max_regions=REGIONS, memory_mb=256)
    segmenter = OVSegSegmenter(model, replace(inference, region=region), cache_dir=False)
    classes = torch.randn(172, config.clip.embed_dim)
    first = {n for n, _ in model.named_parameters() if n.startswith(("backbone.", "sem_seg_head."))}

    def forward() -> Any:
        train_only(model, first)
        return model([torch.randint(0, 255, (3, 640, 640))], classes, all_layers=True)

    return Architecture(
        title="OVSeg, Swin-B and CLIP ViT-L/14",
        segmenter=segmenter,
        anatomy=anatomy(segmenter),
        sides=(240, 480, 960),
        notes=(
            "Images are resized to a short side of 640 pixels, whatever they measure.",
            f"CLIP is shown {REGIONS} crops here, and up to {config.num_queries} in real use; "
            "cost per crop is the same for each.",
        ),
        templates=("vild",),
        at_most=config.num_queries,
        forward=forward,
    )
