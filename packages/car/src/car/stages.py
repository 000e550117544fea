"""The stages and the parameters of CaR, for measuring and drawing them."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from car.crf import DenseCRF
from car.segmenter import CaRSegmenter
from car.visual_prompts import VisualPrompter
from openvocab.stages import Anatomy, Part, Stage, group_parameters

_TITLES = {"visual.": "image tower", "": "text tower"}


def anatomy(segmenter: CaRSegmenter) -> Anatomy:
    """Return the stages and the parameters of a CaR.

    Source: CaR paper section 3.
    """
    generator, classifier = segmenter.car.mask_proposal_generator, segmenter.car.mask_classifier
    texts = [(generator.text, "encode_names"), (classifier.text, "names_per_template")]
    stages = (
        Stage(
            "text", "names to embeddings", "frozen", tuple(texts),
            "two tables, one for each CLIP",
        ),
        Stage(
            "proposer", "CLIP with attention maps", "frozen", ((generator, "encode"),),
            "tokens, and the mean attention between patches",
        ),
        Stage(
            "maps", "gradients to masks", "frozen", ((generator, "propose"),),
            "one soft mask for each name",
        ),
        Stage(
            "prompts", "masks drawn on the image", "none", ((VisualPrompter, "__call__"),),
            "one picture for each name",
        ),
        Stage(
            "classifier", "second CLIP, once a name", "frozen", ((classifier, "encode"),),
            "names that do not convince leave; repeat from the masks",
        ),
        Stage(
            "crf", "dense CRF", "none", ((DenseCRF, "__init__"), (DenseCRF, "marginals")),
            "label map",
        ),
    )  # fmt: skip
    clips = {"proposes masks": generator.clip, "judges them": classifier.clip}
    distinct = {id(clip): (role, clip) for role, clip in clips.items()}
    parts = [part for role, clip in distinct.values() for part in _parts(clip, role)]
    ways = (("image", "prompts"), ("image", "crf"), ("maps", "crf"), ("classifier", "maps"))
    return Anatomy(stages, tuple(parts), clips, ("maps", "classifier"), ways)


def _parts(clip: nn.Module, role: str) -> list[Part]:
    return [
        replace(part, title=f"CLIP that {role}: {part.title}")
        for part in group_parameters(clip, _TITLES, set())
    ]
