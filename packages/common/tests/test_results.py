from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from openvocab.errors import InputError
from openvocab.evaluation.results import ProtocolCard, Result, diff_cards, pack, unpack
from openvocab.metrics.bootstrap import Interval

CARD = ProtocolCard(
    data_set="ade20k-150",
    split="val",
    n_images=3,
    vocabulary="ade20k-150",
    n_classes=3,
    ignore_index=(255,),
    method="san",
    weights_sha256="ab" * 32,
    thresholds={"mask": 0.4},
    settings={"side": 640},
)
MATRIX = np.array([[5, 1, 0, 0], [0, 4, 0, 2], [0, 0, 0, 0]])


@pytest.fixture
def result():
    return Result(
        CARD,
        ("cat", "dog", "bird"),
        MATRIX,
        {"detectron2": Interval(70.0, 60.0, 80.0)},
        boundary=np.array([[1, 2, 0], [2, 4, 0], [3, 2, 0]]),
    )


def test_a_result_is_read_back(result, tmp_path):
    result.save(tmp_path / "deep" / "result.json")
    read = Result.load(tmp_path / "deep" / "result.json")
    assert (read.card, read.names, read.complete) == (result.card, result.names, True)
    np.testing.assert_array_equal(read.matrix, MATRIX)
    np.testing.assert_array_equal(read.boundary, result.boundary)
    interval = read.intervals["detectron2"]
    assert (interval.low, interval.high) == (60.0, 80.0)
    assert read.scores().miou == result.scores().miou


def test_the_file_says_it_all_in_plain_json(result, tmp_path):
    result.save(tmp_path / "result.json")
    data = json.loads((tmp_path / "result.json").read_text())
    assert data["scores"].keys() == {"detectron2", "detectron2-legacy", "mmseg"}
    assert data["scores"]["detectron2"]["mIoU"] == pytest.approx(100 * (5 / 6 + 4 / 7) / 2)
    assert data["scores"]["detectron2"]["mIoU_interval"] == [60.0, 80.0]
    assert data["scores"]["detectron2"]["classes_present"] == 2
    assert data["iou"][2] is None
    assert data["boundary_iou"] == pytest.approx([100 / 4, 50, None])
    assert data["card"]["thresholds"] == {"mask": 0.4}


def test_the_table_names_every_convention(result):
    table = result.table()
    assert "ade20k-150 val: 3 images, 3 classes, 2 of them present" in table
    for convention in ("detectron2 ", "detectron2-legacy", "mmseg"):
        assert convention in table
    assert "60.00 to 80.00" in table
    assert "no ground truth" not in table  # nobody predicted a bird: the conventions agree


def test_the_table_says_why_conventions_differ():
    matrix = MATRIX.copy()
    matrix[0, 2] = 1
    table = Result(CARD, ("cat", "dog", "bird"), matrix).table()
    assert "1 of the 3 classes have no ground truth" in table
    assert "SAN papers" in table


@given(hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0)))
def test_packed_counts_are_unpacked(counts):
    value = json.loads(json.dumps(pack(counts)))
    np.testing.assert_array_equal(unpack(value, counts.shape), counts)


def test_a_large_matrix_stays_small():
    matrix = np.zeros((847, 848), np.int64)
    random = np.random.default_rng(0)
    matrix[random.integers(0, 847, 20000), random.integers(0, 848, 20000)] = 12345
    assert len(pack(matrix)["data"]) < 300_000  # of 5.7 MB


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_images": 4}, "the number of images differs: 3 against 4"),
        ({"weights_sha256": "cd" * 32}, "the weights differ: abababababab against cdcdcdcdcdcd"),
        ({"ignore_index": (255, 254)}, "the void values differ: [255] against [255, 254]"),
        ({"thresholds": {"mask": 0.5}}, "the threshold 'mask' differs: 0.4 against 0.5"),
        ({"settings": {}}, "the setting 'side' differs: 640 against not set"),
        ({"tta": "flip"}, "the test-time augmentation differs: none against flip"),
        ({"variant": "large"}, "the variant differs: nothing against large"),
    ],
)
def test_cards_are_compared_in_words(change, words):
    assert diff_cards(CARD, replace(CARD, **change)) == [words]


@given(st.sampled_from([line.name for line in fields(ProtocolCard)]))
def test_every_line_of_a_card_counts(name):
    value = getattr(CARD, name)
    other = {str: "x", int: 99, tuple: (1,), dict: {"x": 1}}[type(value)]
    assert diff_cards(CARD, replace(CARD, **{name: other}))
    assert diff_cards(CARD, CARD) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:50], "not JSON"),
        (lambda text: "[]", "not a result"),
        (lambda text: text.replace("openvocab-result-1", "other"), "not a result"),
        (lambda text: text.replace('"data_set"', '"data_sets"'), "unknown line 'data_sets'"),
        (lambda text: text.replace('"names": [\n  "cat",', '"names": ['), "damaged"),
        (lambda text: text.replace('"shape": [\n   3,', '"shape": [\n   9,'), "damaged"),
        (lambda text: text.replace('"data": "eN', '"data": "zz'), "damaged"),
    ],
)
def test_damaged_results(result, tmp_path, damage, message):
    file = tmp_path / "result.json"
    result.save(file)
    text = file.read_text()
    changed = damage(text)
    assert changed != text
    file.write_text(changed)
    with pytest.raises(InputError, match=message):
        Result.load(file)


def test_a_missing_result(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        Result.load(tmp_path / "no.json")
