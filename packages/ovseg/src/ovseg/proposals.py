"""Masks from elsewhere than MaskFormer, to find out which part of OVSeg makes the errors.

Source: OVSeg paper figure 2, where ground-truth masks show that CLIP is the bottleneck.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from openvocab.evaluation.oracle import KnownTruth, masks_of_labels
from openvocab.image import ImageArray


class GroundTruthProposals(KnownTruth):
    """A sample set whose ground-truth masks are also the proposals for its images.

    So it is both the data of `openvocab.evaluation.run.evaluate` and the `proposals` of an
    `OVSegSegmenter`.
    """

    def __call__(self, image: ImageArray) -> NDArray[np.bool_]:
        """Return the masks (Q, H, W) of the sample that was read last."""
        return masks_of_labels(self.truth)
