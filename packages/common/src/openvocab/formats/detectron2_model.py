"""A segmenter that programs written for detectron2 can call as one of its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openvocab.errors import InputError
from openvocab.evaluation.augmentation import DenseSegmenter
from openvocab.semantic import vocabulary_scores
from openvocab.vocabulary import Vocabulary


def as_detectron2_model(segmenter: DenseSegmenter, vocabulary: Vocabulary) -> nn.Module:
    """Return a module that takes detectron2's input dicts and gives its outputs.

    Its evaluators, test-time augmentation and visualizers then work on the segmenter.

    Args:
        segmenter: makes the scores.
        vocabulary: the classes, in the order of the data set's `stuff_classes`; an input dict may
            bring its own as "vocabulary", a list of names.
    """
    return _Detectron2Model(segmenter, vocabulary)


class _Detectron2Model(nn.Module):
    def __init__(self, segmenter: DenseSegmenter, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.vocabulary = vocabulary
        self.eval()

    @torch.inference_mode()
    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        """Score a batch.

        Args:
            batched_inputs: dicts with "image" `(3, h, w)` RGB in 0..255, resized already, and
                optionally "height" and "width" of the output.

        Returns:
            One `{"sem_seg": (K, height, width)}` for each.
        """
        return [{"sem_seg": self._scores(entry)} for entry in batched_inputs]

    def _scores(self, entry: Mapping[str, Any]) -> Tensor:
        image = entry.get("image")
        if not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] != 3:
            raise InputError("an input dict needs 'image', a tensor (3, height, width) in RGB")
        pixels = image.detach().cpu().permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)
        size = int(entry.get("height", image.shape[1])), int(entry.get("width", image.shape[2]))
        vocabulary = self.vocabulary
        if "vocabulary" in entry:
            vocabulary = Vocabulary.from_names(entry["vocabulary"])
        scores = self.segmenter.scores_at(pixels.contiguous().numpy(), vocabulary, size)
        return torch.from_numpy(vocabulary_scores(scores, vocabulary))
