"""Pictures of SAN's steps: its mask proposals, and where they tell CLIP to look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openvocab.drawing.maps import Bar, bars, fit_to, heat, number, spotlight
from openvocab.drawing.overlay import draw_overlay, side_by_side
from openvocab.image import ImageArray
from openvocab.methods import Explained
from openvocab.vocabulary import Vocabulary
from san.model import SANPrediction
from san.recognition import pool_bias
from san.segmenter import SANSegmenter

_MOST_PROPOSALS, _MOST_BIASES, _MOST_HEADS = 8, 3, 4  # that are drawn
_MOST_EMPTY = 6  # proposals without an object
_SIDE, _SMALL, _PANEL = 320, 230, 140  # pixels of pictures' long sides, and of a head's


@dataclass(frozen=True)
class BiasedMasks:
    """The prediction of the network for one image.

    Attributes:
        prediction: masks and classes, (1, Q, ...).
        masks: mask probabilities (Q, hs, ws) of the image, without the padding.
        biases: the biases (layers, heads, Q, h, w) that are added to CLIP's attention in its deep
            blocks; one layer stands for all of them.
        class_prob: (Q, W + 1), the last column is "no object".
    """

    prediction: SANPrediction
    masks: NDArray[np.float32]
    biases: NDArray[np.float32]
    class_prob: NDArray[np.float32]

    def importance(self) -> NDArray[np.float32]:
        """Return how much each proposal adds to the best score of its name (Q,)."""
        best = self.class_prob[:, :-1].max(axis=1)
        return np.asarray(best * self.masks.mean(axis=(1, 2)))


def explain(segmenter: SANSegmenter, image: ImageArray, vocabulary: Vocabulary) -> list[Explained]:
    """Show the mask proposals with their classes, the attention bias, and the result.

    Args:
        segmenter: looks at the image once more; nothing about it is changed.
        image: (H, W, 3) uint8 RGB.
        vocabulary: names to look for.
    """
    inside = look_inside(segmenter, image, vocabulary)
    photo = fit_to(image, _SIDE)
    empty = inside.class_prob.argmax(axis=1) == inside.class_prob.shape[1] - 1  # (Q,)
    order = np.argsort(-inside.importance(), kind="stable").tolist()
    objects = [query for query in order if not empty[query]]
    text = (
        "A light network beside CLIP proposes masks, and for each of them an attention bias: where "
        "in the photo CLIP's copy of the class token shall look. CLIP then names the mask."
    )
    result = segmenter.segment(image, vocabulary)
    return [
        Explained("The photo", photo, text, "Input"),
        *_proposals(inside, photo, objects, vocabulary.words),
        *_no_object(inside, photo, empty, vocabulary.words),
        *_attention(inside, photo, _one_for_each_name(inside, objects), vocabulary.words),
        Explained(
            "The label map",
            draw_overlay(image, result.labels, vocabulary.names, max_side=_SIDE),
            "At each pixel the masks vote for their names; a vote is the mask's probability there "
            "times that of the name.",
            "Result",
        ),
    ]


@torch.inference_mode()
def look_inside(segmenter: SANSegmenter, image: ImageArray, vocabulary: Vocabulary) -> BiasedMasks:
    """Run the network once, and return also the attention bias that it gives to CLIP."""
    network = segmenter.network
    resized = segmenter.resize(image)
    batch = network.preprocess([torch.from_numpy(resized).permute(2, 0, 1)])
    decoded: list[tuple[tuple[int, int], list[Tensor]]] = []  # CLIP's grid, and the biases
    hook = network.side_adapter.register_forward_hook(
        lambda _module, inputs, output: decoded.append((inputs[2], output[-1][1]))
    )
    try:
        text = segmenter.text.encode_names(vocabulary.words, vocabulary.templates)
        prediction = network(batch, network.classifier(text))[-1]
    finally:
        hook.remove()
    grid, layers = decoded[-1]
    # Padding is cut off, in cells of either grid.
    covered = resized.shape[0] / batch.shape[2], resized.shape[1] / batch.shape[3]
    biases = torch.stack([pool_bias(bias, grid)[0].float() for bias in layers])
    biases = torch.unflatten(biases, -1, grid)
    return BiasedMasks(
        prediction,
        _cut(prediction.mask_logits[0].sigmoid(), covered),
        _cut(biases, covered),
        prediction.class_logits[0].softmax(-1).cpu().numpy(),
    )


def _cut(maps: Tensor, covered: tuple[float, float]) -> NDArray[np.float32]:
    """Cut the cells of padding off (..., h, w) maps."""
    rows, columns = (
        max(1, round(share * side)) for share, side in zip(covered, maps.shape[-2:], strict=True)
    )
    array: NDArray[np.float32] = maps[..., :rows, :columns].cpu().numpy()
    return array


def _proposals(
    inside: BiasedMasks, photo: ImageArray, objects: Sequence[int], words: Sequence[str]
) -> Iterator[Explained]:
    group = f"Mask proposals: {len(objects)} of {len(inside.masks)} show one of the names"
    for rank, query in enumerate(objects[:_MOST_PROPOSALS], start=1):
        picture = spotlight(photo, inside.masks[query])
        title = f"{rank}. {_named(inside, query, words)}"
        yield Explained(title, picture, _rivals(inside, query, words), group)
    if not objects:
        yield Explained("every proposal", photo, group=group, empty=True)


def _no_object(
    inside: BiasedMasks, photo: ImageArray, empty: NDArray[np.bool_], words: Sequence[str]
) -> Iterator[Explained]:
    """Yield the proposals that say "no object", the largest masks first."""
    group = f"“No object”: {int(empty.sum())} of {len(empty)} proposals"
    areas = np.where(empty, inside.masks.mean(axis=(1, 2)), -1)
    queries = np.argsort(-areas, kind="stable")[: min(int(empty.sum()), _MOST_EMPTY)]
    for query in queries.tolist():
        picture = fit_to(spotlight(photo, inside.masks[query]), _SMALL)
        sure = inside.class_prob[query, -1]
        yield Explained(
            f"proposal {query}",
            picture,
            f"No object {number(float(sure))}; {_named(inside, query, words)}.",
            group,
            empty=not (inside.masks[query] > 0.5).any(),
        )


def _one_for_each_name(inside: BiasedMasks, queries: Sequence[int]) -> list[tuple[int, int]]:
    """Return rank and number of the most important proposals of different names."""
    first: dict[int, tuple[int, int]] = {}
    for rank, query in enumerate(queries, start=1):
        first.setdefault(int(inside.class_prob[query].argmax()), (rank, query))
    return list(first.values())[:_MOST_BIASES]


def _attention(
    inside: BiasedMasks, photo: ImageArray, queries: Sequence[tuple[int, int]], words: Sequence[str]
) -> Iterator[Explained]:
    """Yield the attention bias of some proposals, and of single heads of CLIP."""
    for rank, query in queries:
        group = f"Attention bias of proposal {rank}: {_named(inside, query, words)}"
        bias = inside.biases[-1, :, query]  # (heads, h, w) of the last layer
        mask = fit_to(spotlight(photo, inside.masks[query]), _SMALL)
        yield Explained("its mask", mask, group=group)
        mean = bias.mean(axis=0)
        yield Explained(
            "its bias, mean of all heads",
            heat(photo, _unit_range(mean)),
            f"Bright patches are looked at more ({mean.max():+.1f} before the softmax), dark ones "
            f"less ({mean.min():+.1f}).",
            group,
        )
        # Heads that tell patches apart most come first.
        spread = bias.reshape(len(bias), -1).std(axis=1)
        heads = np.argsort(-spread, kind="stable")[:_MOST_HEADS].tolist()
        yield Explained(
            f"{len(heads)} of CLIP's {len(bias)} heads",
            side_by_side(
                [heat(photo, _unit_range(bias[head])) for head in heads],
                [f"head {head}" for head in heads],
                height=_PANEL,
                gap=6,
            ),
            "Each head of CLIP's attention has a bias of its own; those that tell patches apart "
            "most come first.",
            group,
        )
        yield Explained("what CLIP says", _chart(inside, query, words), group=group)


def _chart(inside: BiasedMasks, query: int, words: Sequence[str]) -> ImageArray:
    names, best = [*words, "no object"], _best(inside, query, 4)
    return bars([Bar(names[word], float(inside.class_prob[query, word])) for word in best])


def _best(inside: BiasedMasks, query: int, count: int) -> list[int]:
    best: list[int] = np.argsort(-inside.class_prob[query], kind="stable")[:count].tolist()
    return best


def _named(inside: BiasedMasks, query: int, words: Sequence[str]) -> str:
    """Return the best name of a proposal, which is not "no object", and its probability."""
    best = int(inside.class_prob[query, :-1].argmax())
    return f"{words[best]} {number(float(inside.class_prob[query, best]))}"


def _rivals(inside: BiasedMasks, query: int, words: Sequence[str]) -> str:
    names = [*words, "no object"]
    return "Behind it: " + ", ".join(
        f"{names[word]} {number(float(inside.class_prob[query, word]))}"
        for word in _best(inside, query, 3)[1:]
    )


def _unit_range(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale a map to 0..1 and clip the 2 % at either end, so that outliers do not hide the rest."""
    low, high = np.quantile(values, (0.02, 0.98))
    scaled: NDArray[np.float32] = (values - low) / max(high - low, 1e-12)
    return scaled.clip(0, 1)
