"""Writing class names in other ways, and finding names that mean something else than others.

What is a synonym, a kind or a part of what is data, in `rewording.json`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

from openvocab.reading.json_files import packaged_json
from openvocab.reading.names import same_word
from openvocab.vocabulary import BACKGROUND_NAME

_REST = re.compile(r"-(other|stuff)$")  # COCO-Stuff's "building-other" is what no other name is

Phrase = frozenset[str]


def distractors(names: Iterable[str], pool: Iterable[str]) -> tuple[str, ...]:
    """Return the names of a pool that can mean none of some other names.

    A name is left out if it shares a word with one of the names, in singular or plural, or if the
    data call it an alias, a kind, a part or the whole of one. Of an entry with several words for
    one thing, such as "sofa, couch", the first one is returned.

    Args:
        names: that are scored.
        pool: in any order; repeated names count once.
    """
    own = [_words(name) for name in names]
    taken, meant = frozenset[str]().union(*own), _meant(own)
    found: dict[tuple[str, ...], str] = {}
    for entry in pool:
        name, words = same_word(entry.partition(",")[0]), _words(entry)
        unusable = not name or name in _data()["no_names"] or _REST.search(name)
        if unusable or words & taken or any(phrase <= words for phrase in meant):
            continue
        found.setdefault(tuple(_stem(word) for word in name.split()), name)
    return tuple(found.values())


def _meant(own: Sequence[Phrase]) -> set[Phrase]:
    """Return the phrases that may mean one of the names, each as the set of its words."""
    found: set[Phrase] = set()
    for one, others in _related():
        if any(one <= words for words in own):
            found |= others
    return found


@cache
def _related() -> tuple[tuple[Phrase, frozenset[Phrase]], ...]:
    """Return each phrase of the data with all phrases that may mean the same."""
    aliases = {word: group for group in _data()["aliases"] for word in group}
    groups = [(group, group) for group in _data()["aliases"]]
    for word, others in _data()["related"].items():
        one = aliases.get(word, [word])
        many = [name for other in others for name in aliases.get(other, [other])]
        groups += [(one, many), (many, one)]
    return tuple(
        (_words(word), frozenset(_words(other) for other in others))
        for members, others in groups
        for word in members
    )


def plural(name: str) -> str:
    """Return a name in the plural; the last word of several takes it."""
    first, space, last = name.rpartition(" ")
    if not last or _REST.search(name) or {name, last} & set(_data()["no_plural"]):
        return name
    if last in _data()["irregular"]:
        return first + space + str(_data()["irregular"][last])
    if _stem(last) != last:  # a plural already
        return name
    if last.endswith(("s", "x", "z", "ch", "sh")):
        return f"{name}es"
    if last.endswith("y") and last[-2:-1] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}s"


def with_article(name: str) -> str:
    """Return a name with "a" or "an" before it; "the" where it is in the plural."""
    if _REST.search(name):
        return name
    if plural(name) == name:
        return f"the {name}"
    return f"an {name}" if name[:1].lower() in "aeiou" else f"a {name}"


def other_spelling(name: str) -> str:
    """Return a name in British spelling where it is American, and the other way round."""
    other = {a: b for pair in _data()["spellings"] for a, b in (pair, pair[::-1])}
    return re.sub(r"[A-Za-z]+", lambda word: str(other.get(word[0], word[0])), name)


def alias(name: str) -> str:
    """Return another word that data sets use for the same class; the name where there is none."""
    for group in _data()["aliases"]:
        if same_word(name) in group:
            return str(group[(group.index(same_word(name)) + 1) % len(group)])
    return name


def _in_parts(change: Callable[[str], str]) -> Callable[[str], str]:
    """Change each part of a name that is a list of words, such as "sofa, couch"."""

    def changed(name: str) -> str:
        return re.sub(r"[^\s,](?:[^,]*[^\s,])?", lambda part: change(part[0]), name)

    return changed


def _first_of_several(name: str) -> str:
    return name.partition(",")[0]


WAYS: MappingProxyType[str, Callable[[str], str]] = MappingProxyType(
    {
        "plural": _in_parts(plural),
        "with an article": _in_parts(with_article),
        "in capitals": str.upper,
        "British for American spelling and back": other_spelling,
        "aliases of other data sets": alias,
        "only the first of several words": _first_of_several,
    }
)


def reworded(names: Sequence[str], way: str, unreadable: Collection[str] = ()) -> tuple[str, ...]:
    """Return names written in another way.

    A name stays as it is where the other one would be that of another class as well, or cannot be
    read; so does "background", which is a class by its name.

    Args:
        names: of the classes.
        way: one of `WAYS`.
        unreadable: names that a method cannot use.
    """
    taken = {same_word(name) for name in names}
    kept: list[str] = []
    for own in names:
        other = own if own == BACKGROUND_NAME else WAYS[way](own)
        clash = same_word(other) in taken and same_word(other) != same_word(own)
        kept.append(own if clash or other in unreadable else other)
        taken.add(same_word(kept[-1]))
    return tuple(kept)


def _words(name: str) -> Phrase:
    return frozenset(_stem(word) for word in re.findall(r"\w+", name.lower()))


def _stem(word: str) -> str:
    """Return the singular of a word, or something that its singular and plural share."""
    if word in _singulars():
        return _singulars()[word]
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us")) else word


@cache
def _singulars() -> dict[str, str]:
    return {plural: singular for singular, plural in _data()["irregular"].items()}


@cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = packaged_json("openvocab.evaluation", "rewording.json")
    return data
