"""Scenes: regions of stuff with things before them, with exact label maps and captions.

A scene is decided by split, index and size alone. Labels come from integers and 64-bit arithmetic;
colours may differ in the last bit between builds of OpenCV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from openvocab.errors import InputError
from openvocab.world.names import Name, caption_of, world_names
from openvocab.world.pictograms import Pixels, Placed, paste_pictogram
from openvocab.world.textures import draw_texture, smooth_noise

Split = Literal["train", "pretrain", "tune", "val"]
Labels = npt.NDArray[np.uint8]
Canvas = npt.NDArray[np.float32]

SPLITS: tuple[Split, ...] = ("train", "pretrain", "tune", "val")
NOTHING = 255
SIZE = 128
SMALLEST = 16  # below it, pictograms are blots

_SEED = 20261123
_LEAST_VISIBLE = 0.5  # share of a thing
_LEAST_STUFF = 0.03  # share of the scene
_TRIES = 10


class Scene(NamedTuple):
    """A scene: its image, its labels and its caption.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8, indices into `world_names()`, 255 at nothing.
        caption: caption that names exactly what is visible.
    """

    image: Pixels
    label: Labels
    caption: str


def scene(index: int, split: Split = "train", size: int = SIZE) -> Scene:
    """Compose a scene.

    "train" is for segmentation: only seen names occur. "pretrain" is for CLIP: all names occur and
    are in the caption, but the label map is 255 where a name is unseen, so that no mask of it can
    ever be learned from. "tune" and "val" hold all names and all labels.

    Args:
        index: number of the scene from 0 on, without an upper limit.
        split: name of the split, one of `SPLITS`.
        size: length of the sides in pixels; another size gives another scene, not the same one
            resized.

    Raises:
        InputError: split, index or size make no sense, or the pictograms are not installed.
    """
    rng = generator(split, index, size)
    names = [name for name in world_names() if name.seen or split != "train"]
    composed = _compose(names, size, rng)
    caption = caption_of(visible_labels(composed.label), rng)
    label = composed.label
    if split == "pretrain":
        known = np.array([name.seen for name in world_names()] + [False])
        label = np.where(known[np.minimum(label, len(known) - 1)], label, NOTHING).astype(np.uint8)
    return Scene(expose(composed.image, rng), label, caption)


def visible_labels(label: Labels) -> set[int]:
    """Return the labels that occur in a label map, without `NOTHING`."""
    return set(np.bincount(label.ravel()).nonzero()[0].tolist()) - {NOTHING}


def generator(split: str, index: int, size: int, stream: int = 0) -> np.random.Generator:
    """Return the source of all random numbers in one scene or crop.

    Raises:
        InputError: split, index or size make no sense.
    """
    if split not in SPLITS:
        raise InputError(f"the world has no split {split!r}; it has {', '.join(SPLITS)}")
    if index < 0:
        raise InputError(f"the index is {index}; indices count from 0")
    if not SMALLEST <= size <= 1024:
        raise InputError(f"the size is {size} pixels; it must lie between {SMALLEST} and 1024")
    key = [_SEED, SPLITS.index(split), index, size, stream]
    return np.random.default_rng(np.random.SeedSequence(key))


@dataclass
class Composition:
    """A scene while it is being composed.

    Attributes:
        image: (H, W, 3) float32, 0..255.
        label: (H, W) uint8.
        owner: (H, W) int32, number of the thing in front, 0 where there is none.
        areas: opaque pixels of each thing, with those that are hidden or outside.
    """

    image: Canvas
    label: Labels
    owner: npt.NDArray[np.int32]
    areas: list[int]

    def add(
        self, thing: Placed, color: Canvas, label: int, shadow: tuple[float, float] | None
    ) -> None:
        """Put a thing in front of all others, and its shadow below it.

        Args:
            thing: the thing, with its place.
            color: (h, w, 3) its colour times opacity.
            label: label of the thing.
            shadow: (rows, columns) by which the shadow lies aside; None for no shadow.
        """
        if shadow is not None:
            _darken(self.image, thing, shadow)
        window = thing.window
        cover = thing.alpha[..., None].astype(np.float32) / 255
        self.image[window] = color + self.image[window] * (1 - cover)
        self.areas.append(thing.area)
        self.owner[window][thing.mask] = len(self.areas)
        self.label[window][thing.mask] = label

    def has_room_for(self, thing: Placed) -> bool:
        """Return whether enough of every name stays visible with a thing in front."""
        mask = thing.mask
        if np.count_nonzero(mask) < 0.7 * thing.area:
            return False
        hidden = self.owner[thing.window][mask]
        lost = np.bincount(hidden, minlength=len(self.areas) + 1)
        visible = np.bincount(self.owner.ravel(), minlength=len(lost))[1:] - lost[1:]
        if (visible < _LEAST_VISIBLE * np.array(self.areas)).any():
            return False
        stuff = np.bincount(self.label[self.owner == 0], minlength=256)
        covered = self.label[thing.window][mask & (self.owner[thing.window] == 0)]
        stuff_left = stuff - np.bincount(covered, minlength=256)
        return bool((stuff_left[stuff > 0] >= _LEAST_STUFF * self.label.size).all())


def _compose(names: Sequence[Name], size: int, rng: np.random.Generator) -> Composition:
    """Lay out stuff, then put things on it from back to front."""
    things = [name for name in names if name.is_thing]
    stuff = [name for name in names if not name.is_thing]
    label, image = _lay_out(stuff, size, rng)
    made = Composition(image, label, np.zeros((size, size), np.int32), [])
    count = int(rng.choice(6, p=(0.04, 0.2, 0.28, 0.24, 0.16, 0.08)))
    if count == 0 and (label == NOTHING).all():
        count = 1
    chosen = rng.choice(len(things), count, replace=False)
    depths = np.sort(rng.random(count))
    largest = (0.62, 0.62, 0.54, 0.48, 0.43, 0.4)[count]
    shadow = float(rng.uniform(0.02, 0.06)) * size, float(rng.uniform(-0.08, 0.08)) * size
    for number, depth in zip(chosen.tolist(), depths.tolist(), strict=True):
        name = things[number]
        for _ in range(_TRIES):
            placed = _try_place(name, (0.26, largest), depth, size, rng)
            if placed is not None and made.has_room_for(placed):
                made.add(placed, vary_color(placed, rng), name.label, shadow)
                break
    return made


def _try_place(
    name: Name, lengths: tuple[float, float], depth: float, size: int, rng: np.random.Generator
) -> Placed | None:
    """Place a thing at random; nearer things are lower and larger."""
    low, high = lengths
    length = (low + (high - low) * float(rng.random())) * (0.85 + 0.3 * depth)
    row = 0.2 + 0.58 * depth + float(rng.uniform(-0.12, 0.12))
    column = float(rng.uniform(0.1, 0.9))
    wide = 45 if rng.random() < 0.15 else 14
    return paste_pictogram(
        name.code,
        (size, size),
        center=(row * size, column * size),
        length=max(SMALLEST * 0.6, length * size),
        angle=float(rng.uniform(-wide, wide)),
        mirrored=bool(rng.random() < 0.5),
    )


def _lay_out(stuff: Sequence[Name], size: int, rng: np.random.Generator) -> tuple[Labels, Canvas]:
    """Divide a canvas into one to three regions of stuff, or sometimes of nothing."""
    count = int(rng.choice((1, 2, 3), p=(0.2, 0.55, 0.25)))
    chosen = [stuff[i] for i in rng.choice(len(stuff), count, replace=False).tolist()]
    chosen.sort(key=lambda name: name.level)  # sky above, ground below
    regions = _regions(count, size, rng)
    label = np.zeros((size, size), np.uint8)
    image = np.zeros((size, size, 3), np.float32)
    empty = int(rng.integers(count)) if rng.random() < 0.1 else -1
    unit = size / 128 * float(rng.uniform(0.8, 1.5))
    for number, name in enumerate(chosen):
        region = regions == number
        label[region] = NOTHING if number == empty else name.label
        texture = _plain(rng, size) if number == empty else draw_texture(name.name, rng, size, unit)
        np.copyto(image, texture, where=region[..., None])
    return label, image


def _regions(count: int, size: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Divide a canvas by wavy lines across it, or one line down it: (size, size) numbers."""
    line = (np.arange(size) + 0.5) / size
    waves = sum(
        float(rng.uniform(0, 0.05)) / pitch * np.sin(pitch * 6 * line + float(rng.uniform(0, 6.3)))
        for pitch in (1, 2, 4)
    )
    slope = float(rng.uniform(-0.15, 0.15)) * (line - 0.5)
    cuts = {1: (), 2: (float(rng.uniform(0.3, 0.7)),), 3: (0.3, 0.66)}[count]
    regions = np.zeros((size, size), np.int64)
    for cut in cuts:
        edge = cut + slope + waves + float(rng.uniform(-0.05, 0.05))
        regions += line[:, None] > edge[None, :]
    return regions.T if count == 2 and rng.random() < 0.25 else regions


