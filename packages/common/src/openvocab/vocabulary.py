"""Vocabularies: class names in order, with a policy for pixels that show none of the classes.

Published results on the same data differ because their treatment of the background was implicit.
Here each vocabulary states it as a `Background`. Class names are stored exactly as written:
"window " with a space and "window" give different fingerprints.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from openvocab.errors import InputError
from openvocab.reading.json_files import packaged_json
from openvocab.reading.names import read_names, same_word

NOTHING = -1
NOTHING_8BIT, NOTHING_16BIT = 255, 65535  # in PNGs, which hold no negative numbers
WORLD = "world"  # the embedded world: its names, scenes and weights are called so everywhere
BACKGROUND_NAME = "background"

BackgroundKind = Literal["none", "threshold", "names", "learned", "remap"]
Augmentation = Literal["coco-stuff", "coco-all"]


@dataclass(frozen=True)
class Background:
    """The policy for pixels that show none of the classes; use its class methods to create one.

    Such pixels get the label of the class "background" if the vocabulary has one, otherwise -1.
    """

    kind: BackgroundKind
    value: float | None = None
    words: tuple[str, ...] = ()
    index: int | None = None

    @classmethod
    def none(cls) -> Background:
        """Every pixel gets one of the names."""
        return cls("none")

    @classmethod
    def threshold(cls, value: float) -> Background:
        """Pixels whose best score is below `value` are background."""
        return cls("threshold", value=float(value))

    @classmethod
    def names(cls, words: Sequence[str]) -> Background:
        """Words such as "sky" and "wall" compete with the classes; their pixels are background."""
        if isinstance(words, str) or not words:
            raise InputError(f"background names are {words!r}; give a list of at least one word")
        return cls("names", words=tuple(words))

    @classmethod
    def learned(cls) -> Background:
        """Pixels that the model assigns to its own no-object class are background."""
        return cls("learned")

    @classmethod
    def remap(cls, index: int) -> Background:
        """Pixels whose label is `index` or higher are background, as in CAT-Seg's VOC-20b."""
        if index < 1:
            raise InputError(f"background starts at label {index}; leave it at least one class")
        return cls("remap", index=index)

    def __str__(self) -> str:
        match self.kind:
            case "threshold":
                return f"threshold {self.value:g}"
            case "names":
                return f"names {', '.join(self.words)}"
            case "remap":
                return f"labels from {self.index}"
        return self.kind


