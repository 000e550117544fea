"""The description of CaR for the commands, the page and the benchmark; needs no torch to import."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openvocab.methods import Explained, Method

if TYPE_CHECKING:
    from car.segmenter import CaRSegmenter
    from openvocab.clip.prompts import TextEncoder
    from openvocab.datasets.samples import SampleSet
    from openvocab.evaluation.diagnosis import Diagnosis
    from openvocab.image import ImageArray
    from openvocab.stages import Anatomy, Architecture
    from openvocab.vocabulary import Vocabulary

HERE = Path(__file__).parent


def _parts_of_weights(source: str) -> list[str]:
    """Split "PROPOSER,CLASSIFIER"."""
    return source.split(",")


def _load(weights: str | Path | None = None, **options: Any) -> Any:
    from car.segmenter import load_car

    return load_car(weights, **options)


def _for_data(segmenter: CaRSegmenter, data: SampleSet) -> CaRSegmenter:
    """Use the settings that were published for the data, unless others were chosen."""
    from dataclasses import replace

    from car.config import CaRConfig, available_configs, named_config

    own: dict[str, Any] = {
        "clip": segmenter.config.clip,
        "classifier_clip": segmenter.config.classifier_clip,
    }
    if segmenter.config != replace(CaRConfig(), **own):
        return segmenter
    for config in map(named_config, available_configs()):
        if config.dataset == data.name:
            return segmenter.with_config(replace(config.car, **own))
    return segmenter


def _architecture() -> Architecture:
    from car.architecture import architecture

    return architecture()


def _anatomy(segmenter: CaRSegmenter) -> Anatomy:
    from car.stages import anatomy

    return anatomy(segmenter)


def _diagnoses(segmenter: CaRSegmenter) -> Sequence[Diagnosis]:
    from car.diagnosis import FirstSteps, label_true_masks
    from openvocab.evaluation.diagnosis import (
        Diagnosis,
        with_known_presence,
        with_true_masks,
        with_true_names,
    )

    first_steps = FirstSteps(segmenter)  # watches the evaluation of the method itself
    return (
        with_true_masks(segmenter, partial(label_true_masks, segmenter)),
        with_true_names(segmenter),
        with_known_presence(segmenter),
        Diagnosis(
            key="one-step",
            title="one step instead of the recurrence",
            segmenter=lambda known, found: first_steps.one_step(),
            paired=True,
        ),
    )


def _naming_clip(segmenter: CaRSegmenter) -> TextEncoder:
    return segmenter.car.mask_classifier.text


def _explain(
    segmenter: CaRSegmenter, image: ImageArray, vocabulary: Vocabulary
) -> Sequence[Explained]:
    from car.explain import explain

    return explain(segmenter, image, vocabulary)


METHOD = Method(
    key="car",
    title="CaR",
    summary="No training: CLIP's saliency proposes masks, CLIP scores visually prompted images, "
    "and names with low scores are dropped, until no name is dropped.",
    load=_load,
    weights="a configuration such as world or voc21, or one CLIP or two with a "
    "comma between, a folder of save_pretrained, or hf:ORG/NAME",
    templates="car",
    colors=("#0b7a53", "#4fd1a1"),
    rank=2,
    package="car",
    preload=("car.segmenter",),
    parts_of_weights=_parts_of_weights,
    for_data=_for_data,
    architecture=_architecture,
    anatomy=_anatomy,
    explain=_explain,
    diagnoses=_diagnoses,
    naming_clip=_naming_clip,
    published=HERE / "published.json",
    acceptance=HERE / "acceptance.json",
)
