"""The three sources of Pascal Context's labels, all read to one numbering.

The numbering is that of the 459 names, from 1 on in alphabetical order; 0 is no label. Source:
SPEC ovseg 12 (.mat), SPEC san 9 (Detail's JSON), layouts.md (polygons painted in file order). By
which rule CAT-Seg fills polygons is in none of them; here it is COCO's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openvocab.datasets.archives import Source
from openvocab.datasets.label_files import IntArray, read_mat
from openvocab.datasets.polygons import segment_mask
from openvocab.datasets.spec import read_list
from openvocab.errors import InputError
from openvocab.image import read_image
from openvocab.reading.files import LIST_BYTES, read_text
from openvocab.reading.json_files import read_json_file
from openvocab.vocabulary import Vocabulary

FOLDERS = ("VOCdevkit/VOC2010", "VOC2010")
ROUTES = {
    "mat": "LabelMap of the official .mat files (OVSeg)",
    "detail": "masks of the Detail API's trainval_merged.json (SAN)",
    "polygons": "JSON polygons painted in file order (CAT-Seg)",
}
_MAT_FOLDERS = ("trainval", "pascal-context/trainval", *(f"{f}/trainval" for f in FOLDERS))
_JSON_FILES = {
    "detail": ("trainval_merged.json", *(f"{f}/trainval_merged.json" for f in FOLDERS)),
    "polygons": (
        "pascal_context_{split}.json",
        *(f"{f}/pascal_context_{{split}}.json" for f in FOLDERS),
        *(f"{f}/annotations/pascal_context_{{split}}.json" for f in FOLDERS),
    ),
}
# What the JSON files call the parts of COCO's format; Detail's are the second ones.
_IMAGE_ID, _ANNOTATIONS = ("id", "image_id"), ("annotations", "annos_segmentation")
_CATEGORY_ID = ("id", "category_id")
_SYNONYMS = {"diningtable": "table"}
_DAMAGE = (OSError, ValueError, TypeError, KeyError)


class Mask(NamedTuple):
    """An annotation: the number of its name and a run-length code or polygons."""

    number: int
    segmentation: Any


def full_names() -> tuple[str, ...]:
    """Return the 459 names; number `i + 1` is name `i`."""
    return Vocabulary.load("pascal-context-459").names


def numbers_of(names: Sequence[str]) -> list[int]:
    """Return the number of each name among the 459."""
    numbers = {name: number for number, name in enumerate(full_names(), 1)}
    return [numbers[_SYNONYMS.get(name, name)] for name in names]


def readers(
    source: Source, split: str, route: str
) -> list[tuple[str, Callable[..., IntArray], tuple[Any, ...]]]:
    """Return what reads each image of a split: (stem, function, arguments).

    Raises:
        InputError: the route is not known, or its files are missing or damaged.
    """
    if route == "mat":
        folder = source.path(*_MAT_FOLDERS)
        numbers = _renumbering(source)
        return [
            (stem, read_renumbered, (folder / f"{stem}.mat", numbers))
            for stem in _stems(source, split)
        ]
    if route in _JSON_FILES:
        path = source.path(*(name.format(split=split) for name in _JSON_FILES[route]))
        stems = set(_stems(source, split))
        images = source.path(*(f"{folder}/JPEGImages" for folder in FOLDERS))
        found = [(s, masks, size) for s, masks, size in _read_json(path) if s in stems]
        return [(stem, paint, (images / f"{stem}.jpg", masks, size)) for stem, masks, size in found]
    raise InputError(f"there is no route {route!r}; known are {', '.join(ROUTES)}")


def image_of(source: Source, stem: str) -> Path:
    """Return where the photograph of a stem is."""
    return source.path(*(f"{folder}/JPEGImages" for folder in FOLDERS)) / f"{stem}.jpg"


def read_renumbered(path: Path, numbers: Mapping[int, int] | None) -> IntArray:
    """Read a .mat file whose `labels.txt` may number the names otherwise, `(H, W)`.

    Raises:
        InputError: the file cannot be read.
    """
    values = read_mat(path)
    if numbers is None:
        return values
    table = np.arange(max(int(values.max(initial=0)), *numbers) + 1, dtype=np.int32)
    table[list(numbers)] = list(numbers.values())
    return np.asarray(table[values], dtype=np.int32)


def paint(image: Path, masks: Sequence[Mask], size: tuple[int, int] | None) -> IntArray:
    """Paint masks in file order, later ones over earlier ones, `(H, W)`.

    Args:
        image: the entry of the image, for its size where the JSON does not give one.
        masks: run-length codes, or polygons as lists of x, y.
        size: (height, width).
    """
    height, width = size or read_image(image).shape[:2]
    labels = np.zeros((height, width), dtype=np.int32)
    for number, segmentation in masks:
        labels[segment_mask(segmentation, (height, width))] = number
    return labels


def _stems(source: Source, split: str) -> list[str]:
    """Return the names of a split: the set's own list, or VOC 2010's of what has a .mat file."""
    name = f"pascalcontext_{split}.txt"
    own = source.optional(
        name,
        *(f"{f}/{name}" for f in FOLDERS),
        *(f"{m}/{name}" for m in _MAT_FOLDERS),
        *(f"{f}/ImageSets/SegmentationContext/{split}.txt" for f in FOLDERS),
    )
    if own is not None:
        return read_list(own)
    folder = source.path(*_MAT_FOLDERS)
    listed = read_list(source.path(*(f"{f}/ImageSets/Main/{split}.txt" for f in FOLDERS)))
    return [stem for stem in listed if (folder / f"{stem}.mat").exists()]


def _renumbering(source: Source) -> dict[int, int] | None:
    """Return our number for each of `labels.txt`, or None if they are the same."""
    path = source.optional(
        "labels.txt",
        *(f"{m}/labels.txt" for m in _MAT_FOLDERS),
        *(f"{f}/labels.txt" for f in FOLDERS),
    )
    if path is None:
        return None
    numbers = {}
    ours = {name: number for number, name in enumerate(full_names(), 1)}
    for line in read_text(path, "list of classes", most_bytes=LIST_BYTES).splitlines():
        parts = re.fullmatch(r"\s*(\d+)\s*:\s*(.*?)\s*", line)
        if parts is None:
            continue
        if parts[2] not in ours:
            raise InputError(
                f"{path} names {parts[2]!r}, which is none of the 459 classes; fetch it again"
            )
        numbers[int(parts[1])] = ours[parts[2]]
    return numbers if any(k != v for k, v in numbers.items()) else None


def _read_json(path: Path) -> list[tuple[str, list[Mask], tuple[int, int] | None]]:
    """Read (stem, masks, size) of every image of a JSON in COCO's or Detail's format."""
    try:
        content = read_json_file(path, "annotations")
        numbers = _category_numbers(content["categories"])
        masks: dict[Any, list[Mask]] = {}
        for entry in _either(content, _ANNOTATIONS):
            number = numbers.get(entry["category_id"], 0)
            masks.setdefault(entry["image_id"], []).append(Mask(number, entry["segmentation"]))
        return [
            (
                Path(image["file_name"]).stem,
                masks.get(_either(image, _IMAGE_ID), []),
                (image["height"], image["width"]) if "height" in image else None,
            )
            for image in content["images"]
        ]
    except _DAMAGE as error:
        raise InputError(
            f"{path} is not the JSON that was expected ({error!r:.80}): it needs images, "
            f"categories and annotations as in COCO's or the Detail API's format"
        ) from None


def _category_numbers(categories: Sequence[Mapping[str, Any]]) -> dict[Any, int]:
    ours = {name: number for number, name in enumerate(full_names(), 1)}
    numbers = {}
    for category in categories:
        name = str(category["name"]).strip()
        numbers[_either(category, _CATEGORY_ID)] = ours.get(_SYNONYMS.get(name, name), 0)
    if not any(numbers.values()):
        raise ValueError("no category has a name of Pascal Context")
    return numbers


def _either(content: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    for key in keys:
        if key in content:
            return content[key]
    raise KeyError(" or ".join(keys))
