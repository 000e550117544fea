"""Extra evaluations of a method that show where its errors come from.

An oracle gives a method one of three parts of the ground truth. With true masks, only the naming of
masks can go wrong; with true names, only the masks can; and with known presence, the method is
asked only for names that are in the image, so that no absent name can be confused with them. A
method may offer further evaluations of its own.

Source: OVSeg paper figure 2, where ground-truth masks show that CLIP is the bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from openvocab.evaluation.oracle import KnownTruth, Labels, label_with_known_presence, renamed
from openvocab.formats.run_length import decode_labels
from openvocab.image import ImageArray
from openvocab.metrics.scores import IntArray
from openvocab.segmenter import Segmentation, Segmenter
from openvocab.vocabulary import Vocabulary

Labeller: TypeAlias = Callable[[ImageArray, IntArray, Vocabulary], Labels]
"""Segments an image `(H, W, 3)` whose true class ids `(H, W)` it is told."""

Found: TypeAlias = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""What a method found: run-length codes by label, by id of the sample."""

TRUE_MASKS, TRUE_NAMES, KNOWN_PRESENCE = "true-masks", "true-names", "known-presence"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """One extra evaluation of a method.

    Attributes:
        key: name in files, such as "true-masks".
        title: description of what is evaluated, short enough for a table.
        segmenter: function that makes the segmenter to evaluate, given the data and the method's
            own results.
        runs_again: whether it takes about as long as the method itself, so that a comparison may
            use fewer images.
        paired: whether the difference to the method itself is reported, with its interval.
        note: a sentence on what its numbers depend on, or "".
    """

    key: str
    title: str
    segmenter: Callable[[KnownTruth, Found], Segmenter]
    runs_again: bool = False
    paired: bool = False
    note: str = ""


@dataclass(frozen=True)
class Told:
    """A segmenter with an oracle: it knows a part of the truth about the image that was read last.

    Attributes:
        segmenter: the method.
        part: name of the part of the truth that is given.
        known: holder of the truth.
        label: function that segments with the given truth.
    """

    segmenter: Segmenter
    part: str
    known: KnownTruth
    label: Labeller

    def describe(self) -> dict[str, Any]:
        """Return the method's own description, and the part of the truth that is given."""
        return {**self.segmenter.describe(), "told": self.part}

    def segment(self, image: ImageArray, vocabulary: Vocabulary, **options: Any) -> Segmentation:
        """Segment an image with the given part of its truth."""
        return Segmentation(self.label(image, self.known.truth, vocabulary), vocabulary)


def with_true_masks(segmenter: Segmenter, label: Labeller, note: str = "") -> Diagnosis:
    """Return the oracle diagnosis in which a method names true masks.

    Args:
        segmenter: the method.
        label: function that names the masks.
        note: sentence on what the numbers depend on, see `Diagnosis`.
    """
    return Diagnosis(
        key=TRUE_MASKS,
        title="true masks, named by the method's CLIP",
        segmenter=lambda known, found: _told(segmenter, TRUE_MASKS, known, label),
        note=note,
    )


def with_true_names(segmenter: Segmenter, label: Labeller | None = None) -> Diagnosis:
    """Return the oracle diagnosis in which a method's masks get their true names.

    Args:
        segmenter: the method.
        label: function that segments with true names; None: the regions of the method's label map
            are renamed.
    """
    return Diagnosis(
        key=TRUE_NAMES,
        title="the method's masks with their true names",
        segmenter=lambda known, found: _told(
            segmenter, TRUE_NAMES, known, label or _rename(known, found)
        ),
        runs_again=True,
    )


def with_known_presence(segmenter: Segmenter) -> Diagnosis:
    """Return the oracle diagnosis in which a method is asked only for names in the image."""
    label = partial(label_with_known_presence, segmenter)
    return Diagnosis(
        key=KNOWN_PRESENCE,
        title="only the names that are in the image",
        segmenter=lambda known, found: _told(segmenter, KNOWN_PRESENCE, known, label),
        runs_again=True,
    )


def _told(segmenter: Segmenter, part: str, known: KnownTruth, label: Labeller) -> Segmenter:
    return Told(segmenter, part, known, label)  # type: ignore[return-value]  # for one image


def _rename(known: KnownTruth, found: Found) -> Labeller:
    """Return a function that gives a method's own regions their true names."""

    def label(image: ImageArray, truth: IntArray, vocabulary: Vocabulary) -> Labels:
        assert known.sample is not None  # its label map has just been read
        size = truth.shape[0], truth.shape[1]
        return renamed(decode_labels(found[known.sample.id], size), truth)

    return label
