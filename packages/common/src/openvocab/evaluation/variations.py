"""The ways to ask for the classes of a data set: with distractors, paraphrases and templates."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from openvocab.clip.template_sets import available_templates, load_templates
from openvocab.datasets.samples import Sample, SampleSet
from openvocab.errors import InputError, NamesError
from openvocab.evaluation.rewording import WAYS, distractors, reworded
from openvocab.image import ImageArray, read_image
from openvocab.metrics.scores import Ignore, void_values
from openvocab.segmenter import Segmentation, Segmenter
from openvocab.vocabulary import WORLD, Vocabulary, available_vocabularies

Part = Literal["distractors", "paraphrase", "templates", "absent"]
COUNTS = (0, 10, 100, 1000, 5000)
WORLD_COUNTS = (0, 5, 10, 20, 40)
WORLD_TARGETS = 20  # of the world's 60 names, where only the others can be distractors
OWN = "own wording"
_COPIES = ("car-", "ovseg-")  # vocabularies with the classes of another one, some in torn words
_FEW = 8  # names that are enough to see whether a CLIP is the small one of the world
_VOID = 65535


@dataclass(frozen=True)
class Variation:
    """One way to ask.

    Attributes:
        part: of the study.
        title: what is different.
        data: the images, and the classes that count.
        vocabulary: what the method is asked; its names are in the order of the classes of `data`.
        changed: how many names differ from the data set's, or how many others compete.
        unreadable: names that the method cannot use: they stay as they are in the data set, or do
            not compete.
    """

    part: Part
    title: str
    data: SampleSet
    vocabulary: Vocabulary
    changed: int = 0
    unreadable: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The name of the folder of its evaluation; all parts share that of the own wording."""
        if self.title != OWN:
            return f"{self.part}-{re.sub('[^a-z0-9]+', '-', self.title.lower())}"
        return "some-classes" if isinstance(self.data, SomeClasses) else "own"


class WordedSegmenter:
    """A segmenter that says in its card with which wording it is asked.

    Where the data set has a class "background", pixels that a distractor wins belong to it.

    Args:
        segmenter: the method.
        wording: what stands in the card.
    """

    def __init__(self, segmenter: Segmenter, wording: str) -> None:
        self._segmenter, self._wording = segmenter, wording

    def segment(self, image: Any, vocabulary: Any, **options: Any) -> Any:
        """Segment one image; the options are the method's own."""
        found = self._segmenter.segment(image, vocabulary, **options)
        if not vocabulary.others or vocabulary.background_label < 0:
            return found
        labels = np.where(found.labels < 0, np.int32(vocabulary.background_label), found.labels)
        return Segmentation(labels, vocabulary, found.scores)

    def describe(self) -> dict[str, Any]:
        """Return what the method says of itself, and the wording."""
        return {**self._segmenter.describe(), "wording": self._wording}


class SomeClasses:
    """A data set of which only some classes count; the pixels of the others are void.

    Args:
        data: the whole set.
        labels: the classes that count; class i is labels[i] of the set.
    """

    def __init__(self, data: SampleSet, labels: Sequence[int]) -> None:
        self._data, self._labels = data, tuple(labels)
        self.name, self.split, self.samples = data.name, data.split, data.samples
        from openvocab.evaluation.oracle import only  # late: it imports torch

        self.vocabulary = only(data.vocabulary, labels)
        self.ignore_index: Ignore = _VOID
        table = np.arange(_VOID + 1, dtype=np.int32)  # what is no class stays, and is refused
        table[: len(data.vocabulary)] = _VOID
        table[list(labels)] = np.arange(len(labels))
        table[sorted(void_values(len(data.vocabulary), data.ignore_index))] = _VOID
        self._table = table

    def label_tree_hash(self) -> str:
        """Return a SHA-256 over the label maps and the classes that count."""
        return hashlib.sha256(f"{self._data.label_tree_hash()}{self._labels}".encode()).hexdigest()

    def read_label(self, sample: Sample) -> NDArray[Any]:
        """Return the ground truth (H, W) in `0..K-1`, or 65535 where it does not count."""
        labels: NDArray[Any] = self._table[self._data.read_label(sample)]
        return labels


