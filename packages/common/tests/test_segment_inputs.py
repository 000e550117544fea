"""What `segment` takes as images and names, and what must not change its labels."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from openvocab.errors import InputError
from openvocab.image import ImageArray, read_image
from openvocab.segmenter import BaseSegmenter, Segmentation
from openvocab.vocabulary import Vocabulary

NAMES = ["red", "green", "blue"]


class LinearSegmenter(BaseSegmenter):
    """Scores three names by a small float32 product, as a network would."""

    batch_size = 2

    def __init__(self) -> None:
        self.weights = torch.eye(3) + torch.linspace(0, 1e-3, 9).reshape(3, 3)
        self.largest = 0
        self.at_work: set[int] = set()

    def segment_arrays(
        self, images: list[ImageArray], vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        self.largest = max(self.largest, len(images))
        self.at_work.add(threading.get_ident())
        assert len(self.at_work) == 1, "two threads at once"
        found = [self._one(image, vocabulary, return_scores) for image in images]
        self.at_work.clear()
        return found

    def _one(self, image: ImageArray, vocabulary: Vocabulary, return_scores: bool) -> Segmentation:
        pixels = torch.from_numpy(image).float() / 255
        scale = torch.tensor([1.0, 1.0, 1.0])  # of the default type
        scores = ((pixels * scale) @ self.weights).permute(2, 0, 1)[: len(vocabulary)]
        assert scores.dtype == torch.float32
        labels = scores.argmax(dim=0).int().numpy()
        return Segmentation(labels, vocabulary, scores.numpy() if return_scores else None)

    def describe(self) -> dict[str, Any]:
        return {"method": "linear"}


def photo(seed: int = 0, size: tuple[int, int] = (12, 17)) -> ImageArray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def png(pixels: ImageArray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def written(buffer: io.BytesIO, pixels: ImageArray) -> io.BytesIO:
    """Return a buffer that was just written, so that its position is at the end."""
    buffer.write(png(pixels))
    return buffer


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a.png", "b/c.png", "b/d.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(photo(seed)).save(tmp_path / name)
    return tmp_path


def test_every_kind_of_image_gives_the_same_labels(tree: Path) -> None:
    pixels = photo()
    floats = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    expected = LinearSegmenter().segment(pixels, NAMES).labels
    with (tree / "a.png").open("rb") as file:
        for source in (
            tree / "a.png",
            str(tree / "a.png"),
            png(pixels),
            bytearray(png(pixels)),
            memoryview(png(pixels)),
            written(io.BytesIO(), pixels),
            file,
            Image.fromarray(pixels),
            torch.from_numpy(pixels).permute(2, 0, 1),
            torch.from_numpy(pixels),  # channels last, as of an array
            floats,
            floats.double().requires_grad_(),
        ):
            found = LinearSegmenter().segment(source, NAMES)
            assert isinstance(found, Segmentation)
            np.testing.assert_array_equal(found.labels, expected, err_msg=str(type(source)))


def test_grey_tensors_and_tensors_of_few_bits() -> None:
    grey = torch.tensor([[[0.0, 0.5, 1.0]]])
    for tensor in (grey, grey.bfloat16(), grey.half(), grey.expand(3, 1, 3)):
        np.testing.assert_array_equal(read_image(tensor)[0, :, 1], [0, 128, 255])


def test_several_images_give_a_list(tree: Path) -> None:
    segmenter = LinearSegmenter()
    expected = [segmenter.segment(photo(seed), NAMES).labels for seed in range(3)]

    def one_by_one() -> Iterator[ImageArray]:
        yield from (photo(seed) for seed in range(3))

    for source in (
        [photo(seed) for seed in range(3)],
        (photo(0), png(photo(1)), tree / "b" / "d.png"),
        one_by_one(),
        tree,
        str(tree / "**" / "*.png"),
        [tree / "a.png", tree / "b"],
    ):
        found = segmenter.segment(source, NAMES)
        assert isinstance(found, list)
        for one, labels in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.labels, labels)
    assert segmenter.segment([], NAMES) == []


def test_memory_is_bounded_by_the_batch() -> None:
    segmenter = LinearSegmenter()
    assert len(segmenter.segment((photo(seed) for seed in range(50)), NAMES)) == 50
    assert segmenter.largest == 8


@pytest.mark.parametrize(
    "source",
    [None, 3, 2.5, {"image": 1}, {1, 2}, object(), len, io.StringIO("text")],
)
def test_what_is_no_image_is_refused_with_what_is_taken(source: Any) -> None:
    with pytest.raises(InputError, match=r"a path, bytes|open it in binary"):
        LinearSegmenter().segment(source, NAMES)
    with pytest.raises(InputError, match=r"a path, bytes|open it in binary"):
        LinearSegmenter().segment([photo(), source], NAMES)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.zeros(2, 3, 4, 4), r"list\(batch\)"),
        (torch.zeros(4, 4), r"expected \(3, H, W\)"),
        (torch.zeros(2, 5, 5), r"expected \(3, H, W\)"),
        (torch.full((3, 4, 4), 200.0), r"float in 0\.\.1"),
        (np.zeros((3, 20, 30), np.uint8), r"transpose\(1, 2, 0\)"),
        ("no\0file", "is no path"),
        ("missing/*.png", "no image at"),
        (io.BytesIO(), "is empty"),
    ],
)
def test_images_of_the_wrong_form_are_refused(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LinearSegmenter().segment(source, NAMES)


def test_a_closed_file_is_refused(tree: Path) -> None:
    with (tree / "a.png").open("rb") as file:
        pass
    with pytest.raises(InputError, match="cannot be read"):
        LinearSegmenter().segment(file, NAMES)


@pytest.mark.parametrize(
    "names", [None, 3, b"cat,dog", {"cat": 1}, {"cat", "dog"}, ["cat", 3], [None], [b"cat"]]
)
def test_what_are_no_names_is_refused_with_what_is_taken(names: Any) -> None:
    with pytest.raises(InputError, match="give a list of"):
        LinearSegmenter().segment(photo(), names)


def test_names_in_any_order_of_things() -> None:
    segmenter = LinearSegmenter()
    for names in (NAMES, tuple(NAMES), iter(NAMES), np.array(NAMES), dict.fromkeys(NAMES).keys()):
        assert segmenter.segment(photo(), names).vocabulary.names == tuple(NAMES)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_callers_default_type_changes_nothing(dtype: torch.dtype) -> None:
    segmenter = LinearSegmenter()
    expected = segmenter.segment(photo(), NAMES, return_scores=True).scores
    torch.set_default_dtype(dtype)
    try:
        found = segmenter.segment(photo(), NAMES, return_scores=True).scores
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found, expected)


def test_autocast_of_the_caller_changes_nothing() -> None:
    segmenter = LinearSegmenter()
    expected = segmenter.segment(photo(), NAMES, return_scores=True).scores
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = segmenter.segment(photo(), NAMES, return_scores=True).scores
        assert torch.is_autocast_enabled("cpu")
    np.testing.assert_array_equal(found, expected)


def test_threads_take_turns_on_a_segmenter_and_its_copies() -> None:
    segmenter = LinearSegmenter()
    shared = [segmenter, copy(segmenter)]
    expected = [segmenter.segment(photo(seed), NAMES).labels for seed in range(8)]
    found: dict[int, Any] = {}

    def work(seed: int) -> None:
        found[seed] = shared[seed % 2].segment(photo(seed), NAMES).labels

    torch.set_default_dtype(torch.float64)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_default_dtype(torch.float32)
    for seed, labels in enumerate(expected):
        np.testing.assert_array_equal(found[seed], labels)
    np.testing.assert_array_equal(deepcopy(segmenter).segment(photo(), NAMES).labels, expected[0])


# --- thresholds


def scored() -> Segmentation:
    labels = np.array([[0, 0, 0, 1], [0, 0, 1, -1]], np.int32)
    scores = np.zeros((2, 2, 4), np.float32)
    scores[0] = [[2.0, 0.4, 2.0, 0.1], [2.0, 2.0, 0.1, 0.1]]
    scores[1] = [[0.1, 0.1, 0.1, 0.5], [0.1, 0.1, 0.9, 0.05]]
    return Segmentation(labels, Vocabulary(("cat", "sofa")), scores)


def test_thresholds_on_raw_scores_by_hand() -> None:
    found = scored()
    np.testing.assert_allclose(found.certainty()[0], [2, 0.4, 2, 0.5])
    assert found.certainty()[1, 3] == 0
    assert found.mean_certainty() == pytest.approx({"cat": 8.4 / 5, "sofa": 0.7})
    labels = found.with_threshold(none_of_these=0.5).labels
    np.testing.assert_array_equal(labels, [[0, -1, 0, 1], [0, 0, 1, -1]])
    assert found.with_threshold(min_score=0.8).areas() == {"cat": 5 / 8}
    assert found.with_threshold(min_area=0.3).areas() == {"cat": 5 / 8}
    assert found.with_threshold(none_of_these=0.6, min_area=0.2).areas() == {"cat": 0.5}
    assert found.with_threshold() is found


def test_confidence_replaces_scores_where_there_is_one() -> None:
    confidence = np.full((2, 4), 0.9, np.float32)
    confidence[0, 0] = 0.2
    sure = Segmentation(scored().labels, Vocabulary(("cat", "sofa")), confidence=confidence)
    assert sure.with_threshold(none_of_these=0.5).labels[0, 0] == -1
    assert sure.mean_certainty()["cat"] == pytest.approx((0.2 + 4 * 0.9) / 5)
    with pytest.raises(ValueError, match="confidence has shape"):
        Segmentation(scored().labels, Vocabulary(("cat", "sofa")), confidence=confidence[:1])


def test_segment_applies_thresholds_and_drops_the_scores() -> None:
    segmenter = LinearSegmenter()
    plain = segmenter.segment(photo(), NAMES, return_scores=True)
    found = segmenter.segment(photo(), NAMES, none_of_these=0.9)
    assert found.scores is None and (found.labels == -1).any()
    expected = np.where(plain.scores.max(axis=0) < 0.9, -1, plain.labels)
    np.testing.assert_array_equal(found.labels, expected)
    kept = segmenter.segment(photo(), NAMES, none_of_these=0.9, return_scores=True)
    np.testing.assert_array_equal(kept.scores, plain.scores)
    assert segmenter.segment([photo()], NAMES, min_area=1.0)[0].areas() == {}


def test_augment_vocabulary() -> None:
    found = LinearSegmenter().segment(photo(), "red,green,blue", augment_vocabulary="coco-stuff")
    assert found.vocabulary.names == tuple(NAMES) and len(found.vocabulary.others) > 80


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"none_of_these": float("nan")}, "none_of_these is nan"),
        ({"min_score": "high"}, "min_score is 'high'"),
        ({"min_area": 1.5}, r"0\.\.1"),
        ({"min_area": -1}, r"0\.\.1"),
    ],
)
def test_thresholds_that_make_no_sense(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LinearSegmenter().segment(photo(), NAMES, **limits)


def test_thresholds_need_scores() -> None:
    with pytest.raises(InputError, match="return_scores=True"):
        Segmentation(scored().labels, Vocabulary(("a", "b"))).with_threshold(min_score=1)
