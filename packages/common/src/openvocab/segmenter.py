"""The one call every model answers, and what it gives back."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, overload, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from openvocab.drawing.overlay import draw_overlay, label_shares, palette
from openvocab.errors import InputError
from openvocab.files import atomic_path, write_text
from openvocab.formats.run_length import Mask, encode_labels
from openvocab.image import ImageArray, ImageSource, read_image
from openvocab.vocabulary import NOTHING, Vocabulary

NOTHING_8BIT = 255
NOTHING_16BIT = 65535

Names: TypeAlias = Vocabulary | Sequence[str] | str


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What one image shows, at the size of that image.

    Attributes:
        labels: (H, W) int32, indices into `vocabulary.names`; -1 where nothing was found.
        vocabulary: what was asked for.
        scores: (K, H, W) float32, larger is more certain, if they were asked for.
        extra: what a method wants to add, such as its masks; the prediction command writes the
            images (H, W, 3) in its "pictures", a dict by name.
    """

    labels: npt.NDArray[np.int32]
    vocabulary: Vocabulary
    scores: npt.NDArray[np.float32] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.labels.ndim != 2 or self.labels.dtype != np.int32:
            raise ValueError(
                f"labels are {self.labels.dtype} {self.labels.shape}, expected int32 (H, W)"
            )
        low, high = int(self.labels.min(initial=0)), int(self.labels.max(initial=0))
        if low < NOTHING or high >= len(self.vocabulary):
            raise ValueError(f"labels span {low}..{high}, expected -1..{len(self.vocabulary) - 1}")
        shape = (len(self.vocabulary), *self.labels.shape)
        if self.scores is not None and self.scores.shape != shape:
            raise ValueError(f"scores have shape {self.scores.shape}, expected {shape}")

    def areas(self) -> dict[str, float]:
        """Return the share of the image that each name covers, largest first, absent ones left out.

        The shares sum to 1 if every pixel got a name.
        """
        shares: dict[str, float] = {}
        for index, share in label_shares(self.labels):
            name = self.vocabulary.names[index]
            shares[name] = shares.get(name, 0.0) + share
        return shares

    def mask(self, name: str) -> Mask:
        """Return the (H, W) mask of one name.

        Raises:
            InputError: the name was not asked for.
        """
        if name not in self.vocabulary.names:
            raise InputError(f"{name!r} is not in the vocabulary of this segmentation.")
        wanted = [i for i, known in enumerate(self.vocabulary.names) if known == name]
        return np.isin(self.labels, wanted)

    def overlay(self, image: ImageSource) -> ImageArray:
        """Draw the names over the image they were found in, with a legend; (H', W', 3) uint8."""
        return draw_overlay(read_image(image), self.labels, self.vocabulary.names)

    def to_json(self) -> dict[str, Any]:
        """Describe the labels as plain data: size, names, and for each found name its RLE mask."""
        shares = dict(label_shares(self.labels))
        codes = encode_labels(self.labels)
        found = [
            {"index": i, "name": self.vocabulary.names[i], "area": share, "rle": codes[i]}
            for i, share in shares.items()
        ]
        height, width = self.labels.shape
        return {
            "size": [height, width],
            "names": list(self.vocabulary.names),
            "vocabulary": self.vocabulary.key,
            "segments": found,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result; the suffix decides what.

        `.png` is the label map, with colours and 255 for nothing where there are at most 255 names,
        else 16-bit grey and 65535 for nothing. `.json` holds COCO run-length masks. `.npy` and
        `.npz` hold the scores, the latter with labels and names.

        Raises:
            InputError: another suffix, no scores to write, or too many names for a PNG.
        """
        target = Path(path)
        suffix = target.suffix.lower()
        writers = {
            ".png": self._save_png,
            ".json": self._save_json,
            ".npy": self._save_npy,
            ".npz": self._save_npz,
        }
        if suffix not in writers:
            raise InputError(
                f"'{target}' ends in {suffix or 'no suffix'}, expected .png (label map), .json "
                "(run-length masks), .npy or .npz (scores)."
            )
        writers[suffix](target)

    def _save_png(self, path: Path) -> None:
        names = len(self.vocabulary)
        if names > NOTHING_16BIT:
            raise InputError(f"a PNG holds at most {NOTHING_16BIT} names, not {names}; use .json.")
        if names > NOTHING_8BIT:
            image = Image.fromarray(
                np.where(self.labels < 0, NOTHING_16BIT, self.labels).astype(np.uint16)
            )
        else:
            image = Image.fromarray(
                np.where(self.labels < 0, NOTHING_8BIT, self.labels).astype(np.uint8)
            )
            colors = np.zeros((256, 3), np.uint8)  # nothing stays black
            colors[:names] = palette(names)
            image.putpalette(colors.tobytes())
        with atomic_path(path) as temporary:
            image.save(temporary, format="PNG", optimize=False)

    def _save_json(self, path: Path) -> None:
        write_text(path, json.dumps(self.to_json(), ensure_ascii=False))

    def _save_npy(self, path: Path) -> None:
        scores = self._scores_for(path)
        with atomic_path(path) as temporary:
            np.save(temporary, scores)

    def _save_npz(self, path: Path) -> None:
        scores = self._scores_for(path)
        names = np.array(self.vocabulary.names)
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, scores=scores, labels=self.labels, names=names)

    def _scores_for(self, path: Path) -> npt.NDArray[np.float32]:
        if self.scores is None:
            raise InputError(
                f"there are no scores to write to '{path}'; segment with return_scores=True."
            )
        return self.scores


@runtime_checkable
class Segmenter(Protocol):
    """A model that finds the regions of an image that names describe."""

    @overload
    def segment(
        self, image: ImageSource, vocabulary: Names, *, return_scores: bool = ...
    ) -> Segmentation: ...
    @overload
    def segment(
        self, image: list[ImageSource], vocabulary: Names, *, return_scores: bool = ...
    ) -> list[Segmentation]: ...
    def segment(
        self,
        image: ImageSource | list[ImageSource],
        vocabulary: Names,
        *,
        return_scores: bool = False,
    ) -> Segmentation | list[Segmentation]:
        """Segment one image, or a list of images of any sizes.

        Args:
            image: anything that `read_image` takes, or a list of such.
            vocabulary: a `Vocabulary`, names, or names in one string with commas.
            return_scores: keep the (K, H, W) scores, which need much memory.

        Returns:
            One result for one image, a list for a list, each as if segmented alone.

        Raises:
            InputError: an image cannot be read, or there is no name.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return what decides the labels, for the protocol card of a result.

        Method, variant, sha256 of the weights, thresholds, resize rule, post-processing, precision.
        """
        ...


class BaseSegmenter(ABC):
    """What segmenters share: reading images and names; a method adds `segment_arrays`.

    Attributes:
        templates: with which names that are not a `Vocabulary` become sentences.
    """

    templates: str = "vild"

    @overload
    def segment(
        self, image: ImageSource, vocabulary: Names, *, return_scores: bool = ...
    ) -> Segmentation: ...
    @overload
    def segment(
        self, image: list[ImageSource], vocabulary: Names, *, return_scores: bool = ...
    ) -> list[Segmentation]: ...
    def segment(
        self,
        image: ImageSource | list[ImageSource],
        vocabulary: Names,
        *,
        return_scores: bool = False,
    ) -> Segmentation | list[Segmentation]:
        """Segment one image, or a list of images of any sizes; see `Segmenter.segment`."""
        names = self.vocabulary(vocabulary)
        if isinstance(image, list):
            return self.segment_arrays([read_image(one) for one in image], names, return_scores)
        return self.segment_arrays([read_image(image)], names, return_scores)[0]

    def vocabulary(self, names: Names) -> Vocabulary:
        """Return the vocabulary of names: itself, or a user's words with the method's templates."""
        if isinstance(names, Vocabulary):
            return names
        return Vocabulary.from_names(names, templates=self.templates)

    @abstractmethod
    def segment_arrays(
        self, images: list[ImageArray], vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        """Segment images (H, W, 3) uint8 RGB of any sizes, each as if it were alone."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what decides the labels; see `Segmenter.describe`."""
