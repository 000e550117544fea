"""CVAT's function gives shapes that CVAT's own SDK accepts and decodes to the same pixels."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from openvocab.errors import InputError

if not os.environ.get("OPENVOCAB_TEST_TOOLS"):
    pytest.importorskip("cvat_sdk", reason="cvat_sdk is of the extra 'tools'")

NAMES = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def function() -> Any:
    path = Path(__file__).parents[1] / "openvocab_function.py"
    spec = importlib.util.spec_from_file_location("openvocab_function", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Brightest:
    """Gives each pixel the name whose place is that of its brightest channel."""

    def segment(self, image: Image.Image, names: list[str], return_scores: bool = False) -> Any:
        from openvocab.segmenter import Segmentation
        from openvocab.vocabulary import Vocabulary

        pixels = np.array(image)
        scores = pixels.transpose(2, 0, 1).astype(np.float32) / 255
        labels = pixels.argmax(axis=2).astype(np.int32)
        vocabulary = Vocabulary.from_names(names)
        return Segmentation(labels, vocabulary, scores if return_scores else None)


@pytest.fixture
def image() -> Image.Image:
    pixels = np.zeros((40, 50, 3), np.uint8)
    pixels[..., 0] = 250
    pixels[10:30, 10:30] = (0, 100, 0)
    pixels[15:20, 15:20] = (250, 0, 0)  # a hole of red in green
    return Image.fromarray(pixels)


def context(**values: Any) -> SimpleNamespace:
    defaults = {"frame_name": "a.png", "conf_threshold": None, "conv_mask_to_poly": False}
    return SimpleNamespace(**{**defaults, **values})


def test_labels_and_masks_are_those_of_cvat(function: Any, image: Image.Image) -> None:
    from cvat_sdk import models
    from cvat_sdk.masks import decode_mask

    annotate = function.OpenVocabularyFunction(Brightest(), NAMES)
    assert [label.name for label in annotate.spec.labels] == NAMES
    shapes = annotate.detect(context(), image)
    assert {shape.label_id for shape in shapes} == {0, 1}
    labels = np.array(image).argmax(axis=2)
    for shape in shapes:
        assert isinstance(shape, models.LabeledShapeRequest) and str(shape.type) == "mask"
        mask = decode_mask(shape.points, image_width=50, image_height=40)
        np.testing.assert_array_equal(mask, labels == shape.label_id)


def test_polygons_where_cvat_asks_for_them(function: Any, image: Image.Image) -> None:
    annotate = function.OpenVocabularyFunction(Brightest(), NAMES)
    shapes = annotate.detect(context(conv_mask_to_poly=True), image)
    assert {str(shape.type) for shape in shapes} == {"polygon"}
    (green,) = (shape for shape in shapes if shape.label_id == 1)
    points = np.reshape(green.points, (-1, 2)).astype(np.float32)
    assert cv2.contourArea(points) == (np.array(image).argmax(axis=2) == 1).sum()


def test_the_threshold_of_cvat_drops_names(function: Any, image: Image.Image) -> None:
    annotate = function.OpenVocabularyFunction(Brightest(), NAMES)
    assert [one.label_id for one in annotate.detect(context(conf_threshold=0.6), image)] == [0]


def test_cvats_command_line_makes_it_of_texts(function: Any, image: Image.Image) -> None:
    from cvat_sdk.auto_annotation import DetectionFunctionSpec

    made = function.create(names="duck, grass", method="san", weights="world")
    assert made.names == ["duck", "grass"] and isinstance(made.spec, DetectionFunctionSpec)
    assert made.detect(context(), image)
    with pytest.raises(InputError, match="no method"):
        function.create(names="duck", method="none")
