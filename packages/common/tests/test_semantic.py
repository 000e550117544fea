"""Streamed labels against the full score volume, for every geometry and background policy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openvocab.semantic import (
    MaskGeometry,
    bilinear_matrix,
    semantic_labels,
    semantic_scores,
    vocabulary_labels,
    vocabulary_scores,
)
from openvocab.vocabulary import Background, Vocabulary


def random_case(
    seed: int, queries: int, names: int, grid: tuple[int, int], peaked: float = 2.0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prob = (peaked * torch.randn(queries, names + 1, generator=generator)).softmax(-1)[:, :-1]
    coarse = 5 * torch.randn(1, queries, 3, 3, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, grid, mode="bicubic")[0]
    return prob, masks + 0.3 * torch.randn(masks.shape, generator=generator)


def assert_best(labels: torch.Tensor, scores: torch.Tensor) -> None:
    """Every label must have the highest score, up to the rounding of sums."""
    chosen = scores.gather(0, labels[None])[0]
    best = scores.amax(0)
    assert (chosen >= best * (1 - 1e-5)).all()
    assert (labels == scores.argmax(0)).float().mean() > 0.999


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    names=st.integers(1, 40),
    grid=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    output=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    cut=st.tuples(st.integers(0, 15), st.integers(0, 15)),
    resize_logits=st.booleans(),
    tile=st.sampled_from([7, 32, 64]),
)
def test_streamed_labels_are_the_argmax_of_the_scores(
    seed: int,
    names: int,
    grid: tuple[int, int],
    output: tuple[int, int],
    cut: tuple[int, int],
    resize_logits: bool,
    tile: int,
) -> None:
    prob, masks = random_case(seed, 6, names, grid)
    padded = (16 * grid[0], 16 * grid[1])
    valid = (padded[0] - cut[0], padded[1] - cut[1])
    geometry = MaskGeometry(padded, valid, output, resize_logits)
    labels = semantic_labels(prob, masks, geometry, tile=tile)
    assert labels.shape == output
    assert_best(labels, semantic_scores(prob, masks, geometry))


def test_ten_thousand_names_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openvocab.semantic._BLOCK", 1 << 14)
    prob, masks = random_case(1, 5, 3000, (4, 6), peaked=0.1)
    geometry = MaskGeometry((64, 96), (64, 96), (64, 96))
    assert_best(semantic_labels(prob, masks, geometry), semantic_scores(prob, masks, geometry))


def test_ties_go_to_the_lowest_index() -> None:
    prob = torch.full((3, 5), 0.2)
    labels = semantic_labels(prob, torch.randn(3, 2, 2), MaskGeometry((32, 32), (32, 32), (32, 32)))
    assert (labels == 0).all()


def test_no_name_scores_anywhere() -> None:
    geometry = MaskGeometry((32, 32), (32, 32), (40, 40))
    assert (semantic_labels(torch.zeros(3, 5), torch.randn(3, 2, 2), geometry) == 0).all()


@pytest.mark.parametrize("resize_logits", [True, False])
def test_threshold_leaves_weak_pixels_out(resize_logits: bool) -> None:
    prob, masks = random_case(3, 4, 9, (5, 5))
    geometry = MaskGeometry((80, 80), (80, 75), (90, 60), resize_logits)
    scores = semantic_scores(prob, masks, geometry)
    threshold = float(scores.amax(0).median())
    labels = semantic_labels(prob, masks, geometry, threshold=threshold)
    clear = (scores.amax(0) - threshold).abs() > 1e-5
    assert torch.equal((labels == -1)[clear], (scores.amax(0) < threshold)[clear])
    assert 0.4 < (labels == -1).float().mean() < 0.6


def test_bilinear_matrix_is_interpolate() -> None:
    image = torch.randn(1, 1, 7, 1)
    for size in (1, 5, 7, 20):
        expected = torch.nn.functional.interpolate(image, size=(size, 1), mode="bilinear")
        assert torch.allclose(bilinear_matrix(7, size) @ image[0, 0], expected[0, 0], atol=1e-6)


class TestVocabularies:
    geometry = MaskGeometry((64, 64), (64, 64), (64, 64))

    def labels(self, vocabulary: Vocabulary) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
        prob, masks = random_case(5, 6, len(vocabulary.words) + 1, (4, 4))
        no_object, prob = prob[:, -1] + 0.1, prob[:, :-1]
        found = vocabulary_labels(prob, no_object, masks, self.geometry, vocabulary)
        with_no_object = torch.cat([prob, no_object[:, None]], dim=1)
        return found, semantic_scores(with_no_object, masks, self.geometry), no_object

    def test_other_words_are_nothing(self) -> None:
        vocabulary = Vocabulary(("a", "b"), others=("c", "d", "e"))
        labels, scores, _ = self.labels(vocabulary)
        winners = scores[:-1].argmax(0).numpy()
        assert np.array_equal(labels, np.where(winners < 2, winners, -1))
        assert {-1, 0, 1} >= set(np.unique(labels)) and -1 in labels

    def test_learned_no_object(self) -> None:
        vocabulary = Vocabulary(("a", "b", "c"), background=Background.learned())
        labels, scores, _ = self.labels(vocabulary)
        winners = scores.argmax(0).numpy()
        assert np.array_equal(labels, np.where(winners < 3, winners, -1)) and -1 in labels

    def test_words_for_background(self) -> None:
        vocabulary = Vocabulary(
            ("background", "cat", "dog"), background=Background.names(("sky", "wall"))
        )
        labels, scores, _ = self.labels(vocabulary)
        meaning = np.array([1, 2, 0, 0])  # cat, dog, sky, wall
        assert np.array_equal(labels, meaning[scores[:-1].argmax(0).numpy()])

    def test_scores_of_names_are_those_of_their_best_word(self) -> None:
        vocabulary = Vocabulary(
            ("background", "cat"), background=Background.threshold(0.25), synonyms=((), ("kitten",))
        )
        words = torch.rand(2, 5, 4)  # cat, kitten
        scores = vocabulary_scores(words, vocabulary)
        assert np.array_equal(scores[1], words.amax(0).numpy())
        assert (scores[0] == 0.25).all()
