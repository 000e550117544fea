"""What a method would reach if a part of its work were perfect, and CaR without its recurrence.

Three parts of the truth are told, one at a time: the masks, so that only naming is left; the names,
so that only masks are left; and which names are in the image, so that none of the others is in the
way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import car.diagnosis
import ovseg.diagnosis
import san.diagnosis
from car.diagnosis import FirstSteps
from openvocab.evaluation.oracle import KnownTruth, Labels, label_with_known_presence, renamed
from openvocab.formats.run_length import decode_labels
from openvocab.image import ImageArray
from openvocab.metrics.scores import IntArray
from openvocab.segmenter import Segmentation, Segmenter
from openvocab.vocabulary import Vocabulary

Labeller = Callable[[ImageArray, IntArray, Vocabulary], Labels]
Codes = Mapping[str, Mapping[int, Mapping[str, Any]]]
TRUE_MASKS, TRUE_NAMES = "true-masks", "true-names"
PRESENCE, ONE_STEP = "known-presence", "one-step"
PARTS = (TRUE_MASKS, TRUE_NAMES, PRESENCE, ONE_STEP)
LENGTHY = (TRUE_NAMES, PRESENCE)  # those that run the method again, or much of it
_MODULES = {"san": san.diagnosis, "ovseg": ovseg.diagnosis, "car": car.diagnosis}


@dataclass(frozen=True)
class Told:
    """A segmenter that knows a part of the truth about the image whose label map was read last.

    Attributes:
        segmenter: the method.
        part: which part of the truth.
        known: holds it.
        label: segments with it.
    """

    segmenter: Segmenter
    part: str
    known: KnownTruth
    label: Labeller

    def describe(self) -> dict[str, Any]:
        """Return what the method says about itself, and what it is told."""
        return {**self.segmenter.describe(), "told": self.part}

    def segment(self, image: ImageArray, vocabulary: Vocabulary, **options: Any) -> Segmentation:
        """Segment with the truth at hand."""
        return Segmentation(self.label(image, self.known.truth, vocabulary), vocabulary)


def diagnoses_of(
    method: str,
    segmenter: Segmenter,
    known: KnownTruth,
    found: Codes,
    first_steps: FirstSteps | None = None,
) -> dict[str, Segmenter]:
    """Return what is evaluated to diagnose a method, by name.

    Args:
        method: "san", "ovseg" or "car".
        segmenter: of this method.
        known: the data that they are evaluated on.
        found: what the method itself found, run-length codes by label, by id of the sample.
        first_steps: what CaR's first steps left while it found that; None for other methods.
    """
    module: Any = _MODULES[method]
    labellers: dict[str, Labeller] = {
        TRUE_MASKS: partial(module.label_true_masks, segmenter),
        TRUE_NAMES: _rename(known, found)
        if method == "car"
        else partial(module.label_with_true_names, segmenter),
        PRESENCE: partial(label_with_known_presence, segmenter),
    }
    told: dict[str, Segmenter] = {
        part: Told(segmenter, part, known, label)  # type: ignore[dict-item]
        for part, label in labellers.items()
    }
    if first_steps is not None:
        told[ONE_STEP] = first_steps.one_step()
    return told


def _rename(known: KnownTruth, found: Codes) -> Labeller:
    """Return a labeller that gives what was found before its true names."""

    def label(image: ImageArray, truth: IntArray, vocabulary: Vocabulary) -> Labels:
        assert known.sample is not None  # its label map has just been read
        size = truth.shape[0], truth.shape[1]
        return renamed(decode_labels(found[known.sample.id], size), truth)

    return label
