"""Oracles for SAN: a part of the ground truth is given, to see where the errors come from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from openvocab.evaluation.oracle import (
    Labels,
    masks_of_labels,
    overlapped_most,
    paint_masks,
    true_words,
)
from openvocab.image import ImageArray
from openvocab.metrics.scores import IntArray
from openvocab.semantic import semantic_scores, vocabulary_labels
from openvocab.vocabulary import Vocabulary
from san.recognition import recognize
from san.segmenter import SANSegmenter

_NOWHERE = -100.0  # what keeps a token from looking at a patch, as in the original


@torch.inference_mode()
def label_with_true_names(
    segmenter: SANSegmenter, image: ImageArray, truth: IntArray, vocabulary: Vocabulary
) -> Labels:
    """Segment with SAN's own masks, each with the name of the true class that it covers most.

    The probability of "no object" stays SAN's own, since it belongs to the proposal of masks.

    Args:
        segmenter: the model, which is not changed.
        image: (H, W, 3) uint8 RGB.
        truth: class ids (H, W), -1 where void.
        vocabulary: vocabulary to which the class ids belong.

    Returns:
        (H, W), put together as SAN does it.
    """
    prediction, geometry = segmenter.predict(image, vocabulary)
    logits = prediction.mask_logits[0]  # (Q, hs, ws)
    masks = semantic_scores(torch.eye(len(logits)).to(logits), logits, geometry)  # (Q, H, W)
    words = true_words(overlapped_most(masks, truth), vocabulary).to(logits)  # (Q, W)
    no_object = prediction.class_logits[0].softmax(-1)[:, -1]
    weights = (1 - no_object)[:, None] * words
    return vocabulary_labels(weights, no_object, logits, geometry, vocabulary)


@torch.inference_mode()
def label_true_masks(
    segmenter: SANSegmenter, image: ImageArray, truth: IntArray, vocabulary: Vocabulary
) -> Labels:
    """Classify true masks with SAN's CLIP, whose attention is biased by the masks themselves.

    The bias of a patch is the logarithm of the share of the patch that the mask covers, so
    attention is multiplied by this share. SAN was trained with biases that it predicts itself,
    which may hold more information.

    Args:
        segmenter: the model, which is not changed.
        image: (H, W, 3) uint8 RGB.
        truth: class ids (H, W), -1 where void.
        vocabulary: vocabulary to which the class ids belong.

    Returns:
        (H, W): every true mask as what it was taken for.
    """
    masks = masks_of_labels(truth)
    if not len(masks):
        return paint_masks(masks, ())
    network, resized = segmenter.network, segmenter.resize(image)
    batch = network.preprocess([torch.from_numpy(resized).permute(2, 0, 1)])
    _, tokens, grid = network.clip_features(batch)
    size, padded = resized.shape[:2], batch.shape[2:]
    bias = _bias(torch.from_numpy(masks).to(batch), (size[0], size[1]), padded, grid)
    embeddings = recognize(
        network.clip.visual, network.deep_blocks, tokens, grid, [bias[None, None]], len(masks)
    )  # (1, Q, E)
    text = segmenter.text.encode_names(vocabulary.words, vocabulary.templates)
    words = (embeddings[0].float() @ text.T).argmax(dim=-1)  # (Q,)
    return paint_masks(masks, vocabulary.word_labels[words.cpu().numpy()])


def _bias(
    masks: Tensor, size: tuple[int, int], padded: torch.Size, grid: tuple[int, int]
) -> Tensor:
    """Turn masks (Q, H, W) into biases on CLIP's grid (Q, h, w), each with the maximum 0."""
    resized = F.interpolate(masks[None], size=size, mode="area")[0]
    outside = (0, padded[1] - size[1], 0, padded[0] - size[0])
    covered = F.adaptive_avg_pool2d(F.pad(resized, outside), grid)  # (Q, h, w), 0..1
    share = covered / covered.amax(dim=(1, 2), keepdim=True)
    return share.log().clamp(min=_NOWHERE)
