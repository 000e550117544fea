"""The training augmentation that SAN and OVSeg share: resize, crop, colour, flip, pad.

Source: SPEC san 8 "Data mapper", SPEC ovseg 10 "Mapper".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openvocab.image import ImageArray, output_size_shortest_edge, resize_shortest_edge

Labels = NDArray[Any]
Pair = tuple[ImageArray, Labels]

_BRIGHTNESS, _HUE = 32, 18
_GAIN = (0.5, 1.5)


@dataclass(frozen=True)
class TransformConfig:
    """How a training image is varied.

    Attributes:
        min_sizes: sizes, one of which becomes the short side.
        max_size: unless the long side would pass this.
        crop_size: side of the random crop, and of the result.
        color: vary brightness, contrast, saturation and hue (as SSD does).
        flip: probability of mirroring left and right.
        image_pad: grey value to the right of and below small images.
    """

    min_sizes: tuple[int, ...] = tuple(range(320, 961, 64))
    max_size: int = 2560
    crop_size: int = 640
    color: bool = True
    flip: float = 0.5
    image_pad: int = 128


class TrainTransform:
    """Varies an image and its label map together.

    Args:
        config: settings of the transforms.
        ignore_index: label of what is added.

    Attributes:
        stages: stages by name, in their order; each maps an image, its label map and a random
            generator to an image and a label map.
    """

    def __init__(self, config: TransformConfig, ignore_index: int = 255) -> None:
        self.config, self.ignore_index = config, ignore_index
        self.stages: dict[str, Callable[[ImageArray, Labels, np.random.Generator], Pair]] = {
            "scale": self._scale,
            "crop": self._crop,
            "color": self._color,
            "flip": self._flip,
            "padding": self._pad,
        }

    def __call__(self, image: ImageArray, label: Labels, rng: np.random.Generator) -> Pair:
        """Vary.

        Args:
            image: (H, W, 3) uint8 RGB.
            label: (H, W) integers.
            rng: decides everything random.

        Returns:
            Image and label map with sides of `crop_size`.
        """
        for stage in self.stages.values():
            image, label = stage(image, label, rng)
        return image, label

    def _scale(self, image: ImageArray, label: Labels, rng: np.random.Generator) -> Pair:
        short = int(rng.choice(self.config.min_sizes))
        return resize_pair(image, label, short, self.config.max_size)

    def _crop(self, image: ImageArray, label: Labels, rng: np.random.Generator) -> Pair:
        return random_crop(image, label, self.config.crop_size, rng)

    def _color(self, image: ImageArray, label: Labels, rng: np.random.Generator) -> Pair:
        return (vary_colors(image, rng) if self.config.color else image), label

    def _flip(self, image: ImageArray, label: Labels, rng: np.random.Generator) -> Pair:
        if rng.random() < self.config.flip:
            return image[:, ::-1], label[:, ::-1]
        return image, label

    def _pad(self, image: ImageArray, label: Labels, _: np.random.Generator) -> Pair:
        side = self.config.crop_size
        return pad(image, side, self.config.image_pad), pad(label, side, self.ignore_index)


def resize_pair(image: ImageArray, label: Labels, short: int, max_size: int) -> Pair:
    """Resize by the short side: the image bilinearly, the label map to the nearest pixel centre."""
    height, width = output_size_shortest_edge(image.shape[0], image.shape[1], short, max_size)
    nearest = Image.fromarray(label.astype(np.int32)).resize(
        (width, height), Image.Resampling.NEAREST
    )
    return resize_shortest_edge(image, short, max_size), np.asarray(nearest).astype(label.dtype)


def random_crop(image: ImageArray, label: Labels, side: int, rng: np.random.Generator) -> Pair:
    """Cut a square of `side`, or less where the image is smaller, at any place alike."""
    height, width = min(side, image.shape[0]), min(side, image.shape[1])
    top = int(rng.integers(image.shape[0] - height + 1))
    left = int(rng.integers(image.shape[1] - width + 1))
    window = slice(top, top + height), slice(left, left + width)
    return image[window], label[window]


def vary_colors(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Vary colours as SSD does: brightness, then contrast before or after saturation and hue.

    Each of the four happens with probability 1/2; values are cut off to uint8 after each.

    Source: Liu et al. 2016 (SSD); SPEC san 8.
    """
    if rng.random() < 0.5:
        image = _scaled(image, 1, rng.uniform(-_BRIGHTNESS, _BRIGHTNESS))
    contrast_first = rng.random() < 0.5
    if contrast_first:
        image = _vary_contrast(image, rng)
    if rng.random() < 0.5:
        image = _saturated(image, rng.uniform(*_GAIN))
    if rng.random() < 0.5:
        image = _hue_shifted(image, int(rng.integers(-_HUE, _HUE + 1)))
    return image if contrast_first else _vary_contrast(image, rng)


def pad(pixels: NDArray[Any], side: int, value: int) -> NDArray[Any]:
    """Pad (H, W) or (H, W, 3) at the bottom and the right to a square."""
    missing = [(0, side - pixels.shape[0]), (0, side - pixels.shape[1])]
    widths = missing + [(0, 0)] * (pixels.ndim - 2)
    return np.ascontiguousarray(np.pad(pixels, widths, constant_values=value))


def _vary_contrast(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    return _scaled(image, rng.uniform(*_GAIN), 0) if rng.random() < 0.5 else image


def _scaled(values: ImageArray, gain: float, offset: float) -> ImageArray:
    """Return gain * values + offset, cut to 0..255 and truncated, as uint8."""
    table = np.arange(256, dtype=np.float32) * np.float32(gain) + np.float32(offset)
    return np.asarray(table.clip(0, 255).astype(np.uint8)[values])


def _saturated(image: ImageArray, gain: float) -> ImageArray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = _scaled(hsv[..., 1], gain, 0)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dtype=np.uint8)


def _hue_shifted(image: ImageArray, shift: int) -> ImageArray:
    """Turn the hue by `shift` of OpenCV's 180 steps."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(np.int32) + shift) % 180
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dtype=np.uint8)
