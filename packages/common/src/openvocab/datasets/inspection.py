"""Inspecting every file of a data set once, in parallel: sizes, values, damage, fingerprints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openvocab.datasets.label_files import read_stored
from openvocab.datasets.labelled_set import LabelledSet, label_hash, tree_hash
from openvocab.datasets.preparation import run_parallel
from openvocab.datasets.samples import Sample
from openvocab.datasets.spec import Coding, decode
from openvocab.errors import InputError
from openvocab.image import read_image

Size = tuple[int, int]
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Inspection:
    """The result of inspecting one sample.

    Args:
        sample: the pair.
        image_error: why the image cannot be read, or "".
        label_error: why the label map cannot be read, or "".
        image_size: (height, width), None if it cannot be read.
        label_size: the same of the label map.
        values: `(N,)` the labels that occur, void included.
        upper: `(N,)` their pixels in the upper half.
        lower: `(N,)` their pixels in the lower half.
        content: hash of the labels.
    """

    sample: Sample
    image_error: str = ""
    label_error: str = ""
    image_size: Size | None = None
    label_size: Size | None = None
    values: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    upper: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    lower: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    content: bytes = b""


@dataclass(frozen=True)
class TreeInspection:
    """The result of inspecting a whole set.

    Args:
        data: the set.
        images: one for each sample, in their order.
    """

    data: LabelledSet
    images: tuple[Inspection, ...]

    def histogram(self) -> dict[int, int]:
        """Return the pixels of every value, void included, by value."""
        return dict(sorted(self._totals()[0].items()))

    def share_above(self) -> dict[int, float]:
        """Return for every value the share of its pixels in the upper halves of the images."""
        both, upper = self._totals()
        return {value: upper[value] / count for value, count in both.items()}

    def label_tree_hash(self) -> str | None:
        """Return the hash that `LabelledSet.label_tree_hash` has; None if a file is damaged."""
        if any(image.label_error for image in self.images):
            return None
        return tree_hash((image.sample.id, image.content) for image in self.images)

    def _totals(self) -> tuple[dict[int, int], dict[int, int]]:
        both: dict[int, int] = {}
        upper: dict[int, int] = {}
        for image in self.images:
            triples = zip(
                image.values.tolist(), image.upper.tolist(), image.lower.tolist(), strict=True
            )
            for value, above, below in triples:
                both[value] = both.get(value, 0) + above + below
                upper[value] = upper.get(value, 0) + above
        return both, upper


def inspect_set(data: LabelledSet, *, workers: int, progress: bool) -> TreeInspection:
    """Inspect every file of a set."""
    look = partial(inspect_sample, coding=data.layout.coding, ignore=data.ignore_index)
    seen = run_parallel(look, data.samples, workers, f"{data.name} {data.split}", progress)
    return TreeInspection(data, tuple(seen))


def inspect_sample(sample: Sample, coding: Coding, ignore: Sequence[int]) -> Inspection:
    """Inspect one image and its label map."""
    image_size, image_error = _image(sample.image)
    try:
        labels = decode(read_stored(sample.label), coding, max(ignore))
    except InputError as error:
        return Inspection(sample, image_error, str(error), image_size)
    half = labels.shape[0] // 2
    low = min(int(labels.min()), 0)  # 32-bit files may hold negative values
    counts = [
        np.bincount((part - low).ravel(), minlength=int(labels.max()) - low + 1)
        for part in (labels[:half], labels[half:])
    ]
    values = np.flatnonzero(counts[0] + counts[1])
    return Inspection(
        sample,
        image_error,
        "",
        image_size,
        (labels.shape[0], labels.shape[1]),
        values + low,
        counts[0][values],
        counts[1][values],
        label_hash(labels, ignore),
    )


def _image(path: Path) -> tuple[Size | None, str]:
    """Return the upright size of an image, and what is wrong with it.

    JPEGs are decoded at an eighth of their size, which reads all of the file in a fraction of the
    time.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in _SIDEWAYS
            if image.format == "JPEG":
                image.draft("RGB", (max(1, width // 8), max(1, height // 8)))
            image.load()
            return ((width, height) if turned else (height, width)), ""
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError):
        pass  # read_image says it in words
    try:
        height, width, _ = read_image(path).shape
    except InputError as error:
        return None, str(error)
    return (height, width), ""
