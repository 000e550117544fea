"""The description of SAN for the commands, the page and the benchmark; needs no torch to import."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openvocab.methods import Explained, Method

if TYPE_CHECKING:
    from openvocab.evaluation.diagnosis import Diagnosis
    from openvocab.image import ImageArray
    from openvocab.stages import Anatomy, Architecture
    from openvocab.vocabulary import Vocabulary
    from san.segmenter import SANSegmenter

HERE = Path(__file__).parent
_BIAS_NOTE = (
    "SAN's CLIP takes no masks. It gets each true one as an attention bias, the logarithm of the "
    "share of a patch that the mask covers, which is not what it was trained with."
)


def _load(weights: str | Path | None = None, **options: Any) -> Any:
    from san.segmenter import load_san

    return load_san("san_vit_b_16" if weights is None else weights, **options)


def _architecture() -> Architecture:
    from san.architecture import architecture

    return architecture()


def _anatomy(segmenter: SANSegmenter) -> Anatomy:
    from san.stages import anatomy

    return anatomy(segmenter)


def _diagnoses(segmenter: SANSegmenter) -> Sequence[Diagnosis]:
    from openvocab.evaluation.diagnosis import (
        with_known_presence,
        with_true_masks,
        with_true_names,
    )
    from san.diagnosis import label_true_masks, label_with_true_names

    return (
        with_true_masks(segmenter, partial(label_true_masks, segmenter), _BIAS_NOTE),
        with_true_names(segmenter, partial(label_with_true_names, segmenter)),
        with_known_presence(segmenter),
    )


def _explain(
    segmenter: SANSegmenter, image: ImageArray, vocabulary: Vocabulary
) -> Sequence[Explained]:
    from san.explain import explain

    return explain(segmenter, image, vocabulary)


METHOD = Method(
    key="san",
    title="SAN",
    summary="A light network beside a frozen CLIP predicts masks, and the attention bias with "
    "which CLIP names them.",
    load=_load,
    weights="san_vit_b_16 or san_vit_large_14 (fetched on first use), world, a checkpoint "
    "file, a folder of save_pretrained, or hf:ORG/NAME",
    default_weights="san_vit_b_16",
    colors=("#2563eb", "#7aa7ff"),
    rank=0,
    package="san",
    preload=("san.segmenter",),
    architecture=_architecture,
    anatomy=_anatomy,
    explain=_explain,
    diagnoses=_diagnoses,
    published=HERE / "published.json",
    acceptance=HERE / "acceptance.json",
)
