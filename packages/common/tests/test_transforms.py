"""The training augmentation; each test also writes a picture that one can look at.

Set OPENVOCAB_TEST_PICTURES to a folder to keep the pictures.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from openvocab.cli import run
from openvocab.datasets import transform_sheet
from openvocab.datasets.transform_sheet import VOID, drawn_pair
from openvocab.datasets.transforms import (
    TrainTransform,
    TransformConfig,
    pad,
    random_crop,
    resize_pair,
    vary_colors,
)
from openvocab.drawing.overlay import color_labels

COLORS = np.uint8([[200, 40, 40], [40, 180, 60], [50, 60, 210], [220, 200, 60]])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("OPENVOCAB_TEST_PICTURES", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _scene(height: int = 90, width: int = 130) -> tuple[np.ndarray, np.ndarray]:
    """Four quarters, each of the colour of its label."""
    label = np.zeros((height, width), np.int32)
    label[:, width // 2 :] += 1
    label[height // 2 :] += 2
    return COLORS[label], label  # type: ignore[index]


def _show(path: Path, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write images above the colours of their labels (void is black)."""
    palette = np.concatenate([COLORS, np.zeros((1, 3), np.uint8)])
    columns = [np.concatenate([image, palette[label]]) for image, label in pairs]
    Image.fromarray(np.concatenate(columns, 1)).save(path)


def test_image_and_labels_stay_together(pictures: Path) -> None:
    config = TransformConfig(min_sizes=(60, 96, 140), crop_size=100, color=False)
    transform = TrainTransform(config, ignore_index=-1)
    image, label = _scene()
    pairs = [transform(image, label, np.random.default_rng(seed)) for seed in range(8)]
    _show(pictures / "geometry.png", pairs)
    for varied, labels in pairs:
        assert varied.shape == (100, 100, 3) and labels.shape == (100, 100)
        inside = labels >= 0
        assert (varied[~inside] == 128).all()
        # Away from the seams, where bilinear and nearest differ, colours are those of the labels.
        exact = (varied == COLORS[labels]).all(-1)[inside].mean()  # type: ignore[index]
        assert exact > 0.9
    assert any((labels < 0).any() for _, labels in pairs)  # small scales are padded
    assert any(labels[0, 0] % 2 == 1 for _, labels in pairs)  # some are mirrored or shifted


@pytest.mark.parametrize("name", ["scale", "crop", "color", "flip", "padding"])
def test_each_stage_does_the_same_to_image_and_labels(pictures: Path, name: str) -> None:
    # The picture has the colours of its labels, so that both must agree in every pixel.
    config = TransformConfig(min_sizes=(60, 96, 200), crop_size=110, image_pad=0)
    image, label = drawn_pair(60, 90) if name == "padding" else drawn_pair()
    stage = TrainTransform(config, VOID).stages[name]
    pairs = [stage(image, label, np.random.default_rng(seed)) for seed in range(8)]
    shown = [np.concatenate([found, color_labels(labels, 5)]) for found, labels in pairs]
    height = max(len(picture) for picture in shown)
    padded = [np.pad(p, ((0, height - len(p)), (0, 9), (0, 0)), constant_values=255) for p in shown]
    Image.fromarray(np.concatenate(padded, 1)).save(pictures / f"{name}.png")
    for found, labels in pairs:
        assert found.shape[:2] == labels.shape
        if name == "color":  # each class still has one colour, and has not moved
            assert np.array_equal(labels, label)
            spread = [np.ptp(found[label == k].astype(int), axis=0).max() for k in range(5)]
            assert max(spread) <= 2  # rounding differs between vectors of pixels and their rest
            continue
        agrees = (found == color_labels(labels, 5)).all(-1)
        assert agrees.all() if name != "scale" else agrees.mean() > 0.93  # seams are blended
    assert len({found.tobytes() for found, _ in pairs}) >= (1 if name == "padding" else 2)


