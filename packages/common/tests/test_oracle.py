"""What is told of the truth is the truth, and no more."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from openvocab.errors import InputError
from openvocab.evaluation import oracle
from openvocab.segmenter import Segmentation
from openvocab.vocabulary import Background, Vocabulary

TRUTH = np.array([[0, 0, 2], [-1, 2, 2]])
WORDS = Vocabulary(("sky", "cat", "dog"), things=(False, True, True))


def test_the_label_map_that_was_read_last_is_known() -> None:
    maps = {"a": np.array([[0, 255]], np.uint8), "b": np.array([[2, 1]], np.uint8)}
    data = SimpleNamespace(
        vocabulary=WORDS, ignore_index=None, name="set", split="val", samples=("a", "b"),
        read_label=maps.__getitem__, label_tree_hash=lambda: "hash",
    )  # fmt: skip
    known = oracle.KnownTruth(data)
    with pytest.raises(RuntimeError, match="no label map"):
        _ = known.truth
    assert known.read_label("a") is maps["a"] and known.truth.tolist() == [[0, -1]]
    known.read_label("b")
    assert known.truth.tolist() == [[2, 1]] and known.label_tree_hash() == "hash"


def test_masks_cover_their_class_alone() -> None:
    masks = oracle.masks_of_labels(TRUTH)
    assert masks.sum() == 5 and (masks.sum(0) == (TRUTH >= 0)).all()
    assert (oracle.paint_masks(masks, [7, 8]) == np.array([[7, 7, 8], [-1, 8, 8]])).all()


def test_a_mask_is_called_by_what_it_covers_most() -> None:
    masks = torch.tensor([
        [[0.9, 0.0, 0.5], [0.0, 0.5, 0.0]],  # more of 2 in all, though surest of 0
        [[0.6, 0.6, 0.5], [1.0, 0.5, 0.0]],
        [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]],  # void
    ])  # fmt: skip
    assert oracle.overlapped_most(masks, TRUTH) == [2, 0, -1]
    assert oracle.overlapped_most(masks, np.full((2, 3), -1)) == [-1, -1, -1]
    assert oracle.renamed(np.array([[5, 5, 5], [1, 1, 1]]), TRUTH).tolist() == [[0] * 3, [2] * 3]


def test_a_class_is_called_by_its_first_word() -> None:
    words = WORDS.with_(synonyms=(("heaven",), (), ("puppy",)))
    assert words.words == ("sky", "cat", "dog", "heaven", "puppy")
    assert oracle.true_words([2, -1, 0], words).tolist() == [
        [0, 0, 1, 0, 0], [0] * 5, [1, 0, 0, 0, 0],
    ]  # fmt: skip


class Namer:
    """Paints the last name over everything, and notes what it was given."""

    def segment(self, image, vocabulary, **options):
        self.given = vocabulary
        return Segmentation(np.full((2, 3), len(vocabulary) - 1, np.int32), vocabulary)


def test_only_names_that_are_there_are_given() -> None:
    namer = Namer()
    image = np.zeros((2, 3, 3), np.uint8)
    labels = oracle.label_with_known_presence(namer, image, TRUTH, WORDS)
    assert namer.given.names == ("sky", "dog") and namer.given.things == (False, True)
    assert (labels == 2).all()
    background = WORDS.with_(names=("background", "cat", "dog"), background=Background.learned())
    oracle.label_with_known_presence(namer, image, np.full((2, 3), 2), background)
    assert namer.given.names == ("background", "dog")
    nothing = oracle.label_with_known_presence(namer, image, np.full((2, 3), -1), WORDS)
    assert (nothing == -1).all()


def test_names_cannot_be_left_out_of_a_remapped_vocabulary() -> None:
    with pytest.raises(InputError, match="left out"):
        oracle.only(WORDS.with_(background=Background.remap(2)), [0])