class Study:
    """The wordings of one data set for one method.

    Args:
        segmenter: the method.
        data: images with ground truth.
        seed: of the distractors, of the segmenter and of the bootstrap.
    """

    def __init__(self, segmenter: Segmenter, data: SampleSet, seed: int = 0) -> None:
        if not data.samples:
            raise InputError(
                f"{data.name} has no images, so no wording can be tried on it; "
                "give another data set"
            )
        self.segmenter, self.data, self.seed = segmenter, data, seed
        self.lists: dict[str, Any] = {"seed": seed, "names": list(data.vocabulary.names)}
        self.notes: list[str] = []

    def own(self, part: Part) -> Variation:
        """Return the wording of the data set itself."""
        return Variation(part, OWN, self.data, self.data.vocabulary)

    def distractors(
        self, counts: Sequence[int] | None = None, pool: Sequence[str] | None = None
    ) -> list[Variation]:
        """Return the names of the set with the first N of the distractors, for each N.

        Args:
            counts: the numbers N; None for `COUNTS`. What is more than there are becomes all.
            pool: where distractors come from; None for the vocabularies that the package has.
        """
        data, others, unreadable = self._competitors(pool)
        if not others:
            self.notes.append("There are no distractors: no other name is sure to mean none of "
                              "the classes.")  # fmt: skip
            return []
        standard = WORLD_COUNTS if data is not self.data else COUNTS
        numbers = sorted({0, *(min(n, len(others)) for n in counts or standard)})
        self.lists["scored against distractors"] = list(data.vocabulary.names)
        self.lists["distractors"] = list(others)
        vocabulary = data.vocabulary
        return [
            Variation(
                "distractors",
                f"{n} other names" if n else OWN,
                data,
                vocabulary.with_(others=(*vocabulary.others, *others[:n])) if n else vocabulary,
                n,
                unreadable if n else (),
            )
            for n in numbers
        ]

    def _competitors(
        self, pool: Sequence[str] | None
    ) -> tuple[SampleSet, tuple[str, ...], tuple[str, ...]]:
        """Return the classes that are scored, the distractors, and what cannot be read."""
        vocabulary, names = self.data.vocabulary, self.data.vocabulary.names
        random = np.random.default_rng(self.seed)
        all_names = _carried_names() if pool is None else pool
        found = distractors((*names, *vocabulary.words), all_names)
        if self.data.name == WORLD and self.unreadable(found[:_FEW]):
            # The small CLIP of the world has learned the world's names only.
            order = random.permutation(len(names)).tolist()
            self.notes.append(
                f"This method's CLIP knows only the world's names: {WORLD_TARGETS} of them are "
                f"scored, and the other {len(names) - WORLD_TARGETS} are the distractors."
            )
            some = SomeClasses(self.data, sorted(order[:WORLD_TARGETS]))
            return some, tuple(names[i] for i in order[WORLD_TARGETS:]), ()
        bad = self.unreadable(found)
        usable = [name for name in found if name not in bad]
        order = random.permutation(len(usable)).tolist()
        return self.data, tuple(usable[i] for i in order), tuple(sorted(bad))

    def paraphrases(self) -> list[Variation]:
        """Return the names written in other ways; ways that change nothing are noted."""
        vocabulary, names = self.data.vocabulary, self.data.vocabulary.names
        written = {way: reworded(names, way) for way in WAYS}
        bad = self.unreadable({a for found in written.values() for a in found} - set(names))
        self.lists["paraphrases"], variations = {}, []
        for way, found in written.items():
            usable = reworded(names, way, bad)
            number = sum(a != b for a, b in zip(usable, names, strict=True))
            not_read = tuple(a for a, b in zip(found, names, strict=True) if a in bad and a != b)
            if not number:
                why = "this method's CLIP can read none of those names" if not_read else (
                    "it changes none of these names")  # fmt: skip
                self.notes.append(f"The paraphrase {way!r} is left out: {why}.")
                continue
            self.lists["paraphrases"][way] = list(usable)
            asked = vocabulary.with_(names=usable, key=None)
            variations.append(Variation("paraphrase", way, self.data, asked, number, not_read))
        return variations

    def templates(self, sets: Sequence[str] | None = None) -> list[Variation]:
        """Return the names in other prompt templates.

        Args:
            sets: template sets, or single templates such as "vild:3"; None for all sets, and each
                template of the data set's own set alone.
        """
        vocabulary, own = self.data.vocabulary, self.data.vocabulary.templates
        if sets is None:
            single = [f"{own}:{number}" for number in range(len(load_templates(own)))]
            sets = [*available_templates(), *single]
        texts: dict[tuple[str, ...], str] = {load_templates(own): own}
        for name in sets:  # "vild:0" may be a set of its own
            texts.setdefault(load_templates(name), name)
        self.lists["templates"] = {name: list(found) for found, name in texts.items()}
        others = [name for name in texts.values() if name != own]
        if others and not self._uses_templates(others[0]):
            self.notes.append("Templates are not varied: this method uses those of its settings.")
            return []
        return [
            Variation(
                "templates", name, self.data, vocabulary.with_(templates=name), len(vocabulary)
            )
            for name in others
        ]

    def _uses_templates(self, other: str) -> bool:
        """Whether the scores of a few names change with the templates of the vocabulary."""
        few = Vocabulary(self.data.vocabulary.names[:8])
        first, second = (
            self.segmenter.segment(
                self._image, few.with_(templates=templates), return_scores=True
            ).scores
            for templates in (self.data.vocabulary.templates, other)
        )
        return first is None or second is None or not np.array_equal(first, second)

    @property
    def _image(self) -> ImageArray:
        return read_image(self.data.samples[0].image)

    def unreadable(self, words: Iterable[str]) -> frozenset[str]:
        """Return which words the method cannot use, by asking it for all of them once."""
        asked = tuple(sorted(words))
        if not asked:
            return frozenset()
        vocabulary = Vocabulary(asked, templates=self.data.vocabulary.templates)
        try:
            self.segmenter.segment(self._image, vocabulary)
        except NamesError as error:
            return frozenset(error.names)
        return frozenset()


def _carried_names() -> list[str]:
    """Return the names of all vocabularies that the package has, without rewritten copies."""
    keys = [key for key in available_vocabularies() if not key.startswith(_COPIES)]
    return [name for key in keys for name in Vocabulary.load(key).names]