@dataclass(frozen=True)
class Vocabulary:
    """Class names in order, with everything that determines the meaning of a label.

    A method encodes `words`. A pixel whose best word is number `w` gets the label
    `word_labels[w]`, which is an index into `names`, or -1 for none of them. A word that is there
    more than once, in whatever case and with whatever white space, counts once: it would otherwise
    compete with itself. The first of names that are the same gets all pixels.

    Attributes:
        names: Class names. A label is an index into them.
        templates: Prompt template set, the name of a file in `openvocab/clip/templates`.
        background: Policy for pixels that show none of the names.
        things: Whether each class is a thing (countable) or stuff. None if this is not known.
        synonyms: Further words for each class.
        others: Words that compete with the names. Their pixels get the label -1, see `augmented`.
        key: Name of the vocabulary for `load`. None for a vocabulary of a user.
    """

    names: tuple[str, ...]
    templates: str = "vild"
    background: Background = field(default_factory=Background.none)
    things: tuple[bool, ...] | None = None
    synonyms: tuple[tuple[str, ...], ...] | None = None
    others: tuple[str, ...] = ()
    key: str | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise InputError("the vocabulary has no class names; give at least one")
        for name in self.names:
            if not isinstance(name, str) or not name.strip():
                raise InputError(f"class name {name!r} is not a word; leave it out")
        for what, values in (("things", self.things), ("synonyms", self.synonyms)):
            if values is not None and len(values) != len(self.names):
                raise InputError(
                    f"the vocabulary has {len(self.names)} names but {len(values)} {what}; "
                    "give one for each name"
                )

    @classmethod
    def load(cls, key: str) -> Vocabulary:
        """Return a published vocabulary such as "ade20k-150", or "world".

        See `available_vocabularies` for all of them.

        Raises:
            InputError: if there is none of this name.
        """
        return _load(key)

    @classmethod
    def from_names(cls, names: str | Iterable[str], *, templates: str = "vild") -> Vocabulary:
        """Make a vocabulary from a list of names, or from one string of names with commas.

        The label of a name is its position in the list, so a list with a blank or repeated name is
        refused. In a string, blank names are dropped, and repeated names are dropped with a
        warning. White space around names is removed in both cases.

        Raises:
            InputError: There is no name, an entry is not a string, or a list has a blank or
                repeated name.
        """
        if isinstance(names, str):
            return cls(parse_names([names]), templates=templates)
        words = [word.strip() for word in _words_in(names)]
        if "" in words and any(words):
            raise InputError(
                f"name {words.index('')} of the list is blank; the place of a name is its label, "
                "so leave it out of your list, or give it a name"
            )
        _check_different(words)
        return cls(tuple(filter(None, words)), templates=templates)

    @classmethod
    def from_file(cls, path: str | Path, *, templates: str = "vild") -> Vocabulary:
        """Read names from a text file with one on each line, or from a JSON list.

        See `openvocab.reading.names.read_names` for what lines may look like.

        Raises:
            InputError: the file is missing or holds no list of names, or a blank or repeated one.
        """
        names, synonyms = read_names(path)
        return cls(names, templates=templates, synonyms=synonyms)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def background_label(self) -> int:
        """The index of the class called "background", or -1."""
        return self.names.index(BACKGROUND_NAME) if BACKGROUND_NAME in self.names else NOTHING

    @property
    def words(self) -> tuple[str, ...]:
        """All words that a method encodes, once each: names, background words, others, synonyms."""
        return tuple(word for word, _ in self._labelled_words)

    @property
    def word_labels(self) -> NDArray[np.int32]:
        """The label of each of `words`: an index into `names`, or -1."""
        return np.array([label for _, label in self._labelled_words], dtype=np.int32)

    @cached_property
    def _labelled_words(self) -> tuple[tuple[str, int], ...]:
        background, policy = self.background_label, self.background
        # Under these policies the class "background" is won without being a word of its own.
        wordless = background if policy.kind in ("threshold", "names", "learned") else None
        labelled = [(name, label) for label, name in enumerate(self.names) if label != wordless]
        if policy.index is not None:
            labelled = [(name, i if i < policy.index else background) for name, i in labelled]
        labelled += [(word, background) for word in policy.words]
        labelled += [(word, NOTHING) for word in self.others]
        for label, synonyms in enumerate(self.synonyms or ()):
            labelled += [(word, label) for word in synonyms]
        first: dict[str, tuple[str, int]] = {}
        for word, label in labelled:
            first.setdefault(same_word(word), (word, label))
        return tuple(first.values())

    def augmented(self, by: Augmentation) -> Vocabulary:
        """Add COCO-Stuff's names as competitors, so that the user's names need not fill the image.

        Pixels whose best word is an added name get the label -1. Names that the vocabulary already
        has are not added. The added names keep COCO's order.

        Args:
            by: Names to add: "coco-stuff" for the 91 stuff names, "coco-all" for all 171 names.

        Raises:
            InputError: `by` is another word.

        Source: SPEC san 10.
        """
        if by not in ("coco-stuff", "coco-all"):
            raise InputError(f"augmentation {by!r} is not known; use 'coco-stuff' or 'coco-all'")
        coco = _load("coco-stuff-171")
        assert coco.things is not None
        added = [
            name
            for name, thing in zip(coco.names, coco.things, strict=True)
            if by == "coco-all" or not thing
        ]
        there = _without_repeats([*self.words, *self.names])
        return self.with_(others=self.others + _without_repeats([*there, *added])[len(there) :])

    def with_(self, **changes: Any) -> Vocabulary:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def sha256(self) -> str:
        """Return a fingerprint of names, synonyms and others, in hexadecimal.

        It does not include the prompt templates and the background policy with its words. A
        protocol card lists those separately.
        """
        content: dict[str, Any] = {"names": self.names}
        if self.synonyms is not None:
            content["synonyms"] = self.synonyms
        if self.others:
            content["others"] = self.others
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def available_vocabularies() -> tuple[str, ...]:
    """Return the names that `Vocabulary.load` knows, sorted."""
    files = resources.files("openvocab.datasets").joinpath("vocabularies").iterdir()
    return tuple(sorted(Path(f.name).stem for f in files if f.name.endswith(".json")))


