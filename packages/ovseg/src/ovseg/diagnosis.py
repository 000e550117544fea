"""Oracles for OVSeg: a part of the ground truth is given, to see which part makes the errors."""

from __future__ import annotations

from dataclasses import replace

import torch

from openvocab.evaluation.oracle import (
    Labels,
    masks_of_labels,
    overlapped_most,
    paint_masks,
    true_words,
)
from openvocab.image import ImageArray
from openvocab.metrics.scores import IntArray
from openvocab.semantic import MaskGeometry, semantic_scores
from openvocab.vocabulary import Vocabulary
from ovseg.ensemble import Branches
from ovseg.segmenter import OVSegSegmenter


@torch.inference_mode()
def label_with_true_names(
    segmenter: OVSegSegmenter, image: ImageArray, truth: IntArray, vocabulary: Vocabulary
) -> Labels:
    """Segment with MaskFormer's masks, each with the name of the true class that it covers most.

    The probability of "no object" stays MaskFormer's own, since it belongs to the proposal of
    masks. CLIP is not used.

    Args:
        segmenter: the model, which is not changed.
        image: (H, W, 3) uint8 RGB.
        truth: class ids (H, W), -1 where void.
        vocabulary: vocabulary to which the class ids belong.

    Returns:
        (H, W), put together as OVSeg does it.
    """
    proposer = segmenter.with_inference(replace(segmenter.inference, clip_ensemble=False))
    found = proposer.look(segmenter.resize(image), vocabulary)
    logits, size = found.mask_logits, (truth.shape[0], truth.shape[1])
    geometry = MaskGeometry(found.padded, found.size, size, resize_logits=False)
    masks = semantic_scores(torch.eye(len(logits)).to(logits), logits, geometry)  # (Q, H, W)
    words = true_words(overlapped_most(masks, truth), vocabulary).to(logits)  # (Q, W)
    everything = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    branches = Branches((1 - found.no_object)[:, None] * words, words, everything)
    painting = segmenter.paint(replace(found, branches=branches), vocabulary)
    return segmenter.label(painting, size, vocabulary)


def label_true_masks(
    segmenter: OVSegSegmenter, image: ImageArray, truth: IntArray, vocabulary: Vocabulary
) -> Labels:
    """Classify true masks with the mask-adapted CLIP alone.

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
    told = segmenter.with_proposals(lambda resized: masks)
    branches = told.look(segmenter.resize(image), vocabulary).branches
    valid = branches.valid.cpu().numpy()  # a mask may get lost in resizing
    words = branches.clip_prob.argmax(dim=1).cpu().numpy()
    return paint_masks(masks[valid], vocabulary.word_labels[words])
