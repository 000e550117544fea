"""Results in a notebook and as objects of other libraries."""

from __future__ import annotations

import io
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from openvocab.drawing.legend import legend_entries
from openvocab.drawing.overlay import label_shares, palette
from openvocab.errors import InputError
from openvocab.image import ImageArray
from openvocab.segmenter import BaseSegmenter, Segmentation
from openvocab.vocabulary import Vocabulary

NAMES = ("sky", "<b>cat</b>", "never seen")
SIZE = (60, 90)


class Halves(BaseSegmenter):
    """Finds a sky above a cat, and nothing in a corner."""

    def segment_arrays(
        self, images: list[ImageArray], vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        results = []
        for image in images:
            labels = np.zeros(image.shape[:2], np.int32)
            labels[20:] = 1
            labels[:10, :10] = -1
            confidence = np.where(labels == 1, np.float32(0.75), np.float32(0.5))
            results.append(Segmentation(labels, vocabulary, confidence=confidence))
        return results

    def describe(self) -> dict[str, Any]:
        return {"method": "halves"}


@pytest.fixture
def photo() -> ImageArray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture
def found(photo: ImageArray) -> Segmentation:
    return Halves().segment(photo, list(NAMES))


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


# --- pictures


def test_an_overlay_lies_on_the_image_pixel_on_pixel(found: Segmentation, photo: Any) -> None:
    plain = found.overlay(legend=False)
    assert plain.shape == photo.shape
    np.testing.assert_array_equal(plain[:9, :9], photo[:9, :9])  # nothing was found here
    assert not np.array_equal(plain[40:], photo[40:])
    whole = found.overlay()
    np.testing.assert_array_equal(whole[: SIZE[0], : SIZE[1]], plain)
    assert whole.size > plain.size
    np.testing.assert_array_equal(found.overlay(photo), whole)


@pytest.mark.parametrize("size", [(3, 5), (2100, 30)])
def test_small_and_large_overlays_keep_their_size(size: tuple[int, int]) -> None:
    labels = np.zeros(size, np.int32)
    found = Segmentation(labels, Vocabulary.from_names(["a"]))
    assert found.overlay(np.zeros((*size, 3), np.uint8), legend=False).shape == (*size, 3)


def test_what_is_drawn_on_is_what_was_segmented(found: Segmentation, photo: Any) -> None:
    before = found.overlay()
    photo[:] = 0  # the user's array, after the call
    np.testing.assert_array_equal(found.overlay(), before)
    assert found.with_threshold(min_area=0.5).overlay(legend=False).shape == (*SIZE, 3)
    with pytest.raises(InputError, match="has not kept its image"):
        Segmentation(found.labels, found.vocabulary).overlay()


def test_a_result_is_a_picture_in_a_notebook(found: Segmentation) -> None:
    picture = opened(found._repr_png_())
    assert picture.format == "PNG" and min(picture.size) >= 60
    without = opened(Segmentation(found.labels, found.vocabulary)._repr_png_())
    assert without.size == picture.size
    colors = {tuple(color) for color in np.array(without).reshape(-1, 3)}
    assert {tuple(color) for color in palette(2)} <= colors


def test_the_legend_has_the_values_of_the_label_map() -> None:
    labels = np.array([[7, 7, 7], [2, 2, -1]])
    for count, nothing in ((9, "255"), (300, "65535")):
        names = [f"n{i}" for i in range(count)]
        entries = legend_entries(label_shares(labels), names, palette(count))
        numbers = [(entry.name, entry.number) for entry in entries]
        assert numbers == [("n7", "7"), ("n2", "2"), ("nothing", nothing)]


def test_show(found: Segmentation, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(picture.size))
    found.show()
    notebook = SimpleNamespace(display_pub=SimpleNamespace(publish=shown.append))
    for shell in (None, notebook):
        python = ModuleType("IPython")
        python.get_ipython = lambda shell=shell: shell  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "IPython", python)
        found.show()
    assert shown[0] == shown[1] == opened(found._repr_png_()).size
    assert opened(shown[2]["image/png"]).size == shown[0] and len(shown) == 3


