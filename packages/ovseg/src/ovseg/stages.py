"""The stages and the parameters of OVSeg, for measuring and drawing them."""

from __future__ import annotations

import ovseg.segmenter
from openvocab.stages import Anatomy, Stage, group_parameters
from ovseg.segmenter import OVSegSegmenter

_TITLES = {
    "backbone.": "backbone",
    "sem_seg_head.": "pixel decoder and queries",
    "clip_adapter.non_object_embedding": "no-object embedding",
    "clip_adapter.clip_model.visual.mask_embedding": "mask prompts",
    "clip_adapter.clip_model.visual.": "CLIP image tower, mask-adapted",
    "clip_adapter.clip_model.": "CLIP text tower",
    "": "rest",
}
# MaskFormer first, then CLIP's image tower with its prompts, each on data of its own.
_TRAINED = (
    "backbone.",
    "sem_seg_head.",
    "clip_adapter.non_object_embedding",
    "clip_adapter.clip_model.visual.",
)


def anatomy(segmenter: OVSegSegmenter) -> Anatomy:
    """Return the stages and the parameters of an OVSeg.

    Source: OVSeg paper section 3.
    """
    model = segmenter.model
    adapter = model.clip_adapter
    stages = (
        Stage(
            "text", "names to embeddings", "frozen", ((adapter, "classifier"),),
            "one row for each name, kept for later images",
        ),
        Stage("backbone", "backbone", "trained", ((model.backbone, "forward"),), "four scales"),
        Stage(
            "head", "pixel decoder and queries", "trained", ((model.sem_seg_head, "forward"),),
            "mask proposals, and first class scores",
        ),
        Stage(
            "cut", "masks to crops", "none",
            ((ovseg.segmenter, "mask_probability"), (adapter, "cut")),
            "each proposal cut out, its background blank",
        ),
        Stage(
            "clip", "mask-adapted CLIP", "trained", ((adapter, "encode_regions"),),
            "one embedding for each crop",
        ),
        Stage(
            "labels", "both opinions to labels", "none", ((ovseg.segmenter, "vocabulary_labels"),),
            "label map",
        ),
    )  # fmt: skip
    trained = {name for name, _ in model.named_parameters() if name.startswith(_TRAINED)}
    parts = group_parameters(model, _TITLES, trained)
    ways = (("image", "cut"), ("head", "labels"))
    return Anatomy(stages, parts, {"names the crops": adapter.clip_model}, ("head", "clip"), ways)
