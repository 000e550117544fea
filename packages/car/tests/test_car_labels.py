from __future__ import annotations

import numpy as np
import pytest

from car.labels import merge_descriptions, paint
from car.sam import load_sam, match_masks
from openvocab.errors import InputError
from openvocab.metrics.scores import ConfusionMatrix, scores, without_background


@pytest.fixture(scope="module")
def recorded(golden):
    with np.load(golden / "unit_labels_metrics.npz") as file:
        return {key: file[key] for key in file.files}


def test_painting_equals_the_recording(recorded) -> None:
    masks, found = recorded["al_masks"] > 0.5, recorded["al_scores"]
    labels = np.zeros(masks.shape[1:], dtype=np.int32)
    paint(labels, masks, found, range(1, len(masks) + 1))
    np.testing.assert_array_equal(labels, recorded["al_label"])


def test_stuff_lies_below_things(recorded) -> None:
    things, stuff = recorded["al_masks"] > 0.5, recorded["al_smasks"] > 0.5
    expected = recorded["al_label2"]
    labels = np.zeros(expected.shape, dtype=np.int32)
    free = sorted(set(np.unique(expected)) - {0})
    thing_ids = [i for i in free if (expected[things.any(0)] == i).any()]
    assert thing_ids  # the recording numbers both with one id mapping
    paint(labels, stuff, recorded["al_sscores"], [100, 101, 102])
    paint(labels, things, recorded["al_scores"], range(1, len(things) + 1))
    covered = things[recorded["al_scores"] > 0].any(axis=0)
    assert ((labels >= 100) == (~covered & stuff[recorded["al_sscores"] > 0].any(axis=0))).all()
    # The same pixels belong together.
    pairs = set(zip(labels.ravel().tolist(), expected.ravel().tolist(), strict=True))
    assert len(pairs) == len(np.unique(labels)) == len(np.unique(expected))


@pytest.mark.parametrize("key", ["mg", "mg2"])
def test_merged_descriptions_equal_the_recording(recorded, key: str) -> None:
    merged = merge_descriptions(recorded[f"{key}_masks"] > 0, recorded["mg_scores"])
    np.testing.assert_array_equal(merged, recorded[f"{key}_out"][0] > 0.5)


def test_descriptions_without_weight_find_nothing() -> None:
    masks = np.ones((2, 3, 4), dtype=bool)
    assert not merge_descriptions(masks, np.zeros(2, np.float32)).any()


def test_mean_iou_equals_the_recording(recorded) -> None:
    truth, predicted = recorded["iou_gt"], recorded["iou_pred"]
    classes = len(recorded["iou_cls_ib0"])
    matrix = ConfusionMatrix(classes, ignore_index=(255,))
    outside = (truth < 0) | (truth >= classes)
    matrix.update(predicted.reshape(-1, 50), np.where(outside, 255, truth).reshape(-1, 50))
    plain, flattering = scores(matrix.matrix), scores(without_background(matrix.matrix, 0))
    np.testing.assert_allclose(plain.miou, 100 * recorded["iou_ib0"][0], atol=1e-4)
    np.testing.assert_allclose(plain.pacc, 100 * recorded["iou_ib0"][1], atol=1e-4)
    np.testing.assert_allclose(flattering.miou, 100 * recorded["iou_ib1"][0], atol=1e-4)


def test_matching_equals_the_recording(recorded) -> None:
    iom, least, matching = recorded["sam_param"]
    for index, mask in enumerate(recorded["mg_masks"] > 0):
        matched = match_masks(mask, recorded["sam_masks"], iom, least)
        np.testing.assert_array_equal(matched, recorded["sam_out_replace"][index] > 0)
        union = (matched | mask).sum()
        chosen = matched if union and (matched & mask).sum() / union > matching else mask
        np.testing.assert_array_equal(chosen, recorded["sam_out_iou"][index] > 0)


def test_matching_needs_something_to_match() -> None:
    mask = np.zeros((4, 4), dtype=bool)
    assert match_masks(mask, np.ones((1, 4, 4), dtype=bool)) is mask
    mask[1:3, 1:3] = True
    assert match_masks(mask, np.zeros((0, 4, 4), dtype=bool)) is mask
    far = np.zeros((1, 4, 4), dtype=bool)
    far[0, 0, 0] = True
    np.testing.assert_array_equal(match_masks(mask, far), far[0])  # the best there is


def test_a_sam_that_is_not_there_is_explained(tmp_path) -> None:
    pattern = "there is no SAM checkpoint|segment-anything, which is not installed"
    with pytest.raises(InputError, match=pattern):
        load_sam(tmp_path / "sam_vit_b.pth")


def test_a_file_that_is_no_sam_is_explained(tmp_path) -> None:
    pytest.importorskip("segment_anything")
    unnamed, broken = tmp_path / "sam.pth", tmp_path / "sam_vit_b.pth"
    for path in (unnamed, broken):
        path.write_bytes(b"no weights")
    with pytest.raises(InputError, match="must contain vit_b, vit_l or vit_h"):
        load_sam(unnamed)


def test_sam_being_optional_is_explained(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "segment_anything", None)
    with pytest.raises(InputError, match="pip install segment-anything"):
        load_sam(tmp_path / "sam_vit_b.pth")
