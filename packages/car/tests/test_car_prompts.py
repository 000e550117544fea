from __future__ import annotations

import numpy as np
import pytest

from car.config import PROMPT_TYPES
from car.ellipse import draw_ellipse
from car.mask_classifier import MaskClassifier, preprocess
from car.visual_prompts import VisualPrompter
from openvocab.errors import InputError


def test_prompts_equal_the_recording(golden) -> None:
    with np.load(golden / "unit_prompts.npz") as file:
        keys = [key for key in file.files if "." in key]
        assert len(keys) >= 40
        for key in keys:
            mask, _, types = key.partition(".")
            prompter = VisualPrompter(file["image"], types.split("+"))
            painted = prompter.paint(file[mask] > 0)
            np.testing.assert_array_equal(painted, file[key], err_msg=key)


def test_a_mask_that_shows_nothing_leaves_the_image(photo) -> None:
    mask = np.zeros(photo.shape[:2], np.float32)
    mask[3, 4] = 1
    assert VisualPrompter(photo, ["black"])(mask, 0.5) is photo


@pytest.mark.parametrize("kind", PROMPT_TYPES)
def test_a_mask_below_the_threshold_everywhere_does_not_crash(photo, kind: str) -> None:
    mask = np.full(photo.shape[:2], 0.1, np.float32)  # the original takes the mean of nothing
    prompted = VisualPrompter(photo, [kind])(mask, 0.5)
    outline = kind in ("circle", "rectangle", "contour")
    assert (prompted == photo).all() == outline


def test_the_image_is_never_changed(photo) -> None:
    before = photo.copy()
    mask = np.zeros(photo.shape[:2], np.float32)
    mask[20:60, 30:90] = 1
    VisualPrompter(photo, PROMPT_TYPES)(mask, 0.5)
    VisualPrompter(photo, ["circle"])(mask, 0.5)
    np.testing.assert_array_equal(photo, before)


def test_unknown_and_missing_prompts_are_refused(photo) -> None:
    with pytest.raises(InputError, match=r"blurr.*use one or more of blur, gray"):
        VisualPrompter(photo, ["blurr"])
    with pytest.raises(InputError, match="visual prompts are none"):
        VisualPrompter(photo, [])


def test_an_ellipse_is_closed_and_stays_inside() -> None:
    canvas = np.zeros((50, 60, 3), np.uint8)
    draw_ellipse(canvas, (30, 25), (20, 12), (255, 0, 0))
    rows, columns = np.nonzero(canvas[..., 0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (13, 37, 10, 50)
    for angle in np.linspace(0, 2 * np.pi, 200):
        x, y = 30 + 20 * np.cos(angle), 25 + 12 * np.sin(angle)
        assert np.hypot(rows - y, columns - x).min() < 1.5
    outside = np.zeros((50, 60, 3), np.uint8)
    draw_ellipse(outside, (200, 200), (20, 12), (255, 0, 0))
    assert not outside.any()


def test_classifier_equals_the_recording(golden, recorded_clips) -> None:
    import torch
    import torch.nn.functional as F

    with np.load(golden / "unit_classifier.npz") as file:
        images = [file[f"image{i}"] for i in range(4)]
        prepared = torch.stack([preprocess(image, file["pre"].shape[-1]) for image in images])
        np.testing.assert_array_equal(prepared, file["pre"])
        classifier = MaskClassifier(recorded_clips[1])
        features = classifier.encode(images, batch=3)
        texts = F.normalize(torch.from_numpy(file["text_features_unnormalised"]), dim=-1)
        np.testing.assert_allclose(classifier.per_template(features, texts), file["P"], atol=1e-5)
        scores = classifier.scores(features, texts)
        np.testing.assert_allclose(scores, file["score_matrix"], atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (20, 3000), (3000, 20), (224, 224), (7, 224)])
def test_any_size_is_cut_to_a_square(size) -> None:
    image = np.full((*size, 3), 255, np.uint8)
    prepared = preprocess(image, 56)
    assert prepared.shape == (3, 56, 56)
    assert (prepared > 1.9).all()  # nothing but white, so no border was made up
