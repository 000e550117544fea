"""Oracles, which give a method a part of the ground truth, to see which part makes the errors.

With true masks, a method only names them; with true names, it only makes masks; with known
presence, it is asked only for names that are in the image. Code for a single method is in its own
`diagnosis` module.

Source: OVSeg paper figure 2, where ground-truth masks show that CLIP is the bottleneck.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openvocab.datasets.samples import Sample, SampleSet
from openvocab.errors import InputError
from openvocab.image import ImageArray
from openvocab.metrics.scores import Ignore, IntArray, void_values
from openvocab.segmenter import Segmenter
from openvocab.vocabulary import NOTHING, Vocabulary

Labels = NDArray[np.int32]


class KnownTruth:
    """A sample set that remembers the ground truth that was read last.

    An evaluation reads an image's label map right before the image is segmented, so a segmenter
    that holds this object knows the truth about its image.

    Attributes:
        sample: sample that was read last; None before the first one.
    """

    def __init__(self, data: SampleSet) -> None:
        self._data = data
        self._truth: IntArray | None = None
        self.sample: Sample | None = None

    @property
    def truth(self) -> IntArray:
        """Class ids (H, W) of the sample that was read last, -1 where it is void."""
        if self._truth is None:
            raise RuntimeError("no label map was read yet; evaluate with this object as the data")
        return self._truth

    def read_label(self, sample: Sample) -> NDArray[Any]:
        """Read a label map and remember it."""
        labels, self.sample = self._data.read_label(sample), sample
        void = sorted(void_values(len(self.vocabulary), self.ignore_index))
        self._truth = np.where(np.isin(labels, void), NOTHING, labels.astype(np.int64))
        return labels

    @property
    def name(self) -> str:
        """The name that results carry."""
        return self._data.name

    @property
    def split(self) -> str:
        """Which part of the data set."""
        return self._data.split

    @property
    def samples(self) -> Sequence[Sample]:
        """The pairs of the set."""
        return self._data.samples

    @property
    def vocabulary(self) -> Vocabulary:
        """The names of the label values."""
        return self._data.vocabulary

    @property
    def ignore_index(self) -> Ignore:
        """The void label values."""
        return self._data.ignore_index

    def label_tree_hash(self) -> str:
        """Return a SHA-256 over the label maps."""
        return self._data.label_tree_hash()


def classes_of(truth: NDArray[Any]) -> IntArray:
    """Return the class ids that a label map (H, W) holds, ascending; negative ones are void."""
    values = np.unique(truth)
    return values[values >= 0].astype(np.int64)


def masks_of_labels(labels: NDArray[Any], void: Sequence[int] = ()) -> NDArray[np.bool_]:
    """Return one mask for each value of a label map (H, W) that is not void: (Q, H, W)."""
    values = np.array([value for value in classes_of(labels) if value not in void], dtype=np.int64)
    masks: NDArray[np.bool_] = labels[None] == values.reshape(-1, 1, 1)
    return masks


def paint_masks(masks: NDArray[np.bool_], labels: Sequence[int] | IntArray) -> Labels:
    """Paint masks (Q, H, W) that do not overlap with their labels (Q,); -1 elsewhere."""
    painted = np.full(masks.shape[1:], NOTHING, dtype=np.int32)
    for mask, label in zip(masks, labels, strict=True):
        painted[mask] = label
    return painted


def overlapped_most(masks: Tensor, truth: IntArray) -> list[int]:
    """Return the true class that each mask covers most of.

    Args:
        masks: (Q, H, W), soft or binary.
        truth: (H, W), -1 where it is void.

    Returns:
        Q class ids; -1 for a mask that covers nothing but void.
    """
    classes = classes_of(truth)
    if not len(classes):
        return [NOTHING] * len(masks)
    regions = torch.from_numpy(masks_of_labels(truth)).flatten(1).to(masks)
    covered = masks.flatten(1) @ regions.T  # (Q, classes)
    best = covered.argmax(dim=1).tolist()
    return [
        int(classes[place]) if share > 0 else NOTHING
        for place, share in zip(best, covered.amax(dim=1).tolist(), strict=True)
    ]


def true_words(classes: Sequence[int], vocabulary: Vocabulary) -> Tensor:
    """Return the word of each of Q classes: (Q, W) with at most one 1 in each row.

    The first of several words counts; "background" may have no word.
    """
    labels = vocabulary.word_labels.tolist()
    rows = torch.zeros(len(classes), len(labels))
    for row, label in zip(rows, classes, strict=True):
        if label >= 0 and label in labels:
            row[labels.index(label)] = 1
    return rows


def renamed(labels: NDArray[Any], truth: IntArray) -> Labels:
    """Give each region of a label map (H, W) the true class that it covers most of."""
    masks = masks_of_labels(labels)
    return paint_masks(masks, overlapped_most(torch.from_numpy(masks).float(), truth))


def label_with_known_presence(
    segmenter: Segmenter, image: ImageArray, truth: IntArray, vocabulary: Vocabulary
) -> Labels:
    """Segment with only the names that are in the image: (H, W) labels of the whole vocabulary.

    A class "background" is kept, whether it is in the image or not.
    """
    ids = [int(i) for i in classes_of(truth)]
    if vocabulary.background_label >= 0:
        ids = sorted({*ids, vocabulary.background_label})
    if not ids:
        return np.full(truth.shape, NOTHING, dtype=np.int32)
    found = segmenter.segment(image, only(vocabulary, ids)).labels
    # What is beyond the list is a word that the method added.
    table = np.array([*ids, NOTHING], dtype=np.int32)
    return table[np.where(found < len(ids), found, NOTHING)]


def only(vocabulary: Vocabulary, ids: Sequence[int]) -> Vocabulary:
    """Return a vocabulary of some of the names, in the order given.

    Raises:
        InputError: labels from an index on are background, so names cannot be left out.
    """
    if vocabulary.background.kind == "remap":
        raise InputError(
            f"names cannot be left out where {vocabulary.background} are background; "
            "use a vocabulary with another background policy"
        )
    things, synonyms = vocabulary.things, vocabulary.synonyms
    return vocabulary.with_(
        names=tuple(vocabulary.names[i] for i in ids),
        things=None if things is None else tuple(things[i] for i in ids),
        synonyms=None if synonyms is None else tuple(synonyms[i] for i in ids),
        key=None,
    )