@cache
def _load(key: str) -> Vocabulary:
    known = available_vocabularies()
    if key not in known:
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.4) or known
        raise InputError(f"vocabulary {key!r} is not known; did you mean {' or '.join(near)}?")
    data = packaged_json("openvocab.datasets", "vocabularies", f"{key}.json")
    if "background_before" in data:
        return _with_background(_load(data["background_before"]), key, data["templates"])
    stuff = data.get("stuff")
    things = None if stuff is None else tuple(i not in stuff for i in range(len(data["names"])))
    return Vocabulary(tuple(data["names"]), data["templates"], things=things, key=key)


def _with_background(vocabulary: Vocabulary, key: str, templates: str) -> Vocabulary:
    """Put the class "background" before the others, with its own name as its word."""
    return vocabulary.with_(
        names=(BACKGROUND_NAME, *vocabulary.names),
        templates=templates,
        things=None if vocabulary.things is None else (False, *vocabulary.things),
        background=Background.names((BACKGROUND_NAME,)),
        key=key,
    )


def _words_in(names: Any) -> list[str]:
    """Return the words of a list, tuple or other iterable that has an order.

    Raises:
        InputError: it is no such thing.
    """
    orderless = isinstance(names, bytes | bytearray | Mapping | set | frozenset)
    if orderless or not isinstance(names, Iterable):
        raise InputError(
            f"the names cannot be {'None' if names is None else f'of type {type(names).__name__}'};"
            " give a list of words such as ['cat', 'sofa'], or one string with commas"
        )
    words = list(names)
    for word in words:
        if not isinstance(word, str):
            raise InputError(f"the name {word!r:.80} is no word; give a list of strings")
    return words


def parse_names(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the names that a person typed, parsed in the same way for every command.

    Every argument is split at its commas: `"crab,duck" pig` is three names. Where arguments end
    with a comma, the list was typed without quotes, and words up to a comma belong together:
    `hot air balloon, drum, pig` is three names. Without commas, every argument is a name.

    Of names that differ only in case or white space, which CLIP's tokenizer does not see, the
    first is kept, and a warning tells the labels.

    >>> parse_names(["hot", "air", "balloon,", "drum,", "pig"])
    ('hot air balloon', 'drum', 'pig')
    """
    stripped = [text.strip() for text in arguments]
    unquoted = any(text.startswith(",") or text.endswith(",") for text in stripped)
    parts = (" " if unquoted else ",").join(stripped).split(",")
    names = [part.strip() for part in parts if part.strip()]
    kept = _without_repeats(names)
    if len(kept) < len(names):
        labels = ", ".join(f"{label} {name}" for label, name in enumerate(kept))
        warnings.warn(
            f"{len(names) - len(kept)} of {len(names)} names are given twice and count once; the "
            f"labels are {labels}",
            stacklevel=2,
        )
    return kept


def _check_different(names: Sequence[str]) -> None:
    """Refuse two labels that CLIP cannot tell apart."""
    seen: dict[str, int] = {}
    for label, name in enumerate(names):
        first = seen.setdefault(same_word(name), label)
        if name and first != label:
            raise InputError(
                f"class names {first} and {label} are both {name!r}; give each label a name of its "
                "own"
            )


def _without_repeats(names: Iterable[str]) -> tuple[str, ...]:
    """Drop empty names, and those that differ from an earlier one only in case and white space."""
    kept: dict[str, str] = {}
    for name in names:
        kept.setdefault(same_word(name), name)
    kept.pop("", None)
    return tuple(kept.values())
