from __future__ import annotations

import numpy as np
import pytest

from openvocab.errors import InputError
from openvocab.metrics.bootstrap import bootstrap_interval, paired_difference
from openvocab.metrics.scores import ConfusionMatrix, count_pairs, scores


def images(seed, count, right):
    """Label maps in which a share `right` of the pixels is right on average."""
    random = np.random.default_rng(seed)
    counted = []
    for _ in range(count):
        truth = random.integers(0, 4, (12, 12))
        share = np.clip(random.normal(right, 0.1), 0, 1)
        wrong = random.random(truth.shape) > share
        prediction = np.where(wrong, random.integers(0, 4, truth.shape), truth)
        counted.append(count_pairs(prediction, truth, 4))
    return counted


def whole_miou(per_image):
    matrix = ConfusionMatrix(4)
    for pairs in per_image:
        matrix.add(pairs)
    return scores(matrix.matrix).miou


def test_the_estimate_is_the_miou_of_all_images_and_lies_inside():
    per_image = images(0, 40, 0.6)
    interval = bootstrap_interval(per_image, 4)
    assert interval.estimate == pytest.approx(whole_miou(per_image))
    assert interval.low < interval.estimate < interval.high


def test_the_interval_agrees_with_drawing_images_one_by_one():
    per_image = images(1, 25, 0.6)
    random = np.random.default_rng(7)
    drawn = [whole_miou([per_image[i] for i in random.integers(0, 25, 25)]) for _ in range(1500)]
    interval = bootstrap_interval(per_image, 4, repetitions=1500)
    assert interval.low == pytest.approx(np.quantile(drawn, 0.025), abs=0.4)
    assert interval.high == pytest.approx(np.quantile(drawn, 0.975), abs=0.4)


def test_more_images_make_it_narrower_and_the_seed_fixes_it():
    few, many = (bootstrap_interval(images(2, n, 0.6), 4) for n in (10, 160))
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert few == bootstrap_interval(images(2, 10, 0.6), 4)
    assert few != bootstrap_interval(images(2, 10, 0.6), 4, seed=1)


def test_a_single_image_has_an_interval_of_no_width():
    interval = bootstrap_interval(images(3, 1, 0.6), 4)
    assert interval.low == interval.high == pytest.approx(interval.estimate)


def test_a_better_method_is_seen_as_better():
    first, second = images(4, 30, 0.7), images(4, 30, 0.5)
    difference = paired_difference(first, second, 4)
    assert difference.interval.low > 0
    assert difference.probability_better == 1
    other_way = paired_difference(second, first, 4)
    assert other_way.interval.estimate == pytest.approx(-difference.interval.estimate)


def test_a_method_does_not_differ_from_itself():
    same = paired_difference(images(5, 8, 0.6), images(5, 8, 0.6), 4)
    assert (same.interval.low, same.interval.high, same.probability_better) == (0, 0, 0.5)


def test_bad_input():
    with pytest.raises(InputError, match="no images"):
        bootstrap_interval([], 4)
    with pytest.raises(InputError, match="3 images and the second 2"):
        paired_difference(images(6, 3, 0.5), images(6, 2, 0.5), 4)
    with pytest.raises(InputError, match="95"):
        bootstrap_interval(images(6, 3, 0.5), 4, level=95)
