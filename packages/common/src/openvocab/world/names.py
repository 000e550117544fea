"""The names of the world: their appearance, and whether segmentation training may see them.

The order of the names is that of the labels: all seen names come first, so that the labels of a
training set, whose vocabulary stops there, are the same numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from openvocab.reading.json_files import packaged_json
from openvocab.vocabulary import WORLD, Vocabulary


@dataclass(frozen=True)
class Name:
    """The name of a thing or of stuff.

    Attributes:
        label: value in label maps.
        name: the word for it.
        category: category to which the name belongs.
        seen: whether segmentation training gets masks of it.
        code: code point of a thing's pictogram in hexadecimal; "" for stuff.
        article: article before the word in a caption.
        level: 0 for stuff that lies above other stuff (sky), 1 between, 2 below (ground).
    """

    label: int
    name: str
    category: str
    seen: bool
    code: str = ""
    article: str = ""
    level: int = 0

    @property
    def is_thing(self) -> bool:
        """Return whether it is countable and has a pictogram."""
        return bool(self.code)


@cache
def world_names() -> tuple[Name, ...]:
    """Return all names by label: seen things, seen stuff, unseen things, unseen stuff."""
    data = _data()
    rows = sorted([*data["things"], *data["stuff"]], key=lambda row: not row["seen"])  # stable
    return tuple(Name(label, **row) for label, row in enumerate(rows))


@cache
def name_of(word: str) -> Name:
    """Return the entry of a word.

    Raises:
        KeyError: nothing in the world is called so.
    """
    return {name.name: name for name in world_names()}[word]


def seen_labels() -> tuple[int, ...]:
    """Return the labels with masks in segmentation training."""
    return tuple(name.label for name in world_names() if name.seen)


def unseen_labels() -> tuple[int, ...]:
    """Return the labels that occur only in captions."""
    return tuple(name.label for name in world_names() if not name.seen)


def world_vocabulary(*, seen_only: bool = False) -> Vocabulary:
    """Return the names in the order of the labels, all or only those of segmentation training."""
    names = [name for name in world_names() if name.seen or not seen_only]
    return Vocabulary(
        tuple(name.name for name in names),
        things=tuple(name.is_thing for name in names),
        key=None if seen_only else WORLD,
    )


def caption_frames() -> tuple[str, ...]:
    """Return the beginnings of captions as templates, such as "a picture of {}"."""
    return tuple(_data()["captions"])


def caption_of(labels: Collection[int], rng: np.random.Generator) -> str:
    """Name things, then stuff, in random order, such as "a photo of a dog and a key on grass".

    Args:
        labels: labels in the scene, at least one.
        rng: chooses order and frame.
    """
    names = [world_names()[label] for label in rng.permutation(sorted(labels))]
    things = _listed([f"{name.article} {name.name}".strip() for name in names if name.is_thing])
    stuff = _listed([name.name for name in names if not name.is_thing])
    between = (" on ", " with ")[int(rng.integers(2))] if things and stuff else ""
    frames = caption_frames()
    return frames[int(rng.integers(len(frames)))].format(things + between + stuff)


def names_in_caption(caption: str) -> tuple[str, ...]:
    """Return the names in a caption of `caption_of`, in the order of the labels."""
    words = set(caption.replace(",", " ").split())
    return tuple(name.name for name in world_names() if name.name in words)


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


@cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = packaged_json("openvocab.world", "names.json")
    return data
