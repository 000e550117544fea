"""From what a method knows at each pixel to a confidence in 0..1, for methods that are calibrated.

The evidence is computed on the small grid on which a method's masks are, so that it costs little;
only the log odds are resized to the image.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from openvocab.computation import to_device
from openvocab.errors import InputError
from openvocab.metrics.calibration import Calibration, FloatArray, features_of
from openvocab.segmenter import Segmentation
from openvocab.semantic import MaskGeometry
from openvocab.vocabulary import Vocabulary

if TYPE_CHECKING:
    from openvocab.segmenter import BaseSegmenter

SUFFIX = ".calibration.json"
# Of a method's description: they say how it is run, not what it computes.
_NO_SETTINGS = ("device", "precision", "variant", "weights_sha256", "calibration")
_BLOCK = 1 << 22  # scores that are in memory at once


@dataclass(frozen=True)
class Evidence:
    """What a method knows about the names at each place of a grid.

    Attributes:
        best: (h, w) the score of the best name, not negative.
        total: (h, w) the sum over all names.
        geometry: how the grid becomes the image.
    """

    best: NDArray[np.float32]
    total: NDArray[np.float32]
    geometry: MaskGeometry

    def features(self) -> FloatArray:
        """Return the features (3, h, w) of the grid, see `features_of`."""
        return features_of(self.best, self.total)

    def to_image(self, maps: FloatArray) -> NDArray[np.float32]:
        """Resize maps (C, h, w) of the grid to the image (C, H, W), bilinearly."""
        height, width = self.geometry.valid
        tensor = torch.from_numpy(maps).float()[None]
        for size in (self.geometry.padded, self.geometry.output):
            tensor = F.interpolate(tensor, size=size, mode="bilinear", align_corners=False)
            if size == self.geometry.padded:
                tensor = tensor[..., :height, :width]
        resized: NDArray[np.float32] = tensor[0].numpy()
        return resized


def counts_as_name(vocabulary: Vocabulary) -> NDArray[np.bool_]:
    """Tell which of a vocabulary's words (W,) speak for a name that is not the background."""
    labels = vocabulary.word_labels
    return np.asarray((labels >= 0) & (labels != vocabulary.background_label))


def grid_evidence(
    class_prob: Tensor, mask_logits: Tensor, geometry: MaskGeometry, vocabulary: Vocabulary
) -> Evidence:
    """Sum up the scores of masks with classes, where the masks are, in bounded memory.

    Args:
        class_prob: (Q, W) of the vocabulary's words, not negative.
        mask_logits: (Q, h, w).
        geometry: how the grid becomes the image.
        vocabulary: tells which words are names.
    """
    own = torch.from_numpy(np.flatnonzero(counts_as_name(vocabulary)))
    prob = class_prob.float()[:, to_device(own, class_prob.device)]  # (Q, names)
    masks = mask_logits.float().sigmoid().flatten(1)  # (Q, h * w)
    best = torch.zeros_like(masks[0])
    for some in torch.split(prob, max(1, _BLOCK // masks.shape[1]), dim=1):
        if some.shape[1]:
            torch.maximum(best, (some.T @ masks).amax(dim=0), out=best)
    total = prob.sum(dim=1) @ masks
    size = mask_logits.shape[1:]
    best_map, total_map = torch.stack([best, total]).view(2, *size).cpu().numpy()
    return Evidence(best_map, total_map, geometry)


def rated(
    segmenter: BaseSegmenter, found: Segmentation, evidence: Callable[[], Evidence]
) -> Segmentation:
    """Return a result with its confidence, or as it is where the method is not calibrated.

    Args:
        segmenter: the method; its `on_evidence` is told.
        found: what it found.
        evidence: computes the evidence; it is not called where nobody needs it.
    """
    calibration, on_evidence = segmenter.calibration, segmenter.on_evidence
    if calibration is None and on_evidence is None:
        return found
    known = evidence()
    if on_evidence is not None:
        on_evidence(known)
    return found if calibration is None else apply(calibration, found, known)


def apply(calibration: Calibration, found: Segmentation, evidence: Evidence) -> Segmentation:
    """Return a result with the probabilities that a calibration gives its pixels.

    Where the class "background" was found, the probability that no other name is there counts.
    """
    features = evidence.features()
    logits = np.stack(
        [head.logits(features) for head in (calibration.confidence, calibration.named)]
    )
    confidence, named = torch.from_numpy(evidence.to_image(logits)).sigmoid().numpy()
    background = found.vocabulary.background_label
    if background >= 0:
        confidence = np.where(found.labels == background, 1 - named, confidence)
    return replace(found, confidence=confidence, named=named)


def settings_sha256(description: Mapping[str, Any]) -> str:
    """Return a fingerprint of the settings in a method's `describe()` that decide its scores."""
    kept = {key: value for key, value in description.items() if key not in _NO_SETTINGS}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def calibration_file(weights: str | Path) -> Path:
    """Return the file of the calibration that belongs to a weights file, beside it."""
    return Path(weights).with_suffix(SUFFIX)


def load_calibration(segmenter: BaseSegmenter, file: Path) -> None:
    """Let a segmenter use the calibration in a file, if it is there and fits.

    A file that is damaged or was fitted for other weights gives a warning, since it says nothing
    about these weights. One that was fitted for other settings, such as another size of the images,
    is left alone: the method then counts as not calibrated.
    """
    segmenter.calibration_file = file
    if not file.is_file():
        return
    try:
        calibration = Calibration.load(file)
    except InputError as error:
        warnings.warn(f"confidences are left out: {error}", stacklevel=3)
        return
    if calibration.weights_sha256 != segmenter.describe().get("weights_sha256"):
        warnings.warn(
            f"'{file}' was fitted for other weights, so confidences are left out; fit it again "
            "with python -m openvocab.calibrate.",
            stacklevel=3,
        )
        return
    use_calibration(segmenter, calibration)


def use_calibration(segmenter: BaseSegmenter, calibration: Calibration | None) -> None:
    """Let a segmenter use a calibration, or none if it was fitted for other settings."""
    if calibration is not None:
        own = settings_sha256(segmenter.describe())
        calibration = calibration if calibration.settings_sha256 == own else None
    segmenter.calibration = calibration
    segmenter.calibrated = calibration is not None


def calibration_line(segmenter: BaseSegmenter) -> str:
    """Return what a protocol card says of a calibration: its fingerprint, or "none"."""
    calibration = segmenter.calibration
    return "none" if calibration is None else calibration.sha256()
