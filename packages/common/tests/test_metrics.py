from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from openvocab.errors import InputError
from openvocab.metrics.scores import (
    CONVENTIONS,
    ConfusionMatrix,
    all_conventions,
    class_totals,
    count_pairs,
    mean_iou,
    scores,
    seen_unseen,
    void_values,
    without_background,
)

GOLDEN = Path(__file__).parent / "golden"


def naive_matrix(prediction, truth, num_classes, void):
    matrix = np.zeros((num_classes, num_classes + 1), dtype=np.int64)
    for p, t in zip(prediction.ravel(), truth.ravel(), strict=True):
        if t not in void:
            matrix[t, p] += 1
    return matrix


# --- the recorded evaluator ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDEN / "evaluator.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def recorded_matrix(recorded):
    confusion = ConfusionMatrix(11, ignore_index=int(recorded["ignore_label"]))
    confusion.update(recorded["logits"].argmax(axis=0), recorded["gt"])
    return confusion.matrix


def test_matrix_is_the_recorded_one(recorded, recorded_matrix):
    # theirs: rows predictions, columns ground truth with void last
    np.testing.assert_array_equal(recorded_matrix[:, :11], recorded["conf_matrix"][:11, :11].T)
    assert recorded_matrix[:, 11].sum() == 0


def test_scores_are_the_recorded_ones(recorded, recorded_matrix):
    theirs = dict(
        zip(recorded["metric_names"].tolist(), recorded["metric_values"].tolist(), strict=True)
    )
    ours = scores(recorded_matrix, "detectron2-legacy")
    split = seen_unseen(recorded_matrix, recorded["evaluation_set_base"].tolist())
    expected = {
        "mIoU": ours.miou,
        "fwIoU": ours.fwiou,
        "mACC": ours.macc,
        "pACC": ours.pacc,
        "mIoU-base": split.seen_miou,
        "mIoU-unbase": split.unseen_miou,
        "hIoU-base": split.harmonic_miou,
        "pAcc-base": split.seen_pacc,
        "pAcc-unbase": split.unseen_pacc,
    }
    expected |= {f"IoU-c{i}": ours.iou[i] for i in range(11)}
    expected |= {f"ACC-c{i}": ours.accuracy[i] for i in range(11)}
    assert expected.keys() == theirs.keys()
    for name, value in theirs.items():
        assert expected[name] == pytest.approx(value, rel=1e-12, nan_ok=True), name


# --- by hand ------------------------------------------------------------------------------------


