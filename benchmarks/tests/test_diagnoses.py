"""Each method, told a part of the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import car.diagnosis
import ovseg.diagnosis
import san.diagnosis
from car.visual_prompts import VisualPrompter
from openvocab.evaluation.oracle import masks_of_labels
from openvocab.vocabulary import Vocabulary

NAMES = Vocabulary(("sky", "grass", "quux", "dog"), things=(False, False, True, True))
MODULES = {"san": san.diagnosis, "ovseg": ovseg.diagnosis, "car": car.diagnosis}


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)


@pytest.fixture
def truth() -> np.ndarray:
    labels = np.full((48, 80), 1)
    labels[:20, :30], labels[30:, 50:], labels[:3] = 3, 0, -1
    return labels


@pytest.mark.parametrize("method", MODULES)
def test_true_masks_get_one_name_each(segmenters, image, truth, method) -> None:
    label = MODULES[method].label_true_masks
    found = label(segmenters[method], image, truth, NAMES)
    assert found.shape == truth.shape and (found[truth < 0] == -1).all()
    for mask in masks_of_labels(truth):
        (name,) = np.unique(found[mask])
        assert 0 <= name < len(NAMES)
    assert (label(segmenters[method], image, np.full_like(truth, -1), NAMES) == -1).all()


def test_ovseg_names_true_masks_as_its_clip_does(segmenters, image, truth) -> None:
    segmenter = segmenters["ovseg"]
    found = ovseg.diagnosis.label_true_masks(segmenter, image, truth, NAMES)
    resized = segmenter.resize(image)
    step = np.ix_(*((np.arange(n) * o / n).astype(int) for n, o in zip(
        resized.shape[:2], truth.shape, strict=True)))  # fmt: skip
    masks = masks_of_labels(truth)
    prob = segmenter.model.clip_adapter.classify(
        resized, np.stack([mask[step] for mask in masks]), NAMES.names
    )
    assert [int(found[mask][0]) for mask in masks] == prob.argmax(1).tolist()
    assert segmenter.proposals is None


def test_car_judges_true_masks_as_it_judges_its_own(segmenters, image, truth) -> None:
    segmenter = segmenters["car"]
    found = car.diagnosis.label_true_masks(segmenter, image, truth, NAMES)
    prompter = VisualPrompter(image, segmenter.config.visual_prompt_type)
    pictures = [prompter.paint(truth == label) for label in (0, 1, 3)]
    scores = segmenter.car.judge(pictures, NAMES.names)
    assert scores.shape == (3, 4) and np.allclose(scores.sum(1), 1, atol=1e-5)
    assert [int(found[truth == i][0]) for i in (0, 1, 3)] == scores.argmax(1).tolist()


@pytest.mark.parametrize("method", ["san", "ovseg"])
def test_true_names_are_those_of_the_image(segmenters, image, truth, method) -> None:
    label = MODULES[method].label_with_true_names
    assert set(np.unique(label(segmenters[method], image, truth, NAMES))) <= {0, 1, 3}
    assert (label(segmenters[method], image, np.full_like(truth, 2), NAMES) == 2).all()


def test_san_looks_where_the_mask_is(segmenters) -> None:
    masks = torch.zeros(2, 64, 64)
    masks[0, :, :32], masks[1, :16, :16] = 1, 1
    bias = san.diagnosis._bias(masks, (64, 64), torch.Size((64, 64)), (2, 2))
    assert bias.tolist() == [[[0, -100], [0, -100]], [[0, -100], [-100, -100]]]


def test_car_can_stop_after_one_step(segmenters, image) -> None:
    segmenter = segmenters["car"]
    one = segmenter.with_config(replace(segmenter.config, max_steps=1))
    for told, enough in ((one, lambda steps: steps == 1), (segmenter, lambda steps: steps > 1)):
        steps = []
        told.on_step = lambda _, step, steps=steps: steps.append(step)
        told.segment(image, NAMES)
        told.on_step = None
        assert enough(len(steps))
    assert one.describe()["max_steps"] == 1 and segmenter.describe()["max_steps"] is None
