"""The world as a data set, whose splits are written into the cache as PNG files on first use."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import cast

import cv2
import numpy as np
from tqdm import tqdm

from openvocab.datasets.labelled_set import LabelledSet, data_root_of
from openvocab.datasets.samples import Sample
from openvocab.datasets.spec import DatasetSpec, Layout
from openvocab.errors import InputError
from openvocab.files import default_cache_dir
from openvocab.vocabulary import Vocabulary
from openvocab.world.export import write_scene
from openvocab.world.names import world_vocabulary
from openvocab.world.pictograms import package_versions
from openvocab.world.scenes import SIZE, Split, scene

COUNTS: dict[str, int] = {"train": 4096, "tune": 128, "val": 200}

_SOURCES = ("names.json", "names.py", "pictograms.py", "textures.py", "scenes.py")
_MANY = 500  # scenes to draw before a bar is shown

LAYOUT = Layout(
    "world",
    images="{split}/images",
    labels="{split}/labels",
    split_names=MappingProxyType({split: split for split in COUNTS}),
)


def _vocabulary_of(layout: Layout) -> Vocabulary:
    return world_vocabulary()


SPEC = DatasetSpec(
    "world",
    "The embedded world",
    vocabulary="world",
    layouts=(LAYOUT,),
    sizes=MappingProxyType({split: (count,) for split, count in COUNTS.items()}),
    make_vocabulary=_vocabulary_of,
)


@cache
def world_version() -> str:
    """Return a SHA-256 of everything that a pixel depends on: the drawing code and its libraries.

    Raises:
        InputError: the pictograms are not installed.
    """
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update(resources.files("openvocab.world").joinpath(name).read_bytes())
    digest.update(f"{package_versions()}, numpy {np.__version__}, {cv2.__version__}".encode())
    return digest.hexdigest()


def open_world(
    split: str = "val",
    count: int | None = None,
    *,
    size: int = SIZE,
    data_root: str | Path | None = None,
) -> LabelledSet:
    """Return a split of the world, after drawing the scenes that are not in the cache.

    "train" holds seen names only, in pictures and vocabulary. Files are kept for each version of
    the world; see `world_version` and `default_cache_dir`.

    Args:
        split: "train", "tune" or "val".
        count: number of scenes; None: the number in `COUNTS`. Scene i is the same for every count.
        size: length of the sides in pixels.
        data_root: folder for the files if `OPENVOCAB_CACHE` is set to nothing; None: see
            `data_root_of`.

    Raises:
        InputError: split, count or size make no sense, or the pictograms are not installed.
    """
    if split not in COUNTS:
        raise InputError(f"world has no split {split!r} with masks; it has {', '.join(COUNTS)}")
    count = COUNTS[split] if count is None else count
    if count < 1:
        raise InputError(f"the world cannot have {count} scenes; ask for at least 1")
    folder = (default_cache_dir() or data_root_of(data_root)) / "world"
    root = folder / f"{world_version()[:16]}-{size}"
    samples = tuple(_sample(root, split, index) for index in range(count))
    _draw_missing(samples, cast(Split, split), size)
    vocabulary = world_vocabulary(seen_only=split == "train")
    return LabelledSet(SPEC, split, LAYOUT, root, samples, vocabulary)


def resolve_world(name: str, data_root: str | Path | None = None) -> LabelledSet:
    """Return the data set of a name such as "world", "world:tune" or "world:train:20000".

    Raises:
        InputError: see `open_world`.
    """
    _, _, rest = name.partition(":")
    split, _, count = rest.partition(":")
    if count and not count.isdecimal():
        raise InputError(f"{name!r} asks for {count!r} scenes; give a number: world:train:20000")
    return open_world(split or "val", int(count) if count else None, data_root=data_root)


def _sample(root: Path, split: str, index: int) -> Sample:
    stem = f"{index:06d}"
    images, labels = (LAYOUT.fill(folder, split) for folder in (LAYOUT.images, LAYOUT.labels))
    return Sample(stem, root / images / f"{stem}.png", root / labels / f"{stem}.png")


def _draw_missing(samples: tuple[Sample, ...], split: Split, size: int) -> None:
    """Write the missing scenes; processes that do so at the same time write the same bytes."""
    missing = [
        i for i, one in enumerate(samples) if not (one.image.exists() and one.label.exists())
    ]
    for index in tqdm(
        missing, desc="drawing the world", unit="scene", disable=len(missing) < _MANY
    ):
        drawn = scene(index, split, size)
        write_scene(samples[index].image, samples[index].label, drawn.image, drawn.label)
