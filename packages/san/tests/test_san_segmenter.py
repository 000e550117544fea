"""SAN as its users call it: images and names in, label maps out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from openvocab.segmenter import Segmenter
from openvocab.vocabulary import Background, Vocabulary
from san import SANSegmenter


@pytest.fixture
def segmenter(recording) -> SANSegmenter:
    return SANSegmenter(recording.network(), recording.inference, cache_dir=False)


def names(recording) -> list[str]:
    return recording.meta["vocabulary"]


def test_whole_path_equals_the_recording(recording, segmenter) -> None:
    """From the original image and the names to labels, with nothing of the recording between."""
    vocabulary = Vocabulary(tuple(names(recording)), templates=recording.inference.templates)
    for index in recording.images:
        inputs = recording.load(f"infer_{index}_input")
        result = segmenter.segment(inputs["image_uint8"].numpy(), vocabulary, return_scores=True)
        agreement = (torch.from_numpy(result.labels) == inputs["argmax"]).float().mean()
        assert agreement >= 0.9999
        assert np.abs(result.scores - inputs["sem_seg"].numpy()).max() < 5e-5


def test_a_list_gives_what_its_images_give_one_by_one(recording, segmenter) -> None:
    images = [recording.load(f"infer_{i}_input")["image_uint8"].numpy() for i in recording.images]
    images += [images[0][:, ::-1].copy(), images[1][::2]]
    together = segmenter.segment(images, names(recording), return_scores=True)
    for image, result in zip(images, together, strict=True):
        alone = segmenter.segment(image, names(recording), return_scores=True)
        assert result.labels.shape == image.shape[:2]
        assert np.abs(alone.scores - result.scores).max() < 5e-5  # rounding of other batches
        assert (alone.labels == result.labels).mean() > 0.9999


def test_it_is_a_segmenter_that_describes_itself(segmenter) -> None:
    assert isinstance(segmenter, Segmenter)
    card = segmenter.describe()
    assert card["method"] == "SAN" and card["precision"] == "fp32"
    assert str(segmenter.inference.short_side) in card["resize_rule"]  # type: ignore[attr-defined]


def test_background_policies(recording, segmenter) -> None:
    image = recording.load("infer_0_input")["image_uint8"].numpy()
    base = Vocabulary(tuple(names(recording)))
    plain = segmenter.segment(image, base, return_scores=True)
    threshold = float(np.median(plain.scores.max(0)))
    cut = segmenter.segment(image, base.with_(background=Background.threshold(threshold)))
    assert 0.3 < (cut.labels == -1).mean() < 0.7
    assert np.array_equal(cut.labels[cut.labels >= 0], plain.labels[cut.labels >= 0])
    learned = segmenter.segment(image, base.with_(background=Background.learned()))
    kept = learned.labels >= 0
    assert np.array_equal(learned.labels[kept], plain.labels[kept])


def test_scores_at_another_size(recording, segmenter) -> None:
    image = recording.load("infer_0_input")["resized_uint8"].numpy()
    vocabulary = Vocabulary(tuple(names(recording)))
    scores = segmenter.scores_at(image, vocabulary, (50, 71))
    assert scores.shape == (len(vocabulary), 50, 71) and (scores >= 0).all()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_fewer_bits_change_few_labels(recording, segmenter, precision) -> None:
    image = recording.load("infer_0_input")["image_uint8"].numpy()
    exact = segmenter.segment(image, names(recording)).labels
    coarse = SANSegmenter(
        recording.network(), recording.inference, precision=precision, cache_dir=False
    )
    assert (coarse.segment(image, names(recording)).labels == exact).mean() > 0.8


def test_one_name_and_one_pixel(recording, segmenter) -> None:
    assert (segmenter.segment(np.zeros((40, 30, 3), np.uint8), "cat").labels == 0).all()
    thin = segmenter.segment(np.full((1, 5, 3), 200, np.uint8), names(recording))
    assert thin.labels.shape == (1, 5)
