"""Pictures of OVSeg's steps: its proposals, CLIP's view of them, and the scores of each branch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openvocab.drawing.maps import Bar, bars, beside, fit_to, number, spotlight
from openvocab.drawing.overlay import draw_overlay
from openvocab.image import ImageArray
from openvocab.methods import Explained
from openvocab.vocabulary import Vocabulary
from ovseg.ensemble import Votes
from ovseg.regions import Regions, binarize
from ovseg.segmenter import ImageBranches, OVSegSegmenter

_MOST_DRAWN, _MOST_SMALL, _MOST_NAMES = 6, 12, 4  # proposals, small ones, names of an opinion
_SIDE, _SMALL = 320, 230  # pixels of pictures' long sides
_MASKFORMER, _CLIP, _BOTH = (37, 99, 235), (180, 83, 9), (21, 128, 61)


@dataclass(frozen=True)
class NamedRegions:
    """The intermediate results of OVSeg for one image, at the size at which OVSeg sees it.

    Attributes:
        seen: the resized image (h, w, 3).
        found: both branches.
        votes: weights with which each proposal counts for each word.
        mask_prob: (Q, h, w).
        order: the proposals that take part, the most important ones first.
    """

    seen: ImageArray
    found: ImageBranches
    votes: Votes
    mask_prob: Tensor
    order: tuple[int, ...]


def explain(
    segmenter: OVSegSegmenter, image: ImageArray, vocabulary: Vocabulary
) -> list[Explained]:
    """Show the proposals, the crops, the scores of both branches, their ensemble and the result.

    Args:
        segmenter: looks at the image once more; nothing about it is changed.
        image: (H, W, 3) uint8 RGB.
        vocabulary: names to look for.
    """
    vocabulary = segmenter.vocabulary(vocabulary)
    inside = look_inside(segmenter, image, vocabulary)
    photo, result = fit_to(image, _SIDE), segmenter.segment(image, vocabulary)
    text = (
        "MaskFormer proposes regions without knowing names. Each is cut out of the photo and shown "
        "to CLIP, which was trained on such cut-outs. Both say what the region shows, and their "
        "opinions are multiplied."
    )
    labels = result.labels
    return [
        Explained("The photo", photo, text, "Input"),
        *_proposals(inside, photo, vocabulary.words),
        *_opinions(segmenter, inside, photo, vocabulary.words),
        Explained(
            "The label map",
            draw_overlay(image, labels, vocabulary.names, max_side=_SIDE),
            "At each pixel the regions that cover it vote for their names.",
            "Result",
        ),
    ]


@torch.inference_mode()
def look_inside(
    segmenter: OVSegSegmenter, image: ImageArray, vocabulary: Vocabulary
) -> NamedRegions:
    """Run both branches once, and combine them as the segmenter does."""
    seen = segmenter.resize(image)
    found = segmenter.look(seen, vocabulary)
    votes, mask_prob = segmenter.votes(found, vocabulary), found.mask_prob()
    importance = votes.weights.amax(1) * mask_prob[votes.rows].mean((1, 2))
    order = votes.rows[importance.argsort(descending=True, stable=True)]
    return NamedRegions(seen, found, votes, mask_prob, tuple(order.tolist()))


@torch.inference_mode()
def crops_of(segmenter: OVSegSegmenter, inside: NamedRegions, proposals: Sequence[int]) -> Regions:
    """Return the crops (V, 3, S, S) of non-empty proposals as CLIP sees them, and their masks."""
    adapter = segmenter.model.clip_adapter
    adapter.region = segmenter.inference.region
    pixels = torch.from_numpy(np.ascontiguousarray(inside.seen)).permute(2, 0, 1)
    probability = inside.mask_prob[list(proposals)]
    binary, _ = binarize(probability, adapter.region.mask_threshold)
    return adapter.cut(adapter.normalize(pixels.to(probability.device)), probability, binary)


def _proposals(
    inside: NamedRegions, photo: ImageArray, words: Sequence[str]
) -> Iterator[Explained]:
    """Yield small pictures of the proposed regions."""
    valid = inside.found.branches.valid
    group = (
        f"Mask proposals: {len(valid)}, of which CLIP sees {int(valid.sum())} and "
        f"{len(inside.order)} take part"
    )
    for rank, proposal in enumerate(inside.order[:_MOST_SMALL], start=1):
        mask = inside.mask_prob[proposal].cpu().numpy()
        yield Explained(
            f"{rank}. {_best_name(inside, proposal, words)}",
            fit_to(spotlight(photo, mask), _SMALL),
            f"Score {number(_weight(inside, proposal).max().item())}; covers "
            f"{100 * mask.mean():.0f} % of the photo.",
            group,
            empty=not bool(valid[proposal]),
        )
    if not inside.order:
        yield Explained("every proposal", photo, group=group, empty=True)


def _opinions(
    segmenter: OVSegSegmenter, inside: NamedRegions, photo: ImageArray, words: Sequence[str]
) -> Iterator[Explained]:
    """Yield region, crop and scores of the most important proposals that CLIP has classified."""
    valid = inside.found.branches.valid.tolist()
    ranked = [(rank, p) for rank, p in enumerate(inside.order, start=1) if valid[p]][:_MOST_DRAWN]
    if not ranked or not segmenter.inference.clip_ensemble:
        return
    crops = crops_of(segmenter, inside, [proposal for _, proposal in ranked])
    for (rank, proposal), crop in zip(ranked, crop_pictures(segmenter, crops), strict=True):
        group = f"Proposal {rank}: {_best_name(inside, proposal, words)}"
        mask = inside.mask_prob[proposal].cpu().numpy()
        yield Explained("the region", fit_to(spotlight(photo, mask), _SMALL), group=group)
        yield Explained(
            "the crop that CLIP sees",
            fit_to(crop, _SMALL),
            "The surroundings are painted over, and the rest is stretched to a square.",
            group,
        )
        weight = segmenter.inference.ensemble_weight
        yield Explained(
            "both opinions, and their ensemble",
            _charts(inside, proposal, words),
            f"The ensemble is MaskFormer's probability to the power {1 - weight:g}, times CLIP's "
            f"to the power {weight:g}."
            if weight > 0 and segmenter.proposals is None
            else "CLIP decides alone.",
            group,
        )


def crop_pictures(segmenter: OVSegSegmenter, crops: Regions) -> list[ImageArray]:
    """Undo the normalization of crops: V pictures (S, S, 3) uint8."""
    adapter = segmenter.model.clip_adapter
    pixels = crops.images * adapter.pixel_std + adapter.pixel_mean
    array: NDArray[np.uint8] = (
        pixels.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    )
    return list(array)


def _charts(inside: NamedRegions, proposal: int, words: Sequence[str]) -> ImageArray:
    """Draw the scores of MaskFormer, CLIP and both for a proposal that CLIP has classified."""
    branches = inside.found.branches
    place = int(branches.valid[:proposal].sum())  # among those that CLIP has seen
    opinions = (
        ("MaskFormer", branches.class_prob[proposal], _MASKFORMER),
        ("CLIP", branches.clip_prob[place], _CLIP),
        ("ensemble", _weight(inside, proposal), _BOTH),
    )
    return beside([_chart(title, prob, words, color) for title, prob, color in opinions])


def _chart(
    title: str, prob: Tensor, words: Sequence[str], color: tuple[int, int, int]
) -> ImageArray:
    best = prob.argsort(descending=True, stable=True)[:_MOST_NAMES].tolist()
    lines = [Bar(words[word], float(prob[word]), color) for word in best]
    return bars(lines, title=title, width=290)


def _weight(inside: NamedRegions, proposal: int) -> Tensor:
    """Return the weight of a proposal for each word (W,)."""
    row = (inside.votes.rows == proposal).nonzero()[0, 0]
    return inside.votes.weights[row]


def _best_name(inside: NamedRegions, proposal: int, words: Sequence[str]) -> str:
    return words[int(_weight(inside, proposal).argmax())]
