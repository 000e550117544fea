"""The stages and the parameters of SAN, for measuring and drawing them."""

from __future__ import annotations

import san.model
import san.segmenter
from openvocab.stages import Anatomy, Stage, group_parameters
from san.segmenter import SANSegmenter

_TITLES = {
    "side_adapter.": "side adapter",
    "bg_embed": "no-object embedding",
    "clip.visual.positional_embedding": "CLIP's positions",
    "clip.visual.": "CLIP image tower",
    "": "CLIP text tower",
}


def anatomy(segmenter: SANSegmenter) -> Anatomy:
    """Return the stages and the parameters of a SAN.

    Source: SAN paper section 3.
    """
    network = segmenter.network
    stages = (
        Stage(
            "text", "names to embeddings", "frozen", ((segmenter.text, "encode_names"),),
            "one row for each name, kept for later images",
        ),
        Stage(
            "shallow", "shallow CLIP blocks", "frozen", ((network, "clip_features"),),
            "features for the adapter",
        ),
        Stage(
            "side", "side adapter", "trained", ((network.side_adapter, "forward"),),
            "mask proposals, and attention biases",
        ),
        Stage(
            "deep", "deep CLIP blocks, biased", "frozen", ((san.model, "recognize"),),
            "one embedding for each proposal",
        ),
        Stage(
            "labels", "scores to labels", "none", ((san.segmenter, "vocabulary_labels"),),
            "label map",
        ),
    )  # fmt: skip
    parts = group_parameters(network, _TITLES, set(network.trainable_parameters()))
    ways = (("image", "side"), ("shallow", "deep"), ("side", "labels"))
    return Anatomy(stages, parts, {"the only CLIP": network.clip}, ("deep",), ways)
