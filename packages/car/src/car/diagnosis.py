"""Oracles for CaR: a part of the ground truth is given, to see where the errors come from.

CaR's own masks with true names need no function here: they are the regions of its label map, which
`openvocab.evaluation.oracle.renamed` renames.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np

from car.recurrence import KeptNames, Recurrence, Step
from car.segmenter import CaRSegmenter, words_to_find
from car.visual_prompts import VisualPrompter
from openvocab.evaluation.oracle import Labels, classes_of
from openvocab.image import ImageArray
from openvocab.metrics.scores import IntArray
from openvocab.vocabulary import Vocabulary


def label_true_masks(
    segmenter: CaRSegmenter, image: ImageArray, truth: IntArray, vocabulary: Vocabulary
) -> Labels:
    """Classify true masks with CaR's mask classifier, which sees them as visual prompts.

    All names compete, even where CaR segments things and stuff one after the other. A mask gets the
    visual prompt of the pass to which its class belongs. The class "background" is left out.

    Args:
        segmenter: the model, which is not changed.
        image: (H, W, 3) uint8 RGB.
        truth: class ids (H, W), -1 where void.
        vocabulary: vocabulary to which the class ids belong.

    Returns:
        (H, W): every true mask as what it was taken for.
    """
    words, ids = words_to_find(vocabulary)
    nothing = vocabulary.background_label
    labels = np.full(truth.shape, nothing, dtype=np.int32)
    classes = [int(i) for i in classes_of(truth) if i != nothing]
    if not classes:
        return labels
    config = segmenter.config
    prompts = dict.fromkeys((True, False), config.visual_prompt_type)
    if config.two_passes and vocabulary.things is not None:
        prompts[False] = config.stuff_visual_prompt_type
    prompters = {thing: VisualPrompter(image, types) for thing, types in prompts.items()}
    kinds = vocabulary.things or (True,) * len(vocabulary)
    pictures = [prompters[kinds[label]].paint(truth == label) for label in classes]
    best = segmenter.car.judge(pictures, words).argmax(axis=1)  # (Q,)
    for label, word in zip(classes, best, strict=True):
        labels[truth == label] = ids[word]
    return labels


class FirstSteps:
    """The names that the first step of each recurrence keeps, recorded for a CaR with one step.

    Args:
        segmenter: the model whose recurrences are recorded from now on.
    """

    def __init__(self, segmenter: CaRSegmenter) -> None:
        self._segmenter = segmenter
        self._kept: dict[tuple[Any, ...], KeptNames] = {}
        segmenter.on_step = self._note

    def one_step(self) -> CaRSegmenter:
        """Return a CaR with a single step, which uses what is recorded of an image if it can."""
        segmenter = self._segmenter
        other = segmenter.with_config(replace(segmenter.config, max_steps=1))
        other.on_step, other.on_start = None, self._recall
        return other

    def _note(self, recurrence: Recurrence, step: Step) -> None:
        if recurrence.kept is not None:
            self._kept.setdefault(_key(recurrence), recurrence.kept)

    def _recall(self, recurrence: Recurrence) -> None:
        kept = self._kept.get(_key(recurrence))
        if kept is not None:
            recurrence.skip_to(kept)


def _key(recurrence: Recurrence) -> tuple[Any, ...]:
    """Return all inputs that the result of the first step depends on."""
    pixels, apart = recurrence.image.pixels, replace(recurrence.config, max_steps=1)
    return sha256(pixels.tobytes()).digest(), pixels.shape, recurrence.names, str(apart)
