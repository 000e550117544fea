"""Names are written in other ways without changing what they mean, and distractors mean others."""

from __future__ import annotations

import json
import re
from importlib import resources

import pytest

from openvocab.evaluation.rewording import (
    WAYS,
    alias,
    distractors,
    other_spelling,
    plural,
    reworded,
    with_article,
)
from openvocab.reading.names import same_word
from openvocab.vocabulary import Vocabulary, available_vocabularies

POOL = [name for key in available_vocabularies() for name in Vocabulary.load(key).names]
DATA = json.loads(
    resources.files("openvocab.evaluation").joinpath("rewording.json").read_text("utf-8")
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dog", "dogs"),
        ("bus", "buses"),
        ("bench", "benches"),
        ("butterfly", "butterflies"),
        ("monkey", "monkeys"),
        ("traffic light", "traffic lights"),
        ("person", "people"),
        ("computer mouse", "computer mice"),
        ("grass", "grass"),
        ("sheep", "sheep"),
        ("shelves", "shelves"),  # a plural already
        ("building-other", "building-other"),
    ],
)
def test_plurals(name: str, expected: str) -> None:
    assert plural(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("dog", "a dog"), ("apple", "an apple"), ("water", "the water"), ("stairs", "the stairs")],
)
def test_articles(name: str, expected: str) -> None:
    assert with_article(name) == expected


def test_other_spellings_and_aliases_are_exchanged() -> None:
    assert other_spelling("gray tire") == "grey tyre" and other_spelling("doughnut") == "donut"
    assert other_spelling("entire") == "entire"  # whole words only
    assert alias("sofa") == "couch" and alias("Couch") == "sofa" and alias("crab") == "crab"


def test_each_word_of_an_entry_with_several_is_changed() -> None:
    assert WAYS["plural"]("sofa, couch,lounge") == "sofas, couches,lounges"
    assert WAYS["with an article"](" window") == " a window"
    assert WAYS["only the first of several words"]("sofa, couch") == "sofa"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key", available_vocabularies())
def test_no_two_classes_get_the_same_name(key: str, way: str) -> None:
    names = Vocabulary.load(key).names
    found = reworded(names, way)
    before = {same_word(name) for name in names}
    assert len(found) == len(names) and len({same_word(n) for n in found}) >= len(before)
    assert all(a == b for a, b in zip(found, names, strict=True) if b == "background")


def test_a_name_stays_where_the_other_one_is_a_class_or_cannot_be_read() -> None:
    assert reworded(("sofa", "couch", "car"), "aliases of other data sets") == (
        "sofa", "couch", "automobile",
    )  # fmt: skip
    assert reworded(("dog", "cat"), "plural", {"cats"}) == ("dogs", "cat")


@pytest.mark.parametrize("key", available_vocabularies())
def test_distractors_share_no_word_with_a_name(key: str) -> None:
    names = Vocabulary.load(key).names
    found = distractors(names, POOL)
    own = {word for name in names for word in re.findall(r"\w+", name.lower())}
    words = {word for name in found for word in re.findall(r"\w+", name)}
    assert not words & own and len({same_word(name) for name in found}) == len(found)
    assert len(found) > 20 and not set(found) & set(DATA["no_names"])


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("sofa", ("couch", "sofas", "Sofa", "armchair", "sofa bed")),
        ("dog", ("animal", "dog dish", "andiron, firedog, dog")),
        ("animals", ("dog", "zebra")),
        ("person", ("people", "player", "man", "rider")),
        ("tv", ("tvmonitor", "television", "monitor")),
        ("water", ("lake", "sea", "water bottle")),
        ("glass, drinking glass", ("wine glass", "window")),
        ("any", ("background", "unknown", "building-other", "", " ")),
    ],
)
def test_what_may_mean_the_same_is_no_distractor(name: str, others: tuple[str, ...]) -> None:
    assert distractors([name], [*others, "accordion"]) == ("accordion",)


def test_distractors_count_once_whatever_their_number_and_case() -> None:
    assert distractors(["sky"], ["Key", "key", "keys", "key ring, ring", "KEY"]) == (
        "key", "key ring",
    )  # fmt: skip


@pytest.mark.parametrize("group", DATA["aliases"], ids=lambda group: group[0])
def test_no_alias_is_a_distractor(group: list[str]) -> None:
    for name in group:
        assert distractors([name], group) == ()


def test_the_relation_holds_in_both_directions() -> None:
    for word, others in DATA["related"].items():
        assert distractors([word], others) == ()
        for other in others:
            assert distractors([other], [word]) == ()