def _plain(rng: np.random.Generator, size: int) -> Canvas:
    """Draw ground without a name, in one color that changes slowly."""
    first, second = rng.uniform(70, 215, (2, 3)).astype(np.float32)
    share = smooth_noise(rng, size, size)[..., None]
    return np.asarray(first + 0.35 * share * (second - first), dtype=np.float32)


def vary_color(thing: Placed, rng: np.random.Generator) -> Canvas:
    """Turn the hue a little and change the strength of a thing's colours, (h, w, 3) float32."""
    turn = float(rng.uniform(-0.17, 0.17))
    gain = float(rng.uniform(0.82, 1.12))
    saturation = float(rng.uniform(0.75, 1.15))
    cos, sin = saturation * np.cos(turn), saturation * np.sin(turn) / np.sqrt(3)
    # A rotation around the grey axis: grey and black outlines stay what they are.
    matrix = gain * (
        cos * np.eye(3) + (1 - cos) / 3 + sin * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    )
    color = thing.color.astype(np.float32) @ matrix.T.astype(np.float32)
    return np.asarray(np.clip(color, 0, thing.alpha[..., None]), dtype=np.float32)


def expose(image: Canvas, rng: np.random.Generator) -> Pixels:
    """Light a scene from one side, vary contrast and tint, and add the grain of a camera."""
    size = image.shape[0]
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    across, down = rng.uniform(-0.1, 0.1, 2).astype(np.float32)
    light = 1 + across * ramp[None, :] + down * ramp[:, None]
    gains = np.float32(rng.uniform(0.84, 1.12)) * rng.uniform(0.95, 1.05, 3).astype(np.float32)
    middle = np.float32(rng.uniform(-10, 10))
    grain = rng.random(image.shape, dtype=np.float32)
    strength = np.float32(rng.uniform(1, 7))
    lit = image * light[..., None] * gains + middle + strength * (grain - np.float32(0.5))
    return np.asarray(np.clip(lit + np.float32(0.5), 0, 255), dtype=np.uint8)


def _darken(image: Canvas, thing: Placed, offset: tuple[float, float]) -> None:
    """Cast the blurred shadow of a thing on what is behind it."""
    size = image.shape[0]
    pad = max(2, round(0.04 * size))
    alpha = np.pad(thing.alpha, pad)
    blurred = cv2.blur(alpha, (pad + 1 | 1, pad + 1 | 1)).astype(np.float32) / 255
    top = thing.top - pad + round(offset[0])
    left = thing.left - pad + round(offset[1])
    rows = slice(max(0, top), min(size, top + alpha.shape[0]))
    columns = slice(max(0, left), min(size, left + alpha.shape[1]))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    part = blurred[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    image[rows, columns] *= 1 - 0.42 * part[..., None]
