"""The description of OVSeg for commands, page and benchmark; needs no torch to import."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openvocab.methods import Explained, Method

if TYPE_CHECKING:
    from openvocab.datasets.samples import SampleSet
    from openvocab.evaluation.diagnosis import Diagnosis
    from openvocab.image import ImageArray
    from openvocab.stages import Anatomy, Architecture
    from openvocab.vocabulary import Vocabulary
    from ovseg.segmenter import OVSegSegmenter

HERE = Path(__file__).parent


def _load(weights: str | Path | None = None, **options: Any) -> Any:
    from ovseg.weights import load_ovseg

    return load_ovseg(weights, **options)


def _for_data(segmenter: OVSegSegmenter, data: SampleSet) -> OVSegSegmenter:
    """Use the ensemble weight that was published for the data."""
    from ovseg.evaluate import with_published_weight

    return segmenter.with_inference(with_published_weight(segmenter.inference, data.vocabulary))


def _architecture() -> Architecture:
    from ovseg.architecture import architecture

    return architecture()


def _anatomy(segmenter: OVSegSegmenter) -> Anatomy:
    from ovseg.stages import anatomy

    return anatomy(segmenter)


def _diagnoses(segmenter: OVSegSegmenter) -> Sequence[Diagnosis]:
    from openvocab.evaluation.diagnosis import (
        with_known_presence,
        with_true_masks,
        with_true_names,
    )
    from ovseg.diagnosis import label_true_masks, label_with_true_names

    return (
        with_true_masks(segmenter, partial(label_true_masks, segmenter)),
        with_true_names(segmenter, partial(label_with_true_names, segmenter)),
        with_known_presence(segmenter),
    )


def _explain(
    segmenter: OVSegSegmenter, image: ImageArray, vocabulary: Vocabulary
) -> Sequence[Explained]:
    from ovseg.explain import explain

    return explain(segmenter, image, vocabulary)


METHOD = Method(
    key="ovseg",
    title="OVSeg",
    summary="MaskFormer proposes masks, and a mask-adapted CLIP names each masked crop.",
    load=_load,
    weights="world, a checkpoint file such as ovseg_swinbase_vitL14_ft_mpt.pth, a folder of "
    "save_pretrained, or hf:ORG/NAME",
    colors=("#b45309", "#ff9d57"),
    rank=1,
    package="ovseg",
    preload=("ovseg.segmenter",),
    for_data=_for_data,
    architecture=_architecture,
    anatomy=_anatomy,
    explain=_explain,
    diagnoses=_diagnoses,
    published=HERE / "published.json",
    acceptance=HERE / "acceptance.json",
)
