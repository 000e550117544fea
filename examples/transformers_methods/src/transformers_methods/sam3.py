"""SAM 3 with concept prompts: one name at a time, whose instances become one label map.

Source: Carion et al., "SAM 3: Segment Anything with Concepts", 2025.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from openvocab.clip.template_sets import resolve_templates
from openvocab.computation import Precision
from openvocab.errors import InputError
from openvocab.image import ImageArray
from openvocab.segmenter import BaseSegmenter, Segmentation
from openvocab.vocabulary import BACKGROUND_NAME, NOTHING, Vocabulary
from transformers_methods.loading import (
    Checkpoint,
    enlarged,
    fit_rule,
    fitted,
    load_checkpoint,
)

DEFAULT_WEIGHTS = "facebook/sam3"
Overlap = Literal["score", "probability", "smallest"]
_OVERLAPS: dict[str, str] = {
    "score": "the instance with the highest score",
    "probability": "the instance with the highest score x mask probability",
    "smallest": "the smallest instance",
}
_TOKENS = 32  # that SAM 3 reads


@dataclass(frozen=True)
class SAM3Config:
    """The settings of SAM 3.

    Attributes:
        overlap: which instance a pixel belongs to that several cover: "score", the one with the
            highest score; "probability", the one with the highest product of score and mask
            probability at the pixel; "smallest", the one with the fewest pixels, so that parts lie
            on wholes. Of equal ones the name that comes first in the vocabulary wins.
        score_threshold: instances whose score (query times presence) is not above it are left out.
        mask_threshold: an instance covers the pixels whose mask probability is above it.
        prompt: the phrase around a name; the templates of vocabularies are not used.
        max_side: larger images are segmented at this size; SAM 3 itself sees 1008 x 1008.
    """

    overlap: Overlap = "score"
    score_threshold: float = 0.5
    mask_threshold: float = 0.5
    prompt: str = "{}"
    max_side: int = 2048

    def __post_init__(self) -> None:
        """Refuse values that can only be mistakes."""
        if self.overlap not in get_args(Overlap):
            raise InputError(f"overlap is {self.overlap!r}; use one of {', '.join(_OVERLAPS)}")
        for name in ("score_threshold", "mask_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name):g}; it must lie in 0..1")
        resolve_templates([self.prompt])
        if self.max_side < 1:
            raise InputError(f"max_side is {self.max_side}; it must be at least 1 pixel")


@dataclass(frozen=True)
class Instance:
    """One found instance.

    Attributes:
        word: place in the vocabulary's words of what it was found by.
        score: 0..1.
        mask: (H, W) float32, mask probability in 0..1.
    """

    word: int
    score: float
    mask: NDArray[np.float32]


@dataclass(frozen=True)
class Merged:
    """Several instances that were merged.

    Attributes:
        words: (H, W) int32, the place of the word that won the pixel, or -1 where none covers it.
        scores: (W, H, W) float32, the best score of each word's instances that cover the pixel; 0
            where none does; None if they were not asked for.
    """

    words: NDArray[np.int32]
    scores: NDArray[np.float32] | None


def merge_instances(
    instances: Iterable[Instance],
    size: tuple[int, int],
    words: int,
    *,
    overlap: Overlap = "score",
    mask_threshold: float = 0.5,
    return_scores: bool = False,
) -> Merged:
    """Merge instances one after the other, so that only one mask is in memory at a time.

    Args:
        instances: instances in the order of the words; of equal ones the first wins.
        size: (H, W) of the masks.
        words: number of words.
        overlap: rule for overlapping instances, see `SAM3Config`.
        mask_threshold: threshold of the masks, see `SAM3Config`.
        return_scores: also return the scores of all words.
    """
    winners = np.full(size, NOTHING, np.int32)
    best = np.full(size, -np.inf, np.float32)
    scores = np.zeros((words, *size), np.float32) if return_scores else None
    for one in instances:
        inside = one.mask > mask_threshold
        if overlap == "probability":
            rank = one.score * one.mask
        else:
            value = one.score if overlap == "score" else -float(inside.sum())
            rank = np.full(size, value, np.float32)
        wins = inside & (rank > best)
        winners[wins], best[wins] = one.word, rank[wins]
        if scores is not None:
            np.maximum(scores[one.word], np.float32(one.score) * inside, out=scores[one.word])
    return Merged(winners, scores)


def load_sam3(
    weights: str | Path = DEFAULT_WEIGHTS,
    *,
    config: SAM3Config | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    compile: bool = False,
) -> SAM3Segmenter:
    """Load SAM 3 and return a segmenter; see `load_checkpoint` for the arguments and errors."""
    parts = ("vision_encoder", "detr_encoder", "detr_decoder", "mask_decoder")
    checkpoint = load_checkpoint(
        "Sam3Model",
        weights,
        device=device,
        precision=precision,
        compiled=parts if compile else (),
    )
    return SAM3Segmenter(checkpoint, config)


class SAM3Segmenter(BaseSegmenter):
    """Asks SAM 3 for each name by itself; pixels that no instance covers show none of the names."""

    templates = "single"  # for the card of a user's own names; see `SAM3Config.prompt`

    def __init__(self, checkpoint: Checkpoint, config: SAM3Config | None = None) -> None:
        self.checkpoint, self.config = checkpoint, config or SAM3Config()

    def describe(self) -> dict[str, Any]:
        """Return the lines of the protocol card that describe this segmenter."""
        config = self.config
        return {
            "method": "SAM 3",
            **self.checkpoint.describe(),
            "resize_rule": f"{fit_rule(config.max_side)}, then the checkpoint's processor",
            "thresholds": {"score": config.score_threshold, "mask": config.mask_threshold},
            "post_processing": "mask probabilities resized bilinearly; where instances overlap, "
            f"{_OVERLAPS[config.overlap]} wins; what none covers is background",
            "overlap": config.overlap,
            "prompt": f"{config.prompt} (the vocabulary's templates are not used)",
        }

    def segment_arrays(
        self, images: list[ImageArray], vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        """Segment images one by one; see `BaseSegmenter.segment_arrays`.

        Under the policy "threshold", instances whose score is below its value are left out too.

        Raises:
            InputError: the vocabulary holds no word, or a name is too long.
        """
        if not any(word != BACKGROUND_NAME for word in vocabulary.words):
            raise InputError(
                f"the vocabulary holds nothing but {', '.join(vocabulary.names)}; name something "
                "to look for"
            )
        return [self._segment(image, vocabulary, return_scores) for image in images]

    def _segment(
        self, image: ImageArray, vocabulary: Vocabulary, return_scores: bool
    ) -> Segmentation:
        picture = fitted(image, self.config.max_side)
        merged = merge_instances(
            self.instances(picture, vocabulary),
            (picture.shape[0], picture.shape[1]),
            len(vocabulary.words),
            overlap=self.config.overlap,
            mask_threshold=self.config.mask_threshold,
            return_scores=return_scores,
        )
        size = image.shape[0], image.shape[1]
        word_labels = np.append(vocabulary.word_labels, np.int32(vocabulary.background_label))
        labels = word_labels[enlarged(merged.words, size)]  # -1 points to the appended one
        scores = None
        if merged.scores is not None:
            scores = enlarged(_scores_of_names(merged.scores, vocabulary), size)
        return Segmentation(labels, vocabulary, scores)

    @torch.inference_mode()
    def instances(self, image: ImageArray, vocabulary: Vocabulary) -> Iterator[Instance]:
        """Yield the instances of each word in an image (H, W, 3); the image is encoded once.

        The word "background" is left out, since it stands for the pixels that no instance covers.
        """
        model: Any = self.checkpoint.model
        seen = model.get_vision_features(self.checkpoint.pixels(image)["pixel_values"])
        floor = self.config.score_threshold
        least = vocabulary.background.value or 0.0
        size = image.shape[0], image.shape[1]
        for place, word in enumerate(vocabulary.words):
            if word == BACKGROUND_NAME:
                continue
            text = self.config.prompt.replace("{}", word)
            tokens = self.checkpoint.tokens(
                [text], _TOKENS, padding="max_length", max_length=_TOKENS
            )
            found = model(vision_embeds=seen, **tokens)
            scores = (found.pred_logits.sigmoid() * found.presence_logits.sigmoid())[0].float()
            masks = found.pred_masks[0].float().sigmoid()  # (Q, h, w)
            for score, mask in zip(scores.tolist(), masks, strict=True):
                if score > floor and score >= least:
                    resized = F.interpolate(mask[None, None], size, mode="bilinear")[0, 0]
                    yield Instance(place, score, resized.cpu().numpy())


def _scores_of_names(scores: NDArray[np.float32], vocabulary: Vocabulary) -> NDArray[np.float32]:
    """Reduce scores of words (W, H, W) to those of names (K, H, W): the best word counts."""
    result = np.zeros((len(vocabulary), *scores.shape[1:]), np.float32)
    for score, label in zip(scores, vocabulary.word_labels.tolist(), strict=True):
        if label >= 0:
            np.maximum(result[label], score, out=result[label])
    return result
