"""A data set on a disk, and the hash of its labels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openvocab.datasets.label_files import read_stored
from openvocab.datasets.samples import Sample
from openvocab.datasets.spec import VOID_16_BIT, DatasetSpec, Layout, decode
from openvocab.vocabulary import BACKGROUND_NAME, Vocabulary

DATA_ROOT_VARIABLE = "DETECTRON2_DATASETS"


@dataclass(frozen=True)
class LabelledSet:
    """A data set that was found on a disk: a `SampleSet` with its place and its layout.

    Args:
        spec: description of the data set.
        split: canonical.
        layout: the layout in which it lies.
        root: the data root and what the layout has below it.
        samples: the pairs, sorted by id.
        vocabulary: the names of its labels in this layout.
        left_out: sentences about files without a partner.
    """

    spec: DatasetSpec
    split: str
    layout: Layout
    root: Path
    samples: tuple[Sample, ...]
    vocabulary: Vocabulary
    left_out: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """The canonical name of the set."""
        return self.spec.name

    @property
    def ignore_index(self) -> tuple[int, ...]:
        """The label values that are void."""
        return self.spec.ignore

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of every label; where labels from one on are background, it is the last."""
        first = self.vocabulary.background.index
        names = self.vocabulary.names
        return names if first is None else (*names[:first], BACKGROUND_NAME)

    @property
    def images_folder(self) -> Path:
        """Where the images are."""
        return self.root / self.layout.fill(self.layout.images, self.split)

    @property
    def labels_folder(self) -> Path:
        """Where the label maps are."""
        return self.root / self.layout.fill(self.layout.labels, self.split)

    def read_label(self, sample: Sample) -> NDArray[np.int32]:
        """Return the ground truth of a sample, `(H, W)` in `0..K-1` or void.

        Raises:
            InputError: the file cannot be read.
        """
        return decode(read_stored(sample.label), self.layout.coding, max(self.ignore_index))

    def label_tree_hash(self) -> str:
        """Return a SHA-256 over ids and labels, the same for every layout with the same labels."""
        with ThreadPoolExecutor() as pool:  # decoders and hashes let other threads run
            parts = pool.map(
                lambda s: label_hash(self.read_label(s), self.ignore_index), self.samples
            )
            return tree_hash((s.id, part) for s, part in zip(self.samples, parts, strict=True))

    def describe(self) -> str:
        """Return one line for people: the number of images, the folder and the layout."""
        return (
            f"{self.name} ({self.split}): {len(self.samples)} images in the layout of "
            f"{self.layout.name}, labels in {self.labels_folder}"
        )


def label_hash(labels: NDArray[Any], ignore: Sequence[int]) -> bytes:
    """Return a SHA-256 of one label map, in which all void values are the same."""
    narrow = labels.astype("<u2")
    narrow[np.isin(labels, ignore)] = VOID_16_BIT
    digest = hashlib.sha256(f"{labels.shape[0]}x{labels.shape[1]}\n".encode())
    digest.update(np.ascontiguousarray(narrow).data)
    return digest.digest()


def tree_hash(parts: Iterable[tuple[str, bytes]]) -> str:
    """Return a SHA-256 over ids and the hashes of their label maps, in hexadecimal."""
    digest = hashlib.sha256()
    for name, part in parts:
        digest.update(name.encode() + b"\n" + part)
    return digest.hexdigest()


def data_root_of(data_root: str | Path | None = None) -> Path:
    """Return the folder of data sets: the given one, `$DETECTRON2_DATASETS`, or `./datasets`."""
    return Path(data_root or os.environ.get(DATA_ROOT_VARIABLE) or "datasets").expanduser()
