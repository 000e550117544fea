"""Labeled images: pairs of an image and its label map, with the names of the labels."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from openvocab.errors import InputError
from openvocab.files import sha256_of
from openvocab.image import IMAGE_SUFFIXES, read_label_map
from openvocab.metrics.counting import Ignore, void_values
from openvocab.vocabulary import Vocabulary

_SHOWN = 5  # names in a warning


class Sample(NamedTuple):
    """An image and its label map; the id is unique in its set and the same on every machine."""

    id: str
    image: Path
    label: Path


class SampleSet(Protocol):
    """Images with ground truth, and the meaning of their label values."""

    @property
    def name(self) -> str:
        """The name that results carry."""

    @property
    def split(self) -> str:
        """Which part of the data set, such as "val"."""

    @property
    def samples(self) -> Sequence[Sample]:
        """The pairs, in a fixed order."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The names of the label values 0..K-1."""

    @property
    def ignore_index(self) -> Ignore:
        """The label values that are void; see `openvocab.metrics.scores.void_values`."""

    def label_tree_hash(self) -> str:
        """Return a SHA-256 over the names and contents of all label maps."""

    def read_label(self, sample: Sample) -> NDArray[Any]:
        """Return the ground truth of a sample, `(H, W)` integers in `0..K-1` or void."""


@dataclass(frozen=True)
class FolderDataset:
    """A folder of images, a folder of label maps, and a file of names.

    The files of a pair have the same relative path apart from the suffix. Files without a partner
    are left out with a warning.

    Args:
        images: folder of images.
        labels: folder of label maps (PNG, TIFF), 8 or 16 bits.
        names_file: one name per line, or a JSON list; line i names the label value i.
        ignore_index: the values that are void; None: 255, or 65535 from 256 classes on.
        label_offset: number that is added to stored values that are not void; -1 for label maps
            that count from 1. Values that fall below 0 are void.
    """

    images: Path
    labels: Path
    names_file: Path
    ignore_index: Ignore = None
    label_offset: int = 0

    @property
    def name(self) -> str:
        """The folder of the images."""
        return self.images.name

    @property
    def split(self) -> str:
        """Folders have no splits."""
        return ""

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The names in the file."""
        return Vocabulary.from_file(self.names_file)

    @cached_property
    def samples(self) -> Sequence[Sample]:
        """The pairs, sorted by name."""
        return pair_by_stem(self.images, self.labels)

    def label_tree_hash(self) -> str:
        """Return a SHA-256 over the names and contents of all label maps, and the offset."""
        stored = label_tree_hash(self.samples)
        if not self.label_offset:
            return stored
        return hashlib.sha256(f"{stored}{self.label_offset:+d}".encode()).hexdigest()

    def read_label(self, sample: Sample) -> NDArray[Any]:
        """Return the stored ground truth of a sample, plus the offset."""
        stored = read_label_map(sample.label)
        if not self.label_offset:
            return stored
        void = sorted(void_values(len(self.vocabulary), self.ignore_index))
        if not void:
            return stored + self.label_offset
        labels = np.where(np.isin(stored, void), stored, stored + self.label_offset)
        return np.where(labels < 0, void[-1], labels)


def pair_by_stem(images: Path, labels: Path) -> tuple[Sample, ...]:
    """Pair the files of two folders by relative path without suffix, and warn about the others.

    Raises:
        InputError: a folder is missing, two files of a folder share a stem, or nothing pairs up.
    """
    pictures, maps = _by_stem(images), _by_stem(labels)
    common = sorted(pictures.keys() & maps.keys())
    if not common:
        raise InputError(
            f"no image in {images} ({len(pictures)} files) has the name of a label map in {labels} "
            f"({len(maps)} files); pairs are a/b.jpg with a/b.png"
        )
    for what, alone in (
        ("images without a label map", pictures.keys() - maps.keys()),
        ("label maps without an image", maps.keys() - pictures.keys()),
    ):
        if alone:
            warnings.warn(f"{len(alone)} {what} are left out: {_some(alone)}", stacklevel=2)
    return tuple(Sample(stem, pictures[stem], maps[stem]) for stem in common)


def label_tree_hash(samples: Iterable[Sample]) -> str:
    """Return a SHA-256 over ids and label files, independent of where the files lie."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.id}\n{sha256_of(sample.label)}\n".encode())
    return digest.hexdigest()


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist; check the path")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise InputError(
                f"{found[stem].name} and {path.name} in {path.parent} differ only in their suffix; "
                f"keep one of them"
            )
        found[stem] = path
    return found


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more
