"""What a visitor asks for: names typed freely, a preset vocabulary, and distractors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from openvocab.errors import InputError
from openvocab.vocabulary import Augmentation, Vocabulary

_SHOWN = 60  # characters of a name in a message
_LONGEST = 200  # characters of a name; CLIP reads at most 77 tokens


@dataclass(frozen=True)
class Asked:
    """The names of one request.

    Attributes:
        names: with synonyms behind each, if there are any.
        preset: key of the vocabulary whose names are asked for as well.
        distractors: the names of COCO-Stuff that compete without being asked for.
    """

    names: tuple[tuple[str, ...], ...] = ()
    preset: str | None = None
    distractors: Augmentation | None = None

    def vocabulary(self, templates: str) -> Vocabulary:
        """Return the names as a method takes them.

        A preset alone is that vocabulary to the letter, with its own templates and background.

        Args:
            templates: the method's prompt templates for names that a user types.
        """
        vocabulary = self._chosen(templates)
        return vocabulary if self.distractors is None else vocabulary.augmented(self.distractors)

    def _chosen(self, templates: str) -> Vocabulary:
        preset = None if self.preset is None else Vocabulary.load(self.preset)
        if preset is not None and not self.names:
            return preset
        groups = [*self.names, *((name,) for name in (preset.names if preset else ()))]
        groups = _without_repeats(groups)
        return Vocabulary(
            tuple(group[0] for group in groups),
            templates=templates,
            synonyms=tuple(group[1:] for group in groups) if any(g[1:] for g in groups) else None,
        )


def read_asked(
    text: str,
    preset: str | None = None,
    distractors: str | None = None,
    *,
    max_names: int,
) -> Asked:
    """Read what was typed: names with commas or new lines between, `dog | puppy` for synonyms.

    Args:
        text: what was typed.
        preset: key of a vocabulary, or nothing.
        distractors: "coco-stuff", "coco-all", or nothing.
        max_names: the most names and synonyms of a request.

    Raises:
        InputError: there is no name, there are too many, or one is no name.
    """
    entries = (entry.split("|") for entry in re.split(r"[,\n\r]", text or ""))
    groups = _without_repeats(tuple(word.strip() for word in entry) for entry in entries)
    if not groups and not preset:
        raise InputError(
            "there is no name to look for; type at least one, such as 'dog', or choose a vocabulary"
        )
    for word in (word for group in groups for word in group):
        if len(word) > _LONGEST:
            raise InputError(
                f"the name '{word[:_SHOWN]}...' has {len(word)} characters, more than {_LONGEST}; "
                "separate names by commas or new lines"
            )
    asked = Asked(tuple(groups), preset or None, distractors or None)  # type: ignore[arg-type]
    count = len(asked.vocabulary("vild").words)
    if count > max_names:
        raise InputError(
            f"there are {count} names, more than the {max_names} that this page takes; give fewer"
        )
    return asked


def _without_repeats(groups: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Drop blank words, and those that differ from an earlier one only in case and white space."""
    seen: set[str] = set()
    kept = []
    for group in groups:
        words = []
        for word in group:
            key = " ".join(word.lower().split())
            if key and key not in seen:
                seen.add(key)
                words.append(word)
        if words:
            kept.append(tuple(words))
    return kept
