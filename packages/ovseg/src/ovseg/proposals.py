"""Masks from elsewhere than MaskFormer, to find out which half of the method loses what.

Source: OVSeg paper figure 2, where ground-truth masks show that CLIP is the bottleneck.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openvocab.image import ImageArray
from openvocab.metrics import Ignore, void_values
from openvocab.samples import Sample, SampleSet
from openvocab.vocabulary import Vocabulary


def masks_of_labels(labels: NDArray[Any], void: Sequence[int] = ()) -> NDArray[np.bool_]:
    """Return one mask for each value of a label map (H, W) that is not void: (Q, H, W)."""
    values = [value for value in np.unique(labels) if value >= 0 and value not in void]
    masks: NDArray[np.bool_] = labels[None] == np.array(values).reshape(-1, 1, 1)
    return masks


class GroundTruthProposals:
    """A sample set whose ground-truth masks are also the proposals for its images.

    The evaluation reads an image's label map right before the image is segmented; this object
    hands its masks over in between. So it is both the data of `openvocab.evaluation.evaluate` and
    the `proposals` of an `OVSegSegmenter`.
    """

    def __init__(self, data: SampleSet) -> None:
        self._data = data
        self._masks: NDArray[np.bool_] | None = None

    def __call__(self, image: ImageArray) -> NDArray[np.bool_]:
        """Return the masks (Q, H, W) of the sample that was read last."""
        if self._masks is None:
            raise RuntimeError("no label map was read yet; evaluate with this object as the data")
        return self._masks

    def read_label(self, sample: Sample) -> NDArray[Any]:
        """Read a label map and remember its masks."""
        labels = self._data.read_label(sample)
        void = void_values(len(self.vocabulary), self.ignore_index)
        self._masks = masks_of_labels(labels, tuple(void))
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
