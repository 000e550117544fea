from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from openvocab.errors import InputError
from openvocab.formats.run_length import (
    decode_labels,
    decode_rle,
    encode_labels,
    encode_rle,
)
from openvocab.metrics.boundary import boundary_of_labels, boundary_of_mask, boundary_width

masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


def spelled_out(counts: list[int]) -> str:
    """Write COCO's string one run at a time, as its definition says."""
    text = ""
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            group = value & 0x1F
            value >>= 5
            more = value != -1 if group & 0x10 else value != 0
            text += chr((group | (0x20 if more else 0)) + 48)
    return text


def runs_of(mask: np.ndarray) -> list[int]:
    counts, value = [0], False
    for pixel in mask.ravel(order="F"):
        if pixel != value:
            counts.append(0)
            value = bool(pixel)
        counts[-1] += 1
    return counts


def test_strings_known_by_hand() -> None:
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True  # columns 0000 0110 0110 0000: runs 5 2 2 2 5, then 0 = 2-2, 3 = 5-2
    assert encode_rle(mask) == {"size": [4, 4], "counts": "52203"}
    assert encode_rle(np.zeros((3, 3)))["counts"] == "9"
    assert encode_rle(np.ones((3, 3)))["counts"] == "09"
    assert encode_rle(np.zeros((4, 4)))["counts"] == "`0"  # 16 needs a second group for its sign
    assert encode_rle(np.zeros((10, 10)))["counts"] == "T3"  # 100 = 4 + 3 * 32


def test_a_negative_difference() -> None:
    mask = np.zeros((1, 60), bool)
    mask[0, 10:50] = True
    mask[0, 55:56] = True  # runs 10 40 5 1 4: 1 - 40 = -39, 4 - 5 = -1
    assert encode_rle(mask)["counts"] == spelled_out([10, 40, 5, 1, 4])
    np.testing.assert_array_equal(decode_rle(encode_rle(mask)), mask)


@given(masks)
def test_round_trip_and_definition(mask: np.ndarray) -> None:
    rle = encode_rle(mask)
    assert rle["counts"] == spelled_out(runs_of(mask))
    np.testing.assert_array_equal(decode_rle(rle), mask)
    as_bytes = {"size": rle["size"], "counts": rle["counts"].encode()}
    np.testing.assert_array_equal(decode_rle(as_bytes), mask)
    np.testing.assert_array_equal(decode_rle({**rle, "counts": runs_of(mask)}), mask)


def test_a_large_mask_with_long_runs() -> None:
    mask = np.zeros((3000, 2000), bool)
    mask[:, 700:1900] = True
    mask[5, 3] = True
    rle = encode_rle(mask)
    assert rle["counts"] == spelled_out([9005, 1, 2_090_994, 3_600_000, 300_000])
    np.testing.assert_array_equal(decode_rle(rle), mask)


@given(hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.integers(-1, 4)))
def test_all_labels_at_once_equal_one_by_one(labels: np.ndarray) -> None:
    codes = encode_labels(labels)
    assert list(codes) == [label for label in np.unique(labels) if label >= 0]
    for label, code in codes.items():
        assert code == encode_rle(labels == label)
    assert (decode_labels(codes, labels.shape) == labels).all()


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [4, 4], "counts": "52202"},
        {"size": [4, 5], "counts": "52203"},
        {"size": [4, 4], "counts": "5220\x80"},
        {"size": [4, 4], "counts": "5220P"},  # goes on, but ends
        {"size": [4, 4], "counts": "`" * 30 + "0"},
        {"size": [2, 2], "counts": [5, -1]},
        {"counts": "52203"},
        {"size": 16, "counts": "52203"},
        {"size": [-4, -4], "counts": "52203"},
        {"size": [4, 4], "counts": ["many"]},
        {"size": [4, 4], "counts": "\ud800"},
    ],
)
def test_damaged_codes_are_refused(rle: dict[str, object]) -> None:
    with pytest.raises(InputError):
        decode_rle(rle)


@settings(max_examples=200)
@given(st.text(max_size=12), st.integers(0, 6), st.integers(0, 6))
def test_any_string_decodes_or_is_refused(text: str, height: int, width: int) -> None:
    try:
        mask = decode_rle({"size": [height, width], "counts": text})
    except InputError:
        return
    assert mask.shape == (height, width)


def test_boundary_by_hand() -> None:
    mask = np.zeros((7, 9), bool)
    mask[1:6, 2:9] = True  # touches the right border, which bounds it too
    core = np.zeros_like(mask)
    core[2:5, 3:8] = True
    np.testing.assert_array_equal(boundary_of_mask(mask), mask & ~core)
    core[:] = False
    core[3, 4:7] = True
    np.testing.assert_array_equal(boundary_of_mask(mask, 2), mask & ~core)


@given(masks, st.integers(1, 5))
def test_boundary_is_inside_and_grows(mask: np.ndarray, width: int) -> None:
    boundary = boundary_of_mask(mask, width)
    assert not (boundary & ~mask).any()
    assert not (boundary & ~boundary_of_mask(mask, width + 1)).any()
    np.testing.assert_array_equal(boundary_of_mask(mask, 50), mask)


def test_boundary_width_is_two_percent_of_the_diagonal() -> None:
    assert boundary_width(480, 640) == 16
    assert boundary_width(3, 4) == 1


def test_boundary_of_labels() -> None:
    labels = np.array([[0, 0, 1], [0, 0, 1], [2, 2, 2]])
    expected = [[0, 1, 0], [1, 1, 1], [0, 0, 0]]
    np.testing.assert_array_equal(boundary_of_labels(labels), np.array(expected, bool))
