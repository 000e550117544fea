"""Dense CLIP as a segmenter: resize, compare patches with names, enlarge, and label pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dense_clip.attention import Variant, dense_features
from openvocab.clip import load_clip
from openvocab.clip.config import PIXEL_MEAN, PIXEL_STD
from openvocab.clip.model import CLIP
from openvocab.clip.prompts import TextEncoder
from openvocab.computation import Precision, choose_device, dtype_of
from openvocab.errors import InputError
from openvocab.image import ImageArray, output_size_shortest_edge
from openvocab.segmenter import BaseSegmenter, Segmentation
from openvocab.semantic import label_word_maps
from openvocab.vocabulary import WORLD, Vocabulary

TITLES: dict[str, str] = {"maskclip": "MaskCLIP", "sclip": "SCLIP", "naclip": "NACLIP"}
_LAST_BLOCK: dict[str, str] = {
    "maskclip": "values of the patches alone; no residual connection, no MLP",
    "sclip": "softmax(qq') + softmax(kk') on the values; residual connection and MLP stay",
    "naclip": "softmax(kk' + Gaussian) on the patches' values; no residual connection, no MLP",
}


@dataclass(frozen=True)
class DenseConfig:
    """All settings that affect a label.

    Attributes:
        variant: attention that replaces that of the last block.
        short_side: pixels to which the short side of an image is resized; None: the native size of
            the CLIP.
        max_side: pixels that the long side may have; longer images are shrunk until it fits.
        window: side in pixels of the square windows that go through CLIP one by one; None: the
            whole image at once.
        stride: pixels from one window to the next.
        sigma: NACLIP's standard deviation of the Gaussian, in patches.
    """

    variant: Variant = "naclip"
    short_side: int | None = 336
    max_side: int = 2048
    window: int | None = 224
    stride: int = 112
    sigma: float = 5.0

    def __post_init__(self) -> None:
        """Refuse values that can only be mistakes."""
        if self.variant not in get_args(Variant):
            raise InputError(f"variant is {self.variant!r}; use one of {', '.join(TITLES)}")
        for name in ("short_side", "max_side", "window", "stride", "sigma"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value:g}; it must be greater than 0")
        if self.window is not None and self.stride > self.window:
            raise InputError(
                f"stride is {self.stride} and window {self.window}; pixels between two windows "
                "would get no name, so make the stride at most the window"
            )


def default_config(variant: Variant, weights: str | Path) -> DenseConfig:
    """Return the default settings of a variant: the papers' rule, or whole images in the world.

    The world's CLIP was trained on scenes of its native size, where windows would only cut.
    """
    if weights == WORLD:
        return DenseConfig(variant, short_side=None, window=None)
    return DenseConfig(variant)


def load_dense_clip(
    weights: str | Path = "ViT-B-16:openai",
    *,
    config: DenseConfig | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    compile: bool = False,
) -> DenseCLIPSegmenter:
    """Load a CLIP and return a segmenter.

    Args:
        weights: "NAME:TAG" of open_clip, a file, or "world"; see `openvocab.clip.load_clip`.
        config: settings; None: those of `default_config` for NACLIP.
        device: "cpu", "cuda", "cuda:1", "mps" ...; "auto" is the best that is there.
        precision: number format of the image tower.
        compile: compile the image tower with torch.compile; needs a C++ compiler on a CPU.

    Raises:
        InputError: the weights are not here, unreadable, or no CLIP with a ViT.
    """
    config = default_config("naclip", weights) if config is None else config
    clip = load_clip(weights, device=choose_device(device))
    return DenseCLIPSegmenter(clip, config, precision=precision, compile=compile)


class DenseCLIPSegmenter(BaseSegmenter):
    """Segments images of any size with any names, by the similarity of patches and names."""

    templates = "imagenet"  # the 80 prompts of SCLIP and NACLIP

    def __init__(
        self,
        clip: CLIP,
        config: DenseConfig | None = None,
        *,
        precision: Precision = "fp32",
        compile: bool = False,
        cache_dir: str | Path | Literal[False] | None = None,
    ) -> None:
        """Wrap a CLIP, whose image tower is brought to the precision in place.

        Args:
            clip: CLIP, from `openvocab.clip.load_clip`.
            config: settings of the method.
            precision: number format of the image tower; names are always encoded in fp32.
            compile: compile the image tower with torch.compile; needs a C++ compiler on a CPU.
            cache_dir: folder for text embeddings, see `TextEncoder`.
        """
        self.clip, self.config, self.precision = clip, config or DenseConfig(), precision
        self.weights_sha256 = clip.fingerprint()
        self.text = TextEncoder(clip, cache_dir)
        self.temperature = float(clip.logit_scale.exp())
        clip.visual.to(dtype_of(precision))
        self.features = torch.compile(dense_features) if compile else dense_features

    def describe(self) -> dict[str, Any]:
        """Return the lines of the protocol card that describe this segmenter."""
        config, vision = self.config, self.clip.config.vision
        windows = f"windows of {config.window} every {config.stride} pixels, similarities averaged"
        described: dict[str, Any] = {
            "method": TITLES[config.variant],
            "variant": f"CLIP ViT, width {vision.width}, {vision.layers} blocks, patch "
            f"{vision.patch_size}",
            "weights_sha256": self.weights_sha256,
            "resize_rule": f"short side {self.short_side}, long side <= {config.max_side}, both to "
            f"the nearest multiple of {vision.patch_size}, bicubic on uint8, "
            + ("whole image" if config.window is None else windows),
            "post_processing": "similarities resized bilinearly, softmax over all words",
            "precision": self.precision,
            "device": str(self.clip.logit_scale.device),
            "last_block": _LAST_BLOCK[config.variant],
            "temperature": self.temperature,
        }
        return described | ({"sigma": config.sigma} if config.variant == "naclip" else {})

    @property
    def short_side(self) -> int:
        """Pixels to which the short side of an image is resized."""
        return self.config.short_side or self.clip.config.vision.image_size

    def segment_arrays(
        self, images: list[ImageArray], vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        """Segment images one by one; see `BaseSegmenter.segment_arrays`."""
        return [self._segment(image, vocabulary, return_scores) for image in images]

    @torch.inference_mode()
    def similarities(self, image: ImageArray, vocabulary: Vocabulary) -> Tensor:
        """Return the cosine (W, h, w), -1..1, of each of W words with each patch of an image.

        Raises:
            InputError: the vocabulary holds no word, or wants a class "no object".
        """
        check_vocabulary(vocabulary)
        text = self.text.encode_names(vocabulary.words, vocabulary.templates)  # (W, E)
        pixels = self._pixels(image)
        patch = self.clip.config.vision.patch_size
        grid = pixels.shape[2] // patch, pixels.shape[3] // patch
        total = torch.zeros(len(text), *grid, device=text.device)
        count = torch.zeros(grid, device=text.device)
        for rows, columns in self._windows(grid):
            window = _cut(_cut(pixels, 2, rows, patch), 3, columns, patch)
            variant, sigma = self.config.variant, self.config.sigma
            features = self.features(self.clip.visual, window, variant, sigma)[0]  # (h * w, E)
            found = torch.unflatten(text @ features.T, 1, (rows.stop - rows.start, -1))
            total[:, rows, columns] += found
            count[rows, columns] += 1
        return total / count

    def _pixels(self, image: ImageArray) -> Tensor:
        """Resize an image (H, W, 3) so that patches fill it, and normalize it: (1, 3, H', W')."""
        patch, device = self.clip.config.vision.patch_size, self.clip.logit_scale.device
        size = output_size_shortest_edge(
            image.shape[0], image.shape[1], self.short_side, self.config.max_side
        )
        height, width = (max(1, round(side / patch)) * patch for side in size)
        picture = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(picture)).to(device).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (PIXEL_MEAN, PIXEL_STD))
        return ((pixels - mean) / std)[None].to(dtype_of(self.precision))

    def _windows(self, grid: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
        """Yield rows and columns of patches of each window; the last ones end at the border."""
        patch, config = self.clip.config.vision.patch_size, self.config
        if config.window is None:
            yield slice(0, grid[0]), slice(0, grid[1])
            return
        side, step = (max(1, round(n / patch)) for n in (config.window, config.stride))
        runs = []
        for patches in grid:
            last = max(0, patches - side)
            starts = [*range(0, last, step), last]
            runs.append([slice(start, min(start + side, patches)) for start in starts])
        yield from product(*runs)

    @torch.inference_mode()
    def _segment(
        self, image: ImageArray, vocabulary: Vocabulary, return_scores: bool
    ) -> Segmentation:
        """Compare patches with words, and enlarge the similarities to the image."""
        labels, scores = label_word_maps(
            self.similarities(image, vocabulary),
            (image.shape[0], image.shape[1]),
            vocabulary,
            lambda similarity: (similarity * self.temperature).softmax(dim=0),
            return_scores=return_scores,
        )
        return Segmentation(labels, vocabulary, scores)


def _cut(pixels: Tensor, axis: int, run: slice, patch: int) -> Tensor:
    """Cut out the pixels of a run of patches along an axis."""
    return pixels.narrow(axis, run.start * patch, (run.stop - run.start) * patch)


def check_vocabulary(vocabulary: Vocabulary) -> None:
    """Refuse a vocabulary that similarities cannot answer.

    Raises:
        InputError: the vocabulary holds no word, or needs a class "no object" that only training
            gives.
    """
    if vocabulary.background.kind == "learned":
        raise InputError(
            "dense CLIP was not trained for masks and has no learned class for the background; use "
            "a vocabulary with the policy 'none', 'names', 'threshold' or 'remap'"
        )
    if not vocabulary.words:
        raise InputError(
            f"the vocabulary holds nothing but {', '.join(vocabulary.names)}; name something to "
            "look for"
        )
