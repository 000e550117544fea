from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from openvocab.errors import InputError
from openvocab.evaluation.augmentation import (
    TestTimeAugmentation,
    add_augmentation_arguments,
    augment,
    labels_of_scores,
)
from openvocab.image import resize_shortest_edge
from openvocab.vocabulary import Background, Vocabulary

NAMES = Vocabulary(("red", "green", "blue"))


class Channels:
    """Scores words by colour channels plus their place, so that flips and sizes matter."""

    def __init__(self):
        self.seen = []

    def scores_at(self, image, vocabulary, output_size):
        self.seen.append(image)
        scores = torch.from_numpy(image).permute(2, 0, 1).float()[: len(vocabulary.words)]
        scores = scores + torch.arange(scores.shape[2])  # left is not right
        return F.interpolate(scores[None], size=output_size, mode="bilinear")[0]

    def segment(self, image, vocabulary, *, return_scores=False):
        raise AssertionError("views are scored, not segmented")

    def describe(self):
        return {"method": "channels"}


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (30, 44, 3)).astype(np.uint8)


def test_scores_are_the_mean_over_sizes_and_mirrors(image):
    model = Channels()
    tta = TestTimeAugmentation(model, sizes=(12, 20), max_size=24, short=16, max_short=64)
    found = tta.segment(image, NAMES, return_scores=True)
    base = resize_shortest_edge(image, 16, 64)
    expected = []
    for size in (12, 20):
        view = resize_shortest_edge(base, size, 24)
        mirror = np.ascontiguousarray(view[:, ::-1])
        expected.append(Channels().scores_at(view, NAMES, (30, 44)))
        expected.append(Channels().scores_at(mirror, NAMES, (30, 44)).flip(-1))
    mean = torch.stack(expected).mean(0)
    np.testing.assert_allclose(found.scores, mean.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(found.labels, mean.argmax(0).numpy())
    assert [view.shape[:2] for view in model.seen] == [(12, 17)] * 2 + [(17, 24)] * 2


def test_one_view_of_the_usual_size_is_the_plain_result(image):
    tta = TestTimeAugmentation(
        Channels(), sizes=(16,), max_size=64, flip=False, short=16, max_short=64
    )
    plain = Channels().scores_at(resize_shortest_edge(image, 16, 64), NAMES, (30, 44))
    assert torch.equal(tta.scores(image, NAMES), plain)


def test_a_list_of_images_and_a_list_of_names(image):
    tta = TestTimeAugmentation(Channels(), sizes=(16,), max_size=64)
    both = tta.segment([image, image[:, ::-1]], ["red", "blue"])
    assert [one.labels.shape for one in both] == [(30, 44)] * 2
    np.testing.assert_array_equal(both[0].labels, tta.segment(image, ["red", "blue"]).labels)


def test_background_policies(image):
    scores = torch.tensor([[[0.9, 0.1]], [[0.2, 0.3]]])
    low = Vocabulary(("a", "b"), background=Background.threshold(0.5))
    assert labels_of_scores(scores, low).tolist() == [[0, -1]]
    words = Vocabulary(("a",), background=Background.names(["sky"]))
    assert labels_of_scores(scores, words).tolist() == [[0, -1]]
    tta = TestTimeAugmentation(Channels(), sizes=(16,), max_size=64)
    with pytest.raises(InputError, match="learned"):
        tta.segment(image, NAMES.with_(background=Background.learned()))


def parse(*argv):
    parser = argparse.ArgumentParser()
    add_augmentation_arguments(parser, sizes=(320, 480), max_size=4480)
    return parser.parse_args(argv)


def test_the_flags():
    model: Any = Channels()
    assert augment(model, parse(), short=640, max_short=2560) is model
    wrapped = augment(model, parse("--tta"), short=640, max_short=2560)
    assert wrapped.describe() == {
        "method": "channels",
        "tta": "short sides 320, 480 of at most 4480, each also mirrored; mean of scores",
    }
    own = augment(
        model,
        parse("--tta", "--tta-sizes", "64", "--no-tta-flip", "--tta-max-size", "99"),
        short=640,
        max_short=2560,
    )
    assert own.describe()["tta"] == "short sides 64 of at most 99; mean of scores"


@pytest.mark.parametrize("sizes", [(), (0,)])
def test_sizes_must_be_sizes(sizes):
    with pytest.raises(InputError, match="at least 1"):
        TestTimeAugmentation(Channels(), sizes=sizes, max_size=64)
