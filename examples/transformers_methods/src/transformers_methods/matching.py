"""Matching the labels of a closed-set model with the names of a vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openvocab.errors import InputError
from openvocab.vocabulary import BACKGROUND_NAME, NOTHING, Vocabulary

RULE = (
    "equal but for case, hyphens and a final 'merged' or 'other'; else equal in one of the parts "
    "between commas or semicolons, where only one name fits"
)


@dataclass(frozen=True)
class Matching:
    """The match of a model's labels with the names of a vocabulary.

    Attributes:
        words: for each label of the model its label in the vocabulary, which is -1 for words that
            compete for nothing; None where it has no match.
        labels_without_name: the model's labels that have no match.
        names_without_label: the vocabulary's names that the model can never give.
    """

    words: tuple[int | None, ...]
    labels_without_name: tuple[str, ...]
    names_without_label: tuple[str, ...]


def match_labels(
    labels: Sequence[str], vocabulary: Vocabulary, aliases: Mapping[str, str] | None = None
) -> Matching:
    """Match the labels of a model with the words of a vocabulary by name; see `RULE`.

    Args:
        labels: labels of the model, in its order.
        vocabulary: vocabulary, with its synonyms and background words.
        aliases: names of the vocabulary by label of the model; they override the rule.

    Raises:
        InputError: nothing matches, or an alias names what is not there.
    """
    _check_aliases(labels, vocabulary, aliases or {})
    words = list(zip(vocabulary.words, vocabulary.word_labels.tolist(), strict=True))
    matched = tuple(_match((aliases or {}).get(label, label), words) for label in labels)
    given = {label for label in matched if label is not None}
    if not given - {NOTHING, vocabulary.background_label}:
        raise InputError(
            f"none of the {len(vocabulary)} names, such as {vocabulary.names[0]!r}, is one of the "
            f"{len(labels)} labels of the model, such as {labels[0]!r}; choose a model for this "
            "data set, or say which label is which name with the setting aliases"
        )
    return Matching(
        matched,
        tuple(label for label, word in zip(labels, matched, strict=True) if word is None),
        tuple(
            name
            for index, name in enumerate(vocabulary.names)
            if index not in given and name != BACKGROUND_NAME
        ),
    )


def _match(label: str, words: Sequence[tuple[str, int]]) -> int | None:
    """Return the vocabulary's label for one of the model's, or None."""
    whole = [found for word, found in words if _plain(word) == _plain(label)]
    if whole:
        return whole[0]
    own = _parts(label)
    found = {found for word, found in words if own & _parts(word)}
    return found.pop() if len(found) == 1 else None


def _plain(name: str) -> str:
    """Return a name without the differences in spelling between data sets."""
    text = " ".join(re.split(r"[\s_-]+", name.strip().casefold()))
    return re.sub(r"( other)?( merged)?$", "", text)


def _parts(name: str) -> set[str]:
    return {_plain(part) for part in re.split("[,;]", name)} - {""}


def _check_aliases(
    labels: Sequence[str], vocabulary: Vocabulary, aliases: Mapping[str, str]
) -> None:
    for label, word in aliases.items():
        if label not in labels:
            raise InputError(
                f"aliases has {label!r}, which is no label of the model; use one of its labels"
            )
        if word not in vocabulary.words:
            raise InputError(
                f"aliases has {word!r}, which is no name of the vocabulary; use one of its names"
            )