def test_the_sheet_shows_every_stage_of_every_draw(tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    arguments = ["--min-sizes", "60", "96", "--crop-size", "90", "--columns", "8"]
    assert transform_sheet.main([*arguments, "--output", str(out)]) == 0
    sheet = np.asarray(Image.open(out))
    rows = sheet.reshape(6, -1, *sheet.shape[1:])
    pictures = rows[:, :, 80:]  # without the names of the stages
    assert all((pictures[i] != pictures[i - 1]).any() for i in range(1, 6))
    image, label = tmp_path / "image.png", tmp_path / "label.png"
    pixels, labels = drawn_pair()
    Image.fromarray(pixels).save(image)
    Image.fromarray(labels.astype(np.uint8)).save(label)
    given = ["--image", str(image), "--label", str(label)]
    assert transform_sheet.main([*given, *arguments, "--output", str(out)]) == 0
    assert run(transform_sheet.main, ["--image", str(image)]) == 2


def test_labels_are_only_moved_never_mixed() -> None:
    image, label = _scene()
    _, resized = resize_pair(image, label * 700, 47, 1000)
    assert set(np.unique(resized)) <= set(np.unique(label * 700)) and resized.shape == (47, 68)
    grown_image, grown = resize_pair(image, label, 270, 1000)
    assert np.array_equal(grown, label.repeat(3, 0).repeat(3, 1))
    assert grown_image.shape == (270, 390, 3)
    assert resize_pair(image, label, 90, 100)[1].shape == (69, 100)  # the long side is bounded


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 70), st.integers(0, 999))
def test_crops_are_parts_of_both_at_the_same_place(
    height: int, width: int, side: int, seed: int
) -> None:
    label = np.arange(height * width).reshape(height, width)
    image = np.stack([label % 251, label // 251, label % 7], -1).astype(np.uint8)
    cut, labels = random_crop(image, label, side, np.random.default_rng(seed))
    assert labels.shape == (min(side, height), min(side, width))
    assert np.array_equal(cut[..., 0], labels % 251) and np.array_equal(cut[..., 2], labels % 7)
    assert (np.diff(labels, axis=1) == 1).all()


def test_every_crop_position_is_reached() -> None:
    label = np.arange(12).reshape(3, 4)
    image = np.zeros((3, 4, 3), np.uint8)
    rng = np.random.default_rng(0)
    corners = {int(random_crop(image, label, 2, rng)[1][0, 0]) for _ in range(200)}
    assert corners == {0, 1, 2, 4, 5, 6}


def test_colors_vary_as_much_as_the_recipe_says(pictures: Path) -> None:
    image, label = _scene(60, 80)
    varied = [vary_colors(image, np.random.default_rng(seed)) for seed in range(300)]
    _show(pictures / "colours.png", [(v, label) for v in varied[:10]])
    same = np.mean([np.array_equal(v, image) for v in varied])
    assert 0.02 < same < 0.12  # all four are skipped once in sixteen
    assert all(v.dtype == np.uint8 and v.shape == image.shape for v in varied)
    grey = np.full((4, 4, 3), 100, np.uint8)  # has no hue and no saturation
    values = np.array([vary_colors(grey, np.random.default_rng(s))[0, 0, 0] for s in range(2000)])
    assert 30 <= values.min() < 40 and 180 < values.max() <= 198  # (100 ± 32) x 0.5..1.5
    assert (values == 100).mean() == pytest.approx(0.25, abs=0.05)


def test_the_source_is_not_changed() -> None:
    image, label = _scene()
    before = image.copy(), label.copy()
    config = TransformConfig(min_sizes=(90,), crop_size=64)
    for seed in range(20):
        TrainTransform(config)(image, label, np.random.default_rng(seed))
    assert np.array_equal(image, before[0]) and np.array_equal(label, before[1])


def test_padding_is_below_and_to_the_right() -> None:
    padded = pad(np.ones((2, 3), np.int32), 4, 255)
    assert padded.tolist() == [[1, 1, 1, 255]] * 2 + [[255] * 4] * 2
