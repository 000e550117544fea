"""Why a pixel has its name: margins, best places, near-duplicates, and where two results differ.

Everything here is arithmetic on label maps, scores and text embeddings; it needs no page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from openvocab.formats.run_length import Labels, Mask
from openvocab.vocabulary import NOTHING

NEAR = 0.9  # cosine of two text embeddings from which on names compete for the same pixels
RARE = 4  # a word that CLIP reads in so many pieces was rare in its training
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class NameEvidence:
    """What one name reached in a picture.

    Attributes:
        name: the name.
        share: of the picture that it won, 0..1.
        best: its highest score anywhere.
        place: (row, column) of the first pixel where it scored that.
        winner: the label that won this pixel, -1 for none of the names.
        winner_score: what the winner scored there; 0 for none of the names.
    """

    name: str
    share: float
    best: float
    place: tuple[int, int]
    winner: int
    winner_score: float

    @property
    def behind(self) -> float:
        """By how much the winner scored more at the name's best place."""
        return self.winner_score - self.best


def evidence_of(labels: Labels, scores: Scores, names: Sequence[str]) -> list[NameEvidence]:
    """Say for each name where it scored best, and who won there.

    Args:
        labels: (H, W), indices into `names`, or -1.
        scores: (K, H, W).
        names: the K names.
    """
    found = []
    for index, name in enumerate(names):
        place = np.unravel_index(int(scores[index].argmax()), labels.shape)
        row, column = int(place[0]), int(place[1])
        winner = int(labels[row, column])
        found.append(
            NameEvidence(
                name=name,
                share=float((labels == index).mean()),
                best=float(scores[index, row, column]),
                place=(row, column),
                winner=winner,
                winner_score=0.0 if winner == NOTHING else float(scores[winner, row, column]),
            )
        )
    return found


def margin_of(scores: Scores) -> Scores:
    """Return how far the best score lies above the second best, (H, W); one name is its own."""
    if len(scores) == 1:
        return np.array(scores[0])
    top = np.partition(scores, len(scores) - 2, axis=0)[-2:]
    return np.asarray(top[1] - top[0], dtype=np.float32)


@dataclass(frozen=True)
class Difference:
    """Where two results of one picture differ.

    Attributes:
        mask: (H, W), the pixels with different names.
        share: of the picture, 0..1.
        swaps: (name of the first, name of the second, share of the picture), largest first; a name
            is None where the result has none.
    """

    mask: Mask
    share: float
    swaps: tuple[tuple[str | None, str | None, float], ...]


def difference_of(
    first: Labels, first_names: Sequence[str], second: Labels, second_names: Sequence[str]
) -> Difference:
    """Compare two label maps of one picture by the names that they stand for.

    Args:
        first: (H, W), indices into `first_names`, or -1.
        first_names: may differ from `second_names` in order and wording.
        second: (H, W), indices into `second_names`, or -1.
        second_names: its names.

    Raises:
        ValueError: the maps differ in size.
    """
    if first.shape != second.shape:
        raise ValueError(f"the label maps are {first.shape} and {second.shape}")
    codes = {name: code for code, name in enumerate(dict.fromkeys([*first_names, *second_names]))}
    words = [*codes, None]
    maps = []
    for labels, names in ((first, first_names), (second, second_names)):
        lookup = np.array([codes[name] for name in names] + [len(codes)])  # -1 points at the last
        maps.append(lookup[labels])
    mask = maps[0] != maps[1]
    pairs, counts = np.unique(maps[0][mask] * len(words) + maps[1][mask], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    swaps = tuple(
        (words[pairs[i] // len(words)], words[pairs[i] % len(words)], counts[i] / mask.size)
        for i in order.tolist()
    )
    return Difference(mask, float(mask.mean()), swaps)


def near_duplicates(
    names: Sequence[str], embeddings: npt.NDArray[np.floating], *, least: float = NEAR
) -> list[tuple[str, str, float]]:
    """List the pairs of names that the text encoder hardly tells apart, the nearest first.

    Args:
        names: K names.
        embeddings: (K, C), one for each, of any length.
        least: the smallest cosine that is listed.
    """
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = unit @ unit.T
    near = np.argwhere(np.triu(cosines >= least, 1)).tolist()
    pairs = [(names[i], names[j], float(cosines[i, j])) for i, j in near]
    return sorted(pairs, key=lambda pair: -pair[2])


def umbrella_terms(
    names: Sequence[str], kinds: dict[str, str] | None = None
) -> list[tuple[str, str]]:
    """List (wider name, narrower name) where both are asked for and so compete.

    A name is wider if the other ends with it, as "bear" does "polar bear", if the other goes on
    behind its hyphen, as "wall" does "wall-brick", or if `kinds` says so.

    Args:
        names: what is asked for.
        kinds: what a word is a kind of, such as {"dog": "animal"}.
    """
    kinds = kinds or {}
    there = {name.lower().strip(): name for name in names}
    found = []
    for narrow in names:
        low = narrow.lower().strip()
        words = low.split()
        wider = [" ".join(words[start:]) for start in range(1, len(words))]
        wider += [low.partition("-")[0], kinds.get(low, "")]
        found += [(there[wide], narrow) for wide in wider if wide in there and wide != low]
    return found


def rare_words(
    names: Sequence[str], pieces: Callable[[Sequence[str]], Sequence[int]], *, least: int = RARE
) -> list[str]:
    """List the words of names that a tokenizer knows only in pieces, as it does rare words.

    Args:
        names: what is asked for.
        pieces: tells for each of several words in how many pieces the tokenizer cuts it.
        least: the number of pieces from which on a word is listed.
    """
    words = list(dict.fromkeys(w for n in names for w in re.findall(r"[^\W\d_]+", n.lower())))
    counts = pieces(words) if words else []
    return [word for word, count in zip(words, counts, strict=True) if count >= least]
