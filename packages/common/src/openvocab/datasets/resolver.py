"""Finding a data set on a disk in any known layout, without moving a file."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from openvocab.datasets.catalog import ALIASES, CATALOG
from openvocab.datasets.labelled_set import DATA_ROOT_VARIABLE, LabelledSet, data_root_of
from openvocab.datasets.samples import Sample
from openvocab.datasets.spec import DatasetSpec, Layout, read_list
from openvocab.errors import InputError
from openvocab.image import IMAGE_SUFFIXES
from openvocab.vocabulary import Vocabulary

_SHOWN = 5  # names in a message


class DataRequest(NamedTuple):
    """The parsed form of a name such as "ade20k-150:train@mmseg" or "ade20k_sem_seg_val".

    Args:
        spec: the data set.
        split: canonical, "train" or "val".
        layout: the layout that must be taken, or None for the first that is there.
        preferred: the layout to look for first.
        vocabulary: key of the spelling that the name stands for, or None for the set's own.
    """

    spec: DatasetSpec
    split: str
    layout: str | None = None
    preferred: str | None = None
    vocabulary: str | None = None


def resolve(name: str, data_root: str | Path | None = None) -> LabelledSet:
    """Find a data set.

    Args:
        name: a name of the catalogue or an alias, with ":train" for the split that is not "val"
            and "@LAYOUT" to insist on a layout; `ade20k-150`, `voc-20:train`, `voc-20@mmseg`;
            or `world`, `world:tune`, `world:train:20000`, which is drawn when it is not there.
        data_root: folder of the data sets; None: `$DETECTRON2_DATASETS`, else `./datasets`.

    Raises:
        InputError: the name is not known, or none of the set's layouts is there.
    """
    if name.partition(":")[0] == "world":
        from openvocab.world.dataset import resolve_world  # it draws with OpenCV

        return resolve_world(name, data_root)
    request = parse_name(name)
    root = data_root_of(data_root)
    found = find_layouts(request, root)
    if not found:
        raise InputError(_not_found(request, root))
    return load_layout(request, *found[0])


def parse_name(name: str) -> DataRequest:
    """Return the data set that a name stands for.

    Raises:
        InputError: the set, its split, or its layout is not known.
    """
    rest, _, layout = name.partition("@")
    known = ALIASES.get(rest)
    if known is not None:
        rest = known["name"]
    key, _, split = rest.partition(":")
    spec = CATALOG.get(key)
    if spec is None:
        near = difflib.get_close_matches(key, [*CATALOG, *ALIASES], n=3, cutoff=0.5) or list(
            CATALOG
        )
        raise InputError(f"data set {key!r} is not known; did you mean {' or '.join(near)}?")
    split = split or "val"
    if split not in spec.splits:
        raise InputError(f"{key} has no split {split!r}; it has {' and '.join(spec.splits)}")
    layouts = [one.name for one in spec.layouts]
    if layout and layout not in layouts:
        raise InputError(
            f"{key} has no layout {layout!r}; known are {', '.join(dict.fromkeys(layouts))}"
        )
    extra = known or {}
    return DataRequest(spec, split, layout or None, extra.get("layout"), extra.get("vocabulary"))


def find_layouts(request: DataRequest, data_root: Path) -> list[tuple[Layout, Path]]:
    """Return the layouts of which both folders are there, the preferred one first."""
    candidates = [
        (layout, data_root / below)
        for layout in request.spec.layouts
        if request.split in layout.split_names and request.layout in (None, layout.name)
        for below in layout.roots
    ]
    candidates.sort(key=lambda pair: pair[0].name != request.preferred)  # stable
    return [pair for pair in candidates if _is_there(*pair, request.split)]


def load_layout(request: DataRequest, layout: Layout, root: Path) -> LabelledSet:
    """Pair the files of a layout by name, and warn about files without a partner.

    Raises:
        InputError: nothing pairs up.
    """
    images_folder = root / layout.fill(layout.images, request.split)
    labels_folder = root / layout.fill(layout.labels, request.split)
    images = _index(images_folder, layout.image_end, layout.nested)
    labels = _index(labels_folder, layout.label_end, layout.nested)
    wanted: set[str] = set(labels)
    left_out: list[str] = []
    if layout.listed is not None:
        listed = read_list(root / layout.fill(layout.listed, request.split))
        left_out += _sentence(set(listed) - labels.keys(), "listed images have no label map")
        wanted &= set(listed)
    left_out += _sentence(wanted - images.keys(), "label maps have no image")
    if not layout.shares_images:
        left_out += _sentence(images.keys() - labels.keys(), "images have no label map")
    common = sorted(wanted & images.keys())
    if not common:
        raise InputError(
            f"no image in {images_folder} ({len(images)} files) has the name of a label map in "
            f"{labels_folder} ({len(labels)} files *{layout.label_end}); check that both come from "
            f"{request.spec.title}"
        )
    for sentence in left_out:
        warnings.warn(f"{request.spec.name}: {sentence}", stacklevel=3)
    samples = tuple(Sample(stem, images[stem], labels[stem]) for stem in common)
    vocabulary = _spelled(request.spec.vocabulary_of(layout), request.vocabulary, layout)
    return LabelledSet(
        request.spec, request.split, layout, root, samples, vocabulary, tuple(left_out)
    )


def _is_there(layout: Layout, root: Path, split: str) -> bool:
    templates = (layout.images, layout.labels, *([layout.listed] if layout.listed else []))
    paths = [root / layout.fill(template, split) for template in templates]
    if not all(path.exists() for path in paths):
        return False
    # Several trees may share a folder and differ in the ends of names; one file is proof enough.
    walk = os.walk(paths[1], followlinks=True)
    return any(name.endswith(layout.label_end) for _, _, names in walk for name in names)


def _index(folder: Path, end: str, nested: bool) -> dict[str, Path]:
    """Return the files of a folder by what stands before `end`, or before an image's suffix."""
    found = {}
    for path in sorted(_files(folder, nested)):
        relative = path.relative_to(folder).as_posix()
        if end and relative.endswith(end):
            found[relative[: -len(end)]] = path
        elif not end and path.suffix.lower() in IMAGE_SUFFIXES:
            found[relative[: -len(path.suffix)]] = path
    return found


def _files(folder: Path, nested: bool) -> Iterable[Path]:
    for current, below, names in os.walk(folder, followlinks=True):
        if not nested:
            below.clear()
        yield from (Path(current, name) for name in names if not name.startswith("."))


def _spelled(vocabulary: Vocabulary, key: str | None, layout: Layout) -> Vocabulary:
    """Return the spelling that an alias stands for, unless the layout has an order of its own."""
    return vocabulary if key is None or layout.vocabulary is not None else Vocabulary.load(key)


def _sentence(names: Iterable[str], what: str) -> list[str]:
    ordered = sorted(names)
    if not ordered:
        return []
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return [f"{len(ordered)} {what} and are left out: {', '.join(ordered[:_SHOWN])}{more}"]


def _not_found(request: DataRequest, root: Path) -> str:
    spec, split = request.spec, request.split
    looked = [
        f"{below}{layout.fill(layout.labels, split)} ({layout.name})"
        for layout in spec.layouts
        if split in layout.split_names and request.layout in (None, layout.name)
        for below in layout.roots
    ]
    return (
        f"{spec.title} ({split}) is not below {root}: no label maps with images in "
        f"{', '.join(looked)}; set ${DATA_ROOT_VARIABLE} or --data-root, or make it with "
        f"'python -m openvocab.prepare {spec.name} --source DIR --output {root}'"
    )
