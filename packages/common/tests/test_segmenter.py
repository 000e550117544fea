from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openvocab.drawing.overlay import palette
from openvocab.errors import InputError
from openvocab.formats.run_length import decode_rle
from openvocab.image import read_image, read_label_map
from openvocab.segmenter import BaseSegmenter, Segmentation, Segmenter
from openvocab.vocabulary import Vocabulary


def segmentation(names: int = 3, size: tuple[int, int] = (6, 8), **more: Any) -> Segmentation:
    labels = np.random.default_rng(0).integers(-1, names, size).astype(np.int32)
    vocabulary = Vocabulary.from_names([f"name {index}" for index in range(names)])
    return Segmentation(labels, vocabulary, **more)


def test_areas_are_shares_largest_first() -> None:
    labels = np.array([[0, 2, 2, 2], [-1, 2, 1, 1]], np.int32)
    found = Segmentation(labels, Vocabulary.from_names("cat, dog, bird, fish"))
    assert list(found.areas().items()) == [("bird", 0.5), ("dog", 0.25), ("cat", 0.125)]


def test_a_name_that_occurs_twice_in_a_published_list_adds_up() -> None:
    labels = np.array([[0, 1, 2, 2]], np.int32)
    found = Segmentation(labels, Vocabulary(("stand", "sky", "stand")))
    assert found.areas() == {"stand": 0.75, "sky": 0.25}
    np.testing.assert_array_equal(found.mask("stand"), [[True, False, True, True]])


def test_mask_of_an_unknown_name() -> None:
    with pytest.raises(InputError, match="'bus' is not in the vocabulary"):
        segmentation().mask("bus")


@pytest.mark.parametrize("names", [1, 21, 255])
def test_png_of_up_to_255_names_has_a_palette(names: int, tmp_path: Path) -> None:
    found = segmentation(names)
    found.save(tmp_path / "labels.png")
    stored = read_label_map(tmp_path / "labels.png")
    np.testing.assert_array_equal(np.where(stored == 255, -1, stored), found.labels)
    shown = read_image(tmp_path / "labels.png")
    there = found.labels >= 0
    np.testing.assert_array_equal(shown[there], palette(names)[found.labels[there]])
    assert not shown[~there].any()
    assert Image.open(tmp_path / "labels.png").mode == "P"


@pytest.mark.parametrize("names", [256, 847, 5000])
def test_png_of_more_names_has_16_bits(names: int, tmp_path: Path) -> None:
    found = segmentation(names, (80, 90))
    found.save(tmp_path / "labels.png")
    stored = read_label_map(tmp_path / "labels.png")
    np.testing.assert_array_equal(np.where(stored == 65535, -1, stored), found.labels)
    assert (stored == 255).any() == (found.labels == 255).any()


def test_json_holds_coco_masks(tmp_path: Path) -> None:
    found = Segmentation(
        np.array([[1, 1, -1], [0, 1, 1]], np.int32), Vocabulary.from_names(["猫", "crème", "x"])
    )
    found.save(tmp_path / "labels.json")
    content = json.loads((tmp_path / "labels.json").read_text(encoding="utf-8"))
    assert content["size"] == [2, 3] and content["names"] == ["猫", "crème", "x"]
    assert [segment["name"] for segment in content["segments"]] == ["crème", "猫"]
    for segment in content["segments"]:
        mask = decode_rle(segment["rle"])
        np.testing.assert_array_equal(mask, found.labels == segment["index"])
        assert segment["area"] == pytest.approx(mask.mean())


def test_scores_are_written_when_they_are_there(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).random((3, 6, 8)).astype(np.float32)
    found = segmentation(scores=scores)
    found.save(tmp_path / "s.npy")
    found.save(tmp_path / "s.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), scores)
    archive = np.load(tmp_path / "s.npz")  # allow_pickle is off
    np.testing.assert_array_equal(archive["scores"], scores)
    np.testing.assert_array_equal(archive["labels"], found.labels)
    assert tuple(archive["names"]) == found.vocabulary.names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.npz", "return_scores=True"),
        ("a.npy", "return_scores=True"),
        ("a.jpg", r"ends in \.jpg"),
        ("a", "no suffix"),
    ],
)
def test_what_cannot_be_saved(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        segmentation().save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_more_names_than_a_png_holds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at most 65535 names"):
        segmentation(65536).save(tmp_path / "a.png")


@pytest.mark.parametrize(
    "change",
    [
        {"labels": np.zeros((2, 2), np.int64)},
        {"labels": np.zeros((1, 2, 2), np.int32)},
        {"labels": np.full((2, 2), 3, np.int32)},
        {"labels": np.full((2, 2), -2, np.int32)},
        {"scores": np.zeros((2, 2, 2), np.float32)},
    ],
)
def test_inconsistent_segmentations_cannot_be_made(change: dict[str, Any]) -> None:
    parts = {
        "labels": np.zeros((2, 2), np.int32),
        "vocabulary": Vocabulary.from_names("a,b,c"),
        "scores": None,
        **change,
    }
    with pytest.raises(ValueError, match="expected"):
        Segmentation(**parts)


def test_overlay_takes_whatever_read_image_takes(tmp_path: Path) -> None:
    found = segmentation(size=(300, 400))
    picture = np.full((300, 400, 3), 90, np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    overlay = found.overlay(tmp_path / "a.png")
    np.testing.assert_array_equal(overlay, found.overlay(picture))
    assert overlay.dtype == np.uint8 and overlay.shape[0] * overlay.shape[1] > 300 * 400


def test_the_protocol_recognizes_segmenters() -> None:
    class Painter:
        def segment(self, image: Any, vocabulary: Any, *, return_scores: bool = False) -> Any: ...
        def describe(self) -> dict[str, Any]: ...

    assert isinstance(Painter(), Segmenter)
    assert not isinstance(lambda args: Painter(), Segmenter)


class Red(BaseSegmenter):
    """Label 0 where there is more red than blue, else 1."""

    def segment_arrays(self, images: Any, vocabulary: Vocabulary, _: bool) -> list[Segmentation]:
        return [
            Segmentation((one[..., 0] <= one[..., 2]).astype(np.int32), vocabulary)
            for one in images
        ]

    def describe(self) -> dict[str, Any]:
        return {"method": "red"}


def test_arrays_of_opencv_need_a_word() -> None:
    blue_first = np.zeros((2, 2, 3), np.uint8)
    blue_first[..., 2] = 255  # red, to OpenCV
    assert (Red().segment(blue_first, "red, blue").labels == 1).all()
    assert (Red().segment(blue_first, "red, blue", bgr=True).labels == 0).all()
    several = Red().segment([blue_first, blue_first], "red, blue", bgr=True)
    assert all((one.labels == 0).all() for one in several)
