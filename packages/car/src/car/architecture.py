"""CaR's published architecture with random weights, for measurements of structure and cost."""

from __future__ import annotations

from car.config import CaRConfig
from car.segmenter import CaRSegmenter
from car.stages import anatomy
from openvocab.clip.model import CLIP
from openvocab.clip.weights import open_clip_config
from openvocab.stages import Architecture


def architecture() -> Architecture:
    """Return CaR with CLIP ViT-B/16 and ViT-L/14."""
    proposer = CLIP(open_clip_config("ViT-B-16", "quick_gelu")).eval().requires_grad_(False)
    classifier = CLIP(open_clip_config("ViT-L-14", "quick_gelu")).eval().requires_grad_(False)
    config = CaRConfig(classifier_batch=4)
    segmenter = CaRSegmenter(proposer, classifier, config, cache_dir=False)
    return Architecture(
        title="CaR, CLIP ViT-B/16 and ViT-L/14",
        segmenter=segmenter,
        anatomy=anatomy(segmenter),
        sides=(240, 480, 960),
        notes=(
            "Images keep their size.",
            "How often it repeats depends on what it finds: random weights stop after two steps, "
            "and the second has one name left. Cost per picture is the same for each.",
        ),
        templates=(("{}",), "car"),
        each_name="classifier",
    )
