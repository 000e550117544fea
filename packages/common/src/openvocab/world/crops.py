"""Crops: one thing or one kind of stuff in an image of its own, on stuff or on flat ground."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from openvocab.world.names import name_of, world_names
from openvocab.world.pictograms import Pixels, paste_pictogram
from openvocab.world.scenes import Canvas, Composition, Split, expose, generator, vary_color
from openvocab.world.textures import draw_texture, smooth_noise

Ground = Literal["stuff", "flat"]

_DRAWN = (40, 104)  # pixels of a crop in a scene of 128, before it is resized
_MEAN_COLOR = (122.0, 116.0, 104.0)  # of CLIP's normalisation: what is black to the network


def crop(
    name: str, index: int, split: Split = "pretrain", size: int = 48, *, ground: Ground = "stuff"
) -> Pixels:
    """Draw one name as it looks when it is cropped from a scene and resized.

    Args:
        name: a thing or stuff of the world.
        index: number of the crop from 0 on; the same number always gives the same crop.
        split: split, so that crops for training differ from those for choosing and validation.
        size: length of the sides in pixels.
        ground: "stuff": a thing stands on any stuff, and stuff fills the crop; "flat": everything
            but the thing, or a patch of the stuff, is one colour, as in a masked image.

    Returns:
        (size, size, 3) uint8 RGB.

    Raises:
        InputError: split, index or size make no sense, or the pictograms are not installed.
        KeyError: nothing in the world is called so.
    """
    what = name_of(name)
    rng = generator(split, index, size, 2 * what.label + (1 if ground == "stuff" else 2))
    drawn = int(rng.integers(*_DRAWN))
    unit = float(rng.uniform(0.8, 1.5))
    if what.is_thing:
        stuff = [one.name for one in world_names() if not one.is_thing]
        behind = (
            _flat(rng, drawn)
            if ground == "flat"
            else draw_texture(stuff[int(rng.integers(len(stuff)))], rng, drawn, unit)
        )
        image = _with_thing(what.code, behind, rng, shadow=ground == "stuff")
    else:
        image = draw_texture(name, rng, drawn, unit)
        if ground == "flat":
            image = np.where(_patch(rng, drawn)[..., None], image, _flat(rng, drawn))
    return _resize(_expose(image, rng, ground), size)


def _expose(image: Canvas, rng: np.random.Generator, ground: Ground) -> Pixels:
    """Vary the light; flat ground stays flat, since masks are cut after a picture is taken."""
    if ground == "stuff":
        return expose(image, rng)
    gain = np.float32(rng.uniform(0.9, 1.08))
    return np.asarray(np.clip(image * gain + np.float32(0.5), 0, 255), dtype=np.uint8)


def _with_thing(code: str, behind: Canvas, rng: np.random.Generator, *, shadow: bool) -> Canvas:
    """Put a thing in the middle, about as large as the crop."""
    size = behind.shape[0]
    wide = 45 if rng.random() < 0.15 else 14
    placed = paste_pictogram(
        code,
        (size, size),
        center=(size * float(rng.uniform(0.44, 0.56)), size * float(rng.uniform(0.44, 0.56))),
        length=size * float(rng.uniform(0.6, 1.0)),
        angle=float(rng.uniform(-wide, wide)),
        mirrored=bool(rng.random() < 0.5),
    )
    assert placed is not None  # its middle is inside
    empty = np.zeros((size, size), np.uint8)
    made = Composition(behind.copy(), empty, empty.astype(np.int32), [])
    offset = (0.04 * size, float(rng.uniform(-0.06, 0.06)) * size) if shadow else None
    made.add(placed, vary_color(placed, rng), 0, offset)
    return made.image


def _flat(rng: np.random.Generator, size: int) -> Canvas:
    """Draw one color: CLIP's mean, black, white, or any other."""
    colors = (_MEAN_COLOR, (0.0,) * 3, (255.0,) * 3, tuple(rng.uniform(0, 255, 3)))
    color = colors[int(rng.choice(4, p=(0.4, 0.25, 0.1, 0.25)))]
    return np.full((size, size, 3), color, np.float32)


def _patch(rng: np.random.Generator, size: int) -> npt.NDArray[np.bool_]:
    """Return the shape of a piece of stuff, (size, size), at least a quarter of the square."""
    field = smooth_noise(rng, size, size / float(rng.uniform(1, 2.5)), 2)
    return np.asarray(field >= np.quantile(field, float(rng.uniform(0.1, 0.75))))


def _resize(image: Pixels, size: int) -> Pixels:
    how = cv2.INTER_AREA if image.shape[0] > size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size, size), interpolation=how), dtype=np.uint8)
