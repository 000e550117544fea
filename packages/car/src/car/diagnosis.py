"""CaR with a part of the truth given, to see which half of it loses what.

Its own masks with true names need no function: they are the regions of its label map, which
`openvocab.evaluation.oracle.renamed` renames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np

from car.config import CaRConfig
from car.model import Found, Scene, Survivors
from car.segmenter import CaRSegmenter, queries
from car.visual_prompts import VisualPrompter
from openvocab.evaluation.oracle import Labels, classes_of
from openvocab.image import ImageArray
from openvocab.metrics.scores import IntArray
from openvocab.vocabulary import Vocabulary


def label_true_masks(
    segmenter: CaRSegmenter, image: ImageArray, truth: IntArray, vocabulary: Vocabulary
) -> Labels:
    """Name true masks with CaR's classifier, which sees them as visual prompts.

    All names compete, also where CaR looks for things and stuff one after the other; a mask is
    drawn as in the pass to which it belongs. The class "background" is not asked about.

    Args:
        segmenter: as it is.
        image: (H, W, 3) uint8 RGB.
        truth: class ids (H, W), -1 where void.
        vocabulary: of the class ids.

    Returns:
        (H, W): every true mask as what it was taken for.
    """
    words, ids = queries(vocabulary)
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
    """Notes what the first step of each recurrence leaves, to know what one step would have found.

    Args:
        segmenter: is noted from now on.
    """

    def __init__(self, segmenter: CaRSegmenter) -> None:
        self._segmenter, self._find = segmenter, segmenter.car.find
        self._left: dict[tuple[Any, ...], Survivors] = {}
        segmenter.car.find = self._note  # type: ignore[method-assign]

    def one_step(self) -> CaRSegmenter:
        """Return a CaR without recurrence, which looks at images again only if it has to."""
        segmenter = self._segmenter
        other = segmenter.with_config(replace(segmenter.config, max_steps=1))
        find = other.car.find

        def recall(
            scene: Scene, names: Sequence[str], config: CaRConfig | None = None, **options: Any
        ) -> Found:
            left = self._left.get(_key(scene, names, config))
            if left is None or options.get("keep_steps"):
                return find(scene, names, config, **options)
            marginals = bool(options.get("return_marginals"))
            return other.car.end(scene, left, len(names), config or other.config, marginals)

        other.car.find = recall  # type: ignore[method-assign]
        return other

    def _note(
        self, scene: Scene, names: Sequence[str], config: CaRConfig | None = None, **options: Any
    ) -> Found:
        found = self._find(scene, names, config, **options)
        if found.first is not None:
            self._left[_key(scene, names, config)] = found.first
        return found


def _key(scene: Scene, names: Sequence[str], config: CaRConfig | None) -> tuple[Any, ...]:
    """Return all that decides what the first step leaves."""
    apart = None if config is None else replace(config, max_steps=1)
    return sha256(scene.image.tobytes()).digest(), scene.image.shape, tuple(names), str(apart)