def test_scores_by_hand():
    # class 0: 3 of 4 found; class 1: all 2 found, 1 too many; class 2: absent, never predicted;
    # class 3: absent, predicted once (the fourth pixel of class 1's row below)
    matrix = np.array([[3, 1, 0, 0], [0, 2, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    new, legacy, mmseg = all_conventions(matrix).values()
    iou0, iou1 = 3 / 4, 2 / 4
    assert new.miou == pytest.approx(100 * (iou0 + iou1) / 2)
    assert legacy.miou == pytest.approx(100 * (iou0 + iou1) / 3)
    assert mmseg.miou == pytest.approx(100 * (iou0 + iou1 + 0) / 3)
    assert new.fwiou == pytest.approx(100 * (iou0 * 4 + iou1 * 3) / 7)
    assert new.macc == pytest.approx(100 * (3 / 4 + 2 / 3) / 2)
    assert new.pacc == pytest.approx(100 * 5 / 7)
    assert (new.n_present, new.n_averaged, legacy.n_averaged, mmseg.n_averaged) == (2, 2, 3, 3)
    np.testing.assert_allclose(new.iou, [75, 50, np.nan, np.nan])
    np.testing.assert_allclose(legacy.iou, [75, 50, np.nan, np.nan])
    np.testing.assert_allclose(mmseg.iou, [75, 50, np.nan, 0])
    assert new.zero_rate == 0


def test_classes_never_found_are_counted_as_such():
    assert scores(np.array([[0, 5], [0, 5]])).zero_rate == 50


def test_predicting_nothing_is_a_miss_and_nobodys_prediction():
    counts = count_pairs(np.array([[-1, 0]]), np.array([[0, 0]]), 2)
    np.testing.assert_array_equal(counts.dense(2), [[1, 0, 1], [0, 0, 0]])
    result = scores(counts.dense(2))
    assert result.miou == 50
    assert result.pacc == 50


def test_scores_without_any_pixel_are_nan():
    result = scores(np.zeros((3, 3)))
    assert np.isnan([result.miou, result.fwiou, result.macc, result.pacc]).all()
    assert result.n_present == 0


def test_unseen_part_without_ground_truth_is_nan():
    split = seen_unseen(np.array([[1, 0], [0, 0]]), [0])
    assert split.seen_miou == 100
    assert np.isnan(split.unseen_miou)


def test_harmonic_mean_of_two_failures_is_zero():
    assert seen_unseen(np.array([[0, 1], [1, 0]]), [0]).harmonic_miou == 0


@pytest.mark.parametrize("seen", [[2], [-1]])
def test_seen_id_that_is_no_class_is_refused(seen):
    with pytest.raises(InputError, match=str(seen[0])):
        seen_unseen(np.eye(2), seen)


def test_without_background_a_pixel_lost_to_it_is_no_miss():
    matrix = np.array([[4, 1, 0], [3, 5, 0], [2, 0, 0]])
    dropped = np.pad(matrix, ((0, 0), (0, 1)))
    np.testing.assert_array_equal(without_background(dropped, 0), [[5, 0, 0], [0, 0, 0]])
    nothing = np.array([[1, 0, 9], [0, 2, 9]])
    np.testing.assert_array_equal(without_background(nothing), [[1, 0], [0, 2]])
    assert scores(without_background(nothing)).miou == 100


# --- the proof that conventions matter ----------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "new", "legacy"),
    [("san_vit_b_16", 16.7053, 12.56), ("san_vit_large_14", 20.8311, 15.66)],
)
def test_pc459_has_two_published_numbers_from_the_same_ious(model, new, legacy):
    ious = json.loads((GOLDEN / "pc459_per_class_iou.json").read_text())[model]
    matrix = matrix_with_ious(ious, predicted_absent=1)
    assert scores(matrix, "detectron2").miou == pytest.approx(new, abs=5e-4)
    assert scores(matrix, "detectron2-legacy").miou == pytest.approx(legacy, abs=5e-3)
    assert scores(matrix, "mmseg").miou == pytest.approx(legacy, abs=5e-3)
    assert scores(matrix).n_present == 345


def matrix_with_ious(ious, predicted_absent):
    """A confusion matrix with the given IoUs in which every absent class was predicted."""
    classes = len(ious)
    matrix = np.zeros((classes, classes + 1), dtype=np.int64)
    absent = [i for i, iou in enumerate(ious) if iou is None]
    for i, iou in enumerate(ious):
        if iou is not None:
            matrix[i, i] = round(iou * 1e6)
            matrix[i, classes] = 100 * 10**6 - matrix[i, i]
    first = next(i for i, iou in enumerate(ious) if iou is not None)
    moved = predicted_absent * len(absent)
    matrix[first, absent] = predicted_absent
    matrix[first, classes] -= moved
    return matrix


# --- void ---------------------------------------------------------------------------------------


def test_255_is_a_class_when_there_are_more_than_255():
    truth = np.array([[255, 65535]], dtype=np.uint16)
    counts = count_pairs(np.array([[255, 255]]), truth, 459)
    assert counts.truth.tolist() == [255]
    assert void_values(255) == {255}
    assert void_values(256) == {65535}


def test_a_data_set_may_say_what_is_void():
    truth = np.array([[459, 65535, 3]], dtype=np.uint16)
    counts = count_pairs(np.array([[3, 3, 3]]), truth, 459, ignore_index=(459, 65535))
    assert counts.counts.tolist() == [1]
    nothing_void = count_pairs(np.array([[0]]), np.array([[0]]), 2, ignore_index=())
    assert nothing_void.counts.tolist() == [1]


# --- bad input ----------------------------------------------------------------------------------


def test_sizes_must_agree():
    with pytest.raises(InputError, match=r"2 x 3.*3 x 2"):
        count_pairs(np.zeros((2, 3), int), np.zeros((3, 2), int), 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_a_value_that_is_no_class_is_named_with_its_count(dtype):
    truth = np.array([[0, 7, 7, 1]], dtype=dtype)
    with pytest.raises(InputError, match=r"7 \(2 pixels\)"):
        count_pairs(np.zeros((1, 4), int), truth, 2)


@pytest.mark.parametrize("value", [-2, 65535, 70000, 5])
def test_a_prediction_that_is_no_class_is_named(value):
    with pytest.raises(InputError, match=rf"prediction holds .*{value}"):
        count_pairs(np.array([[value]]), np.array([[0]]), 2)


@pytest.mark.parametrize("value", [-1, 70000])
def test_a_truth_outside_16_bits_is_named(value):
    with pytest.raises(InputError, match=rf"ground truth holds the value {value} in 1 pixel"):
        count_pairs(np.array([[0]]), np.array([[value]]), 2)


def test_labels_are_integers():
    with pytest.raises(InputError, match="float64"):
        count_pairs(np.zeros((1, 1)), np.zeros((1, 1), int), 2)


def test_a_convention_must_exist():
    with pytest.raises(InputError, match="detectron2-legacy"):
        scores(np.eye(2), "mean")


def test_a_matrix_must_be_square_but_for_nothing():
    with pytest.raises(InputError, match="3, 5"):
        scores(np.zeros((3, 5)))


def test_merging_needs_the_same_classes():
    with pytest.raises(InputError, match="3 classes"):
        ConfusionMatrix(2).merge(ConfusionMatrix(3))


# --- properties ---------------------------------------------------------------------------------

CLASSES = 6
label_maps = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda size: st.tuples(
        hnp.arrays(np.int32, size, elements=st.integers(-1, CLASSES - 1)),
        hnp.arrays(np.uint8, size, elements=st.sampled_from([*range(CLASSES), 255])),
    )
)
matrices = hnp.arrays(np.int64, (CLASSES, CLASSES + 1), elements=st.integers(0, 50))


@given(label_maps)
def test_counting_equals_the_naive_loop(maps):
    prediction, truth = maps
    counted = count_pairs(prediction, truth, CLASSES)
    expected = naive_matrix(prediction, truth, CLASSES, {255})
    np.testing.assert_array_equal(counted.dense(CLASSES), expected)
    np.testing.assert_array_equal(counted.totals(CLASSES), class_totals(expected))


@pytest.mark.parametrize("tile", [1, 4, 40])
def test_counting_is_exact_for_noise_and_for_regions(tile):
    random = np.random.default_rng(tile)
    small = random.integers(0, 847, (2, 240 // tile, 320 // tile))
    prediction, truth = small.repeat(tile, axis=1).repeat(tile, axis=2)
    truth = np.where(random.random(truth.shape) < 0.01, 65535, truth).astype(np.uint16)
    valid = truth != 65535
    expected = np.bincount(truth[valid].astype(int) * 848 + prediction[valid], minlength=847 * 848)
    counted = count_pairs(prediction, truth, 847).dense(847)
    np.testing.assert_array_equal(counted.ravel(), expected)


@given(st.lists(label_maps, min_size=2, max_size=4))
@settings(max_examples=30)
def test_images_add_up_in_any_order_and_grouping(images):
    whole, left, right = (ConfusionMatrix(CLASSES) for _ in range(3))
    for prediction, truth in images:
        whole.update(prediction, truth)
    for position, (prediction, truth) in enumerate(reversed(images)):
        (left if position % 2 else right).update(prediction, truth)
    left.merge(right)
    np.testing.assert_array_equal(whole.matrix, left.matrix)


@given(matrices)
def test_conventions_agree_where_they_must(matrix):
    new, legacy, mmseg = all_conventions(matrix).values()
    assert legacy.miou == pytest.approx(mmseg.miou, nan_ok=True)
    if new.n_present:
        assert legacy.miou <= new.miou + 1e-9
        assert legacy.miou * legacy.n_averaged == pytest.approx(new.miou * new.n_present)
    assert (new.pacc, new.fwiou, new.macc) == pytest.approx(
        (mmseg.pacc, mmseg.fwiou, mmseg.macc), nan_ok=True
    )


@given(matrices, st.permutations(range(CLASSES)))
def test_renaming_classes_changes_nothing(matrix, order):
    order = list(order)
    renamed = matrix[np.ix_(order, [*order, CLASSES])]
    for convention in CONVENTIONS:
        before, after = scores(matrix, convention), scores(renamed, convention)
        assert before.miou == pytest.approx(after.miou, nan_ok=True)
        np.testing.assert_allclose(before.iou[order], after.iou)


@given(matrices)
def test_scores_lie_between_0_and_100_and_fit_mean_iou(matrix):
    for convention in CONVENTIONS:
        result = scores(matrix, convention)
        for value in (result.miou, result.fwiou, result.macc, result.pacc, result.zero_rate):
            assert np.isnan(value) or -1e-9 <= value <= 100 + 1e-9
        assert float(mean_iou(class_totals(matrix), convention)) == pytest.approx(
            result.miou, nan_ok=True
        )


@given(hnp.arrays(np.uint8, (5, 7), elements=st.integers(0, CLASSES - 1)))
def test_a_perfect_prediction_scores_100(truth):
    result = scores(count_pairs(truth, truth, CLASSES).dense(CLASSES))
    assert result.miou == result.fwiou == result.macc == result.pacc == 100


@given(matrices, st.sets(st.integers(0, CLASSES - 1)))
def test_seen_and_unseen_together_are_everything(matrix, seen):
    split = seen_unseen(matrix, seen)
    swapped = seen_unseen(matrix, set(range(CLASSES)) - seen)
    assert split.seen_miou == pytest.approx(swapped.unseen_miou, nan_ok=True)
    whole = seen_unseen(matrix, range(CLASSES))
    assert whole.seen_miou == pytest.approx(scores(matrix, "detectron2-legacy").miou, nan_ok=True)
