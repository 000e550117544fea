"""Mask2Former, OneFormer and EoMT as references: trained on a fixed list of labels.

Their labels are matched with the vocabulary by name. A name without a label can never be found, and
is listed. They are no competitors of open-vocabulary methods but what supervision reaches.

Source: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR
2022; Jain et al., "OneFormer: One Transformer to Rule Universal Image Segmentation", CVPR 2023;
Kerssies et al., "Your ViT is Secretly an Image Segmentation Model", CVPR 2025.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from openvocab.computation import Precision
from openvocab.errors import InputError
from openvocab.image import ImageArray
from openvocab.segmenter import BaseSegmenter, Segmentation
from openvocab.vocabulary import Vocabulary
from transformers_methods.loading import (
    Checkpoint,
    enlarged,
    fit_rule,
    fitted,
    load_checkpoint,
)
from transformers_methods.matching import RULE, Matching, match_labels

Unmatched = Literal["compete", "leave out"]
CLASSES = {
    "Mask2Former": "Mask2FormerForUniversalSegmentation",
    "OneFormer": "OneFormerForUniversalSegmentation",
    "EoMT": "EomtForUniversalSegmentation",
}
_LISTED = 10  # names in one warning


@dataclass(frozen=True)
class ClosedSetConfig:
    """The settings of a closed-set model.

    Attributes:
        unmatched: what becomes of the model's labels that are no name of the vocabulary: "compete",
            they may win pixels, which then show none of the names; "leave out", only the labels
            that have a name are compared.
        aliases: names of the vocabulary by label of the model, where their words differ.
        max_side: larger images are segmented at this size; scores of all labels are in memory.
    """

    unmatched: Unmatched = "compete"
    aliases: Mapping[str, str] = field(default_factory=dict)
    max_side: int = 1024

    def __post_init__(self) -> None:
        """Refuse values that can only be mistakes."""
        if self.unmatched not in get_args(Unmatched):
            raise InputError(f"unmatched is {self.unmatched!r}; use 'compete' or 'leave out'")
        if self.max_side < 1:
            raise InputError(f"max_side is {self.max_side}; it must be at least 1 pixel")


def load_closed_set(
    method: str,
    weights: str | Path,
    *,
    config: ClosedSetConfig | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    compile: bool = False,
) -> ClosedSetSegmenter:
    """Load "Mask2Former", "OneFormer" or "EoMT"; see `load_checkpoint` for the rest."""
    checkpoint = load_checkpoint(
        CLASSES[method],
        weights,
        device=device,
        precision=precision,
        compiled=("",) if compile else (),
    )
    return ClosedSetSegmenter(method, checkpoint, config)


class ClosedSetSegmenter(BaseSegmenter):
    """Gives every pixel the name of the model's best label."""

    def __init__(
        self, method: str, checkpoint: Checkpoint, config: ClosedSetConfig | None = None
    ) -> None:
        self.method, self.checkpoint = method, checkpoint
        self.config = config or ClosedSetConfig()
        model: Any = checkpoint.model
        self.model_labels = tuple(name for _, name in sorted(model.config.id2label.items()))
        self._known: Vocabulary | None = None
        self._warned: set[str] = set()

    def for_vocabulary(self, vocabulary: Vocabulary) -> ClosedSetSegmenter:
        """Return the same model, whose card also lists labels and names without a match."""
        other = copy.copy(self)
        other._known = vocabulary
        return other

    def matching(self, vocabulary: Vocabulary) -> Matching:
        """Return the names that the labels stand for; see `match_labels`."""
        return match_labels(self.model_labels, vocabulary, self.config.aliases)

    def describe(self) -> dict[str, Any]:
        """Return the lines of the protocol card that describe this segmenter."""
        described: dict[str, Any] = {
            "method": self.method,
            **self.checkpoint.describe(),
            "resize_rule": f"{fit_rule(self.config.max_side)}, then the checkpoint's processor",
            "post_processing": "class probability x mask, resized bilinearly, as in transformers",
            "closed_set": f"{len(self.model_labels)} labels; names are matched if {RULE}",
            "unmatched_labels": self.config.unmatched,
            "aliases": dict(self.config.aliases),
        }
        if self._known is not None:
            matching = self.matching(self._known)
            described["labels_without_name"] = list(matching.labels_without_name)
            described["names_without_label"] = list(matching.names_without_label)
        return described

    def segment_arrays(
        self, images: list[ImageArray], vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        """Segment images one by one; see `BaseSegmenter.segment_arrays`.

        `extra` lists the "names_without_label" and the "labels_without_name".

        Raises:
            InputError: none of the names is a label of the model, or the vocabulary wants a learned
                background.
        """
        if vocabulary.background.kind == "learned":
            raise InputError(
                f"{self.method} has no learned class for the background of pixels; use a "
                "vocabulary with the policy 'none', 'names', 'threshold' or 'remap'"
            )
        matching = self.matching(vocabulary)
        self._warn(matching, vocabulary)
        return [self._segment(image, vocabulary, matching, return_scores) for image in images]

    def _segment(
        self, image: ImageArray, vocabulary: Vocabulary, matching: Matching, return_scores: bool
    ) -> Segmentation:
        scores = self.label_scores(fitted(image, self.config.max_side)).cpu().numpy()
        words: list[int] = []
        used = []
        for place, word in enumerate(matching.words):
            if word is not None or self.config.unmatched == "compete":
                used.append(place)
                words.append(vocabulary.background_label if word is None else word)
        winners, best = scores[used].argmax(axis=0), scores[used].max(axis=0)
        labels = np.array(words, np.int32)[winners]
        threshold = vocabulary.background.value
        if threshold is not None:
            labels[best < threshold] = vocabulary.background_label
        size = image.shape[0], image.shape[1]
        return Segmentation(
            enlarged(labels, size),
            vocabulary,
            enlarged(_scores_of_names(scores, matching, vocabulary), size)
            if return_scores
            else None,
            extra={
                "names_without_label": list(matching.names_without_label),
                "labels_without_name": list(matching.labels_without_name),
            },
        )

    @torch.inference_mode()
    def label_scores(self, image: ImageArray) -> Tensor:
        """Return the score (C, H, W), not negative, of each of the model's labels at each pixel."""
        checkpoint, size = self.checkpoint, (image.shape[0], image.shape[1])
        inputs = checkpoint.pixels(image, **self._task())
        offsets = inputs.get("patch_offsets") or []
        padded = tuple(inputs["pixel_values"].shape[-2:])
        valid = padded
        if not offsets:  # what the processor adds below and to the right is cut off again
            alone = checkpoint.pixels(image, do_pad=False, **self._task())
            valid = tuple(alone["pixel_values"].shape[-2:])
        output = checkpoint.model(**self._inputs(inputs))
        process = getattr(checkpoint.processor, "image_processor", checkpoint.processor)
        (found,) = process.post_process_semantic_segmentation(
            output,
            target_sizes=[size if valid == padded else padded],
            return_segmentation_scores=True,
        )
        scores: Tensor = found.segmentation_scores.float()
        if valid != padded:
            cut = scores[None, :, : valid[0], : valid[1]]
            scores = F.interpolate(cut, size=size, mode="bilinear", align_corners=False)[0]
        return scores

    def _task(self) -> dict[str, Any]:
        """Return the task that OneFormer's image processor needs."""
        return {"task_inputs": ["semantic"]} if self.method == "OneFormer" else {}

    def _inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the model's inputs: pixels, EoMT's crops, and OneFormer's task as tokens."""
        names = [name for name in ("pixel_values", "patch_offsets") if name in inputs]
        taken: dict[str, Any] = {name: inputs[name] for name in names}
        if self.method == "OneFormer":
            most = self.checkpoint.processor.task_seq_length
            tokens = self.checkpoint.tokens(
                ["the task is semantic"], most, padding="max_length", max_length=most
            )
            taken["task_inputs"] = tokens["input_ids"] * tokens["attention_mask"]
        return taken

    def _warn(self, matching: Matching, vocabulary: Vocabulary) -> None:
        """Warn once for each vocabulary about its names that can never be found."""
        missing, key = matching.names_without_label, vocabulary.sha256()
        if not missing or key in self._warned:
            return
        self._warned.add(key)
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        warnings.warn(
            f"{self.method} has no label for {len(missing)} of the {len(vocabulary)} names and "
            f"never finds them: {', '.join(missing[:_LISTED])}{more}",
            stacklevel=3,
        )


def _scores_of_names(
    scores: NDArray[np.float32], matching: Matching, vocabulary: Vocabulary
) -> NDArray[np.float32]:
    """Reduce scores of labels (C, H, W) to those of names (K, H, W): the best label counts."""
    result = np.zeros((len(vocabulary), *scores.shape[1:]), np.float32)
    for score, word in zip(scores, matching.words, strict=True):
        if word is not None and word >= 0:
            np.maximum(result[word], score, out=result[word])
    return result
