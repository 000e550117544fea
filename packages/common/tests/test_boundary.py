from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from openvocab.metrics.boundary import boundary_counts, boundary_iou, boundary_width
from openvocab.metrics.scores import class_totals, count_pairs


def naive_edge(mask, reach):
    padded = np.pad(mask, reach)
    edge = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        edge[y, x] = not padded[y : y + 2 * reach + 1, x : x + 2 * reach + 1].all()
    return edge


def test_two_squares_by_hand():
    truth, prediction = np.zeros((10, 10), int), np.zeros((10, 10), int)
    truth[2:6, 2:6] = 1
    prediction[2:6, 3:7] = 1
    totals = boundary_counts(prediction, truth, 2)
    assert boundary_width(10, 10) == 1
    # outline of a 4 x 4 square: 12 pixels; common: 3 on top, 3 below (columns 3 to 5)
    assert totals[:, 1].tolist() == [6, 12, 12]
    assert boundary_iou(totals)[1] == pytest.approx(100 * 6 / 18)


def test_void_pixels_do_not_count_and_cut_no_outline_into_the_prediction():
    truth = np.zeros((20, 20), int)
    truth[8:12, 8:12] = 255
    totals = boundary_counts(np.zeros((20, 20), int), truth, 1)
    outer = 20 * 4 - 4
    around_void = 6 * 6 - 4 * 4
    assert totals[:, 0].tolist() == [outer, outer + around_void, outer]


@given(
    hnp.arrays(np.int64, (9, 12), elements=st.integers(-1, 2)),
    hnp.arrays(np.int64, (9, 12), elements=st.sampled_from([0, 1, 2, 255])),
    st.sampled_from([0.02, 0.2]),
)
@settings(max_examples=40)
def test_counts_equal_the_definition(prediction, truth, ratio):
    reach = boundary_width(9, 12, ratio)
    expected = np.zeros((3, 3), int)
    for i in range(3):
        true_edge = naive_edge(truth == i, reach) & (truth != 255)
        predicted_edge = naive_edge(prediction == i, reach) & (truth != 255)
        expected[:, i] = (true_edge & predicted_edge).sum(), true_edge.sum(), predicted_edge.sum()
    np.testing.assert_array_equal(boundary_counts(prediction, truth, 3, ratio=ratio), expected)


def test_a_wide_boundary_is_the_whole_mask():
    random = np.random.default_rng(0)
    prediction, truth = random.integers(0, 3, (2, 16, 16))
    totals = class_totals(count_pairs(prediction, truth, 3).dense(3))
    np.testing.assert_array_equal(boundary_counts(prediction, truth, 3, ratio=1.0), totals)


def test_a_class_without_ground_truth_has_no_boundary_iou():
    totals = boundary_counts(np.ones((4, 4), int), np.zeros((4, 4), int), 3)
    np.testing.assert_array_equal(boundary_iou(totals), [0, np.nan, np.nan])
