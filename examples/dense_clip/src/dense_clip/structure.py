"""The structure of the methods, for the part of the report that measures structure and cost."""

from __future__ import annotations

import dense_clip.segmenter
from dense_clip.attention import Variant
from dense_clip.segmenter import TITLES, DenseCLIPSegmenter, DenseConfig
from openvocab.clip.model import CLIP
from openvocab.clip.weights import open_clip_config
from openvocab.stages import Anatomy, Architecture, Stage, group_parameters

_TITLES = {"visual.": "CLIP image tower", "": "CLIP text tower"}


def architecture(variant: Variant) -> Architecture:
    """Return a variant with CLIP ViT-B/16 and random weights."""
    clip = CLIP(open_clip_config("ViT-B-16", "quick_gelu")).eval().requires_grad_(False)
    segmenter = DenseCLIPSegmenter(clip, DenseConfig(variant), cache_dir=False)
    return Architecture(
        title=f"{TITLES[variant]}, CLIP ViT-B/16",
        segmenter=segmenter,
        anatomy=anatomy(segmenter),
        sides=(240, 480, 960),
        notes=(
            "Images are resized to a short side of 336 pixels, whatever they measure, and windows "
            "of 224 pixels, 112 pixels apart, go through CLIP one by one.",
        ),
        templates=("imagenet",),
    )


def anatomy(segmenter: DenseCLIPSegmenter) -> Anatomy:
    """Return the stages and the parameters of a segmenter."""
    stages = (
        Stage(
            "text", "names to embeddings", "frozen", ((segmenter.text, "encode_names"),),
            "one row for each name, kept for later images",
        ),
        Stage(
            "clip", "CLIP, last attention replaced", "frozen", ((segmenter, "features"),),
            "one embedding for each patch of a window",
        ),
        Stage(
            "compare", "patches times names", "none", ((segmenter, "similarities"),),
            "one map for each name",
        ),
        Stage(
            "labels", "scores to labels", "none", ((dense_clip.segmenter, "label_word_maps"),),
            "label map",
        ),
    )  # fmt: skip
    parts = group_parameters(segmenter.clip, _TITLES, set())
    return Anatomy(stages, parts, {"the only CLIP": segmenter.clip}, ("compare",))
