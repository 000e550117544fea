"""Replacing CaR's masks by those of Segment Anything that fit them.

Source: CaR paper section 3.4; SPEC car 12.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openvocab.errors import InputError
from openvocab.image import ImageArray
from openvocab.reading.checkpoints import read_tensors
from openvocab.weights.state_dict import load_strict

Masks = NDArray[np.bool_]
MaskGenerator = Callable[[ImageArray], Masks]


def match_masks(
    mask: NDArray[np.bool_],
    candidates: Masks,
    iom_thres: float = 0.6,
    min_pred_threshold: float = 0.01,
) -> NDArray[np.bool_]:
    """Join the masks that lie in a mask or cover it.

    Args:
        mask: (H, W), of CaR.
        candidates: (M, H, W), of SAM.
        iom_thres: share of the smaller of the two masks that both must have in common.
        min_pred_threshold: candidates that cover less of `mask` count only by how they cover it.

    Returns:
        (H, W), the union of the candidates that fit, or the best one if none does; `mask` itself
        if it is empty or there is no candidate.
    """
    if not mask.any() or not len(candidates):
        return mask
    shared = (candidates & mask).sum(axis=(1, 2)).astype(np.float64)  # (M,)
    inside = shared / np.maximum(candidates.sum(axis=(1, 2)), 1)
    covered = shared / mask.sum()
    overlap = np.maximum(np.where(covered < min_pred_threshold, 0, inside), covered)
    fitting = overlap > iom_thres
    if not fitting.any():
        fitting[overlap.argmax()] = True
    return np.asarray(candidates[fitting].any(axis=0))


def load_sam(checkpoint: str | Path, device: str = "cpu") -> MaskGenerator:
    """Load Segment Anything, with the settings of the original.

    Args:
        checkpoint: an official one; its name or "vit_b", "vit_l", "vit_h" in it tells the size.
        device: device to run on.

    Returns:
        A function from an image (H, W, 3) RGB to masks (M, H, W).

    Raises:
        InputError: `segment-anything` is not installed, or the checkpoint cannot be used.
    """
    try:
        from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
    except ImportError:
        raise InputError(
            "--sam needs the package segment-anything, which is not installed; install it with "
            "pip install segment-anything"
        ) from None
    path = Path(checkpoint)
    if not path.is_file():
        raise InputError(f"there is no SAM checkpoint '{path}'; download one of the official ones")
    found = re.search(r"vit_[blh]", path.name)
    if found is None:
        raise InputError(f"the name of '{path.name}' must contain vit_b, vit_l or vit_h")
    model = sam_model_registry[found[0]]()
    load_strict(model, read_tensors(path), source=str(path))
    generator = SamAutomaticMaskGenerator(
        model.to(device).eval(),
        points_per_side=64,
        pred_iou_thresh=0.88,
        stability_score_thresh=0.95,
        box_nms_thresh=0.7,
    )

    def generate(image: ImageArray) -> Masks:
        masks = [found["segmentation"] for found in generator.generate(image)]
        return np.stack(masks) if masks else np.zeros((0, *image.shape[:2]), dtype=bool)

    return generate
