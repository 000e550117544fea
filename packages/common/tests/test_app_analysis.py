"""Why a pixel has its name: hand-made scores whose answers can be read off."""

from __future__ import annotations

import numpy as np
import pytest

from openvocab.app.analysis import (
    difference_of,
    evidence_of,
    margin_of,
    near_duplicates,
    rare_words,
    umbrella_terms,
)
from openvocab.app.asked import read_asked
from openvocab.errors import InputError
from openvocab.vocabulary import Vocabulary


def test_evidence_says_where_a_name_scored_best_and_who_won_there() -> None:
    scores = np.zeros((3, 2, 2), np.float32)
    scores[0] = [[0.9, 0.8], [0.1, 0.1]]
    scores[1] = [[0.2, 0.1], [0.6, 0.3]]
    scores[2] = [[0.3, 0.4], [0.2, 0.2]]
    labels = scores.argmax(axis=0).astype(np.int32)
    labels[1, 1] = -1
    dog, cat, cow = evidence_of(labels, scores, ["dog", "cat", "cow"])
    assert (dog.share, dog.place, dog.winner, dog.behind) == (0.5, (0, 0), 0, 0.0)
    assert (cat.share, cat.place, cat.winner) == (0.25, (1, 0), 1)
    assert (cow.share, cow.place, cow.winner) == (0.0, (0, 1), 0)
    assert cow.behind == pytest.approx(0.4)


def test_evidence_at_a_place_that_none_of_the_names_won() -> None:
    scores = np.full((1, 1, 1), 0.2, np.float32)
    (found,) = evidence_of(np.array([[-1]], np.int32), scores, ["dog"])
    assert found.winner == -1
    assert found.winner_score == 0


def test_margin_is_the_best_without_the_second_best() -> None:
    scores = np.array([0.1, 0.7, 0.4], np.float32)[:, None, None]
    assert margin_of(scores).item() == pytest.approx(0.3)
    assert margin_of(scores[:1]).item() == pytest.approx(0.1)


def test_difference_goes_by_names_and_not_by_their_numbers() -> None:
    first = np.array([[0, 0, 1, -1]], np.int32)
    second = np.array([[1, 0, 0, -1]], np.int32)
    found = difference_of(first, ["dog", "cat"], second, ["cat", "dog"])
    assert found.mask.tolist() == [[False, True, False, False]]
    assert found.share == 0.25
    assert found.swaps == (("dog", "cat", 0.25),)


def test_difference_counts_nothing_as_a_name_of_its_own_and_sorts_by_share() -> None:
    first = np.array([[0, 0, 0, -1]], np.int32)
    second = np.array([[-1, -1, 1, 0]], np.int32)
    found = difference_of(first, ["dog"], second, ["dog", "fox"])
    assert found.swaps == (("dog", None, 0.5), ("dog", "fox", 0.25), (None, "dog", 0.25))
    with pytest.raises(ValueError, match="label maps"):
        difference_of(first, ["dog"], second[:, :2], ["dog"])


def test_near_duplicates_are_found_whatever_the_length_of_the_embeddings() -> None:
    embeddings = np.array([[1, 0], [0, 3], [5, 0.5], [-1, 0]], np.float32)
    pairs = near_duplicates(["couch", "tree", "sofa", "anticouch"], embeddings)
    assert [(one, other) for one, other, _ in pairs] == [("couch", "sofa")]
    assert pairs[0][2] == pytest.approx(5 / np.hypot(5, 0.5))


def test_umbrella_terms_by_wording_and_by_kind() -> None:
    names = ["Bear", "polar bear", "wall", "wall-brick", "animal", "dog", "barbear"]
    found = umbrella_terms(names, {"dog": "animal", "cat": "animal"})
    assert found == [("Bear", "polar bear"), ("wall", "wall-brick"), ("animal", "dog")]


def test_rare_words_are_listed_once() -> None:
    asked = []

    def pieces(words):
        asked.extend(words)
        return [len(word) for word in words]

    assert rare_words(["red dog", "xylo dog", "Xylo-phone"], pieces) == ["xylo", "phone"]
    assert asked == ["red", "dog", "xylo", "phone"]
    assert rare_words(["123", "-"], pieces) == []


@pytest.mark.parametrize("text", ["dog, cat", "dog\ncat", " dog ,\r\n, cat,", "dog,cat,DOG"])
def test_names_are_separated_by_commas_and_new_lines(text: str) -> None:
    assert read_asked(text, max_names=9).vocabulary("car") == Vocabulary(
        ("dog", "cat"), templates="car"
    )


def test_synonyms_stand_behind_a_bar() -> None:
    found = read_asked("dog | puppy| Dog, cat", max_names=9).vocabulary("vild")
    assert found.names == ("dog", "cat")
    assert found.synonyms == (("puppy",), ())
    assert found.word_labels.tolist() == [0, 1, 0]


def test_a_preset_alone_is_that_vocabulary_and_else_joins_the_names() -> None:
    assert read_asked("", "world", max_names=99).vocabulary("car") == Vocabulary.load("world")
    both = read_asked("zebra, DOG", "world", max_names=99).vocabulary("car")
    assert both.names[:2] == ("zebra", "DOG")
    assert len(both) == len(Vocabulary.load("world")) + 1
    assert both.templates == "car"


def test_distractors_compete_without_being_asked_for() -> None:
    found = read_asked("dog", None, "coco-stuff", max_names=200).vocabulary("vild")
    assert found.names == ("dog",)
    assert len(found.words) == 92


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (" , \n| ", "no name to look for"),
        (",".join(f"name {i}" for i in range(10)), "there are 10 names, more than the 9"),
        ("a" * 500, "500 characters"),
    ],
)
def test_names_that_cannot_be_used_get_a_sentence(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_asked(text, max_names=9)


def test_an_unknown_preset_gets_a_sentence() -> None:
    with pytest.raises(InputError, match="not known"):
        read_asked("dog", "wordl", max_names=9)