# --- the table


def test_the_table(found: Segmentation) -> None:
    cat, sky = found.table()
    assert cat == {
        "label": 1,
        "name": NAMES[1],
        "pixels": 3600,
        "share": 3600 / 5400,
        "score": 0.75,
    }
    assert (sky["name"], sky["pixels"], sky["score"]) == ("sky", 1700, 0.5)
    assert [line.split()[:2] for line in repr(found.table()).splitlines()] == [
        ["label", "name"],
        ["1", NAMES[1]],
        ["0", "sky"],
    ]
    page = found.table()._repr_html_()
    assert "&lt;b&gt;cat" in page and "<b>" not in page and page.count("<tr>") == 3
    unknown = Segmentation(found.labels, found.vocabulary).table()
    assert unknown[0]["score"] is None
    assert found.with_threshold(min_area=1).table() == []


# --- objects of other libraries


def test_supervision(found: Segmentation) -> None:
    supervision = pytest.importorskip("supervision")
    detections = found.to_supervision()
    assert isinstance(detections, supervision.Detections) and len(detections) == 2
    assert detections.data["class_name"].tolist() == [NAMES[1], "sky"]
    assert detections.class_id.tolist() == [1, 0] and detections.confidence.tolist() == [0.75, 0.5]
    for label, mask, box in zip(detections.class_id, detections.mask, detections.xyxy, strict=True):
        np.testing.assert_array_equal(mask, found.labels == label)
        left, top, right, bottom = box.astype(int)
        assert mask[top:bottom, left:right].sum() == mask.sum()
    assert detections.area.tolist() == [3600, 1700]
    assert len(found.with_threshold(min_area=1).to_supervision()) == 0
    assert Segmentation(found.labels, found.vocabulary).to_supervision().confidence is None


def test_torch(found: Segmentation) -> None:
    from torchvision.ops import masks_to_boxes

    tensors = found.to_torch()
    assert tensors["labels"].tolist() == [1, 0] and tensors["scores"].tolist() == [0.75, 0.5]
    assert tensors["masks"].dtype == torch.bool and tensors["label_map"].dtype == torch.int64
    np.testing.assert_array_equal(tensors["label_map"].numpy(), found.labels)
    last = masks_to_boxes(tensors["masks"])  # right and bottom are the last pixels there
    torch.testing.assert_close(tensors["boxes"], last + torch.tensor([0, 0, 1, 1]))
    empty = found.with_threshold(min_area=1).to_torch()
    assert empty["masks"].shape == (0, *SIZE) and empty["boxes"].shape == (0, 4)


class StandIn:
    """Keeps what FiftyOne's `Detection` and `Detections` are made of; it is too heavy for tests."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__ |= fields


def test_fiftyone(found: Segmentation, monkeypatch: pytest.MonkeyPatch) -> None:
    fiftyone: Any = ModuleType("fiftyone")
    fiftyone.Detection = fiftyone.Detections = StandIn
    monkeypatch.setitem(sys.modules, "fiftyone", fiftyone)
    cat, sky = found.to_fiftyone().detections
    assert set(vars(cat)) == {"label", "bounding_box", "mask", "confidence"}
    assert (cat.label, cat.confidence) == (NAMES[1], 0.75)
    for one, label in ((cat, 1), (sky, 0)):
        left, top, width, height = one.bounding_box
        box = np.array([left * 90, top * 60, width * 90, height * 60])
        left, top, width, height = np.rint(box).astype(int)
        assert box == pytest.approx([left, top, width, height]) and one.mask.shape == (
            height,
            width,
        )
        mask = np.zeros(SIZE, bool)
        mask[top : top + height, left : left + width] = one.mask
        np.testing.assert_array_equal(mask, found.labels == label)


@pytest.mark.parametrize("library", ["supervision", "fiftyone"])
def test_without_the_library_one_sentence_names_the_extra(
    found: Segmentation, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"to_{library}\(\) needs .*\[{library}\]"):
        getattr(found, f"to_{library}")()
