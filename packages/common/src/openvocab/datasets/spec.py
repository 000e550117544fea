"""The description of a data set apart from its files: names, void values, sizes and layouts."""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from openvocab.reading.files import LIST_BYTES, read_text
from openvocab.reading.json_files import packaged_json
from openvocab.vocabulary import Vocabulary

# How stored values become labels:
#   "labels": they are the labels;  "from-one": 0 is void and class k is stored as k + 1;
#   "void-is-background": void becomes class 0 and class k becomes k + 1.
Coding = Literal["labels", "from-one", "void-is-background"]

VOID_8_BIT = 255
VOID_16_BIT = 65535
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Layout:
    """One arrangement of a data set on a disk.

    `{split}` in a path stands for the layout's own name of the split.

    Args:
        name: who uses it, such as "detectron2".
        images: folder of images below one of `roots`.
        labels: folder of label maps below the same.
        roots: folders below the data root in which repositories that agree on the rest put it.
        split_names: the layout's own name for each split that it has.
        coding: rule by which stored values become labels.
        label_end: ending of a label map's name behind the part that it shares with its image.
        image_end: the same for the image; "" accepts every image suffix.
        listed: file with one common name on each line; without it all label maps count.
        vocabulary: key of the vocabulary whose order the labels have, where it is not the set's.
        nested: label maps lie in folders below `labels`, such as one for each city.
    """

    name: str
    images: str
    labels: str
    roots: tuple[str, ...] = ("",)
    split_names: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({"train": "training", "val": "validation"})
    )
    coding: Coding = "labels"
    label_end: str = ".png"
    image_end: str = ""
    listed: str | None = None
    vocabulary: str | None = None
    nested: bool = False

    def fill(self, template: str, split: str) -> str:
        """Return a path of the layout with its own name for the split."""
        return template.format(split=self.split_names[split])

    @property
    def shares_images(self) -> bool:
        """Return whether one folder holds the images of all splits, many without a label map."""
        return "{split}" not in self.images or self.listed is not None


@dataclass(frozen=True)
class DatasetSpec:
    """The description of a known data set.

    Args:
        name: canonical, such as "ade20k-150".
        title: title for people.
        vocabulary: key of the vocabulary of its labels, see `Vocabulary.load`.
        layouts: layouts in the order in which they are looked for.
        sizes: numbers of images that count as complete for each split, in the order of preference.
        ignore: the void values of labels; class labels are `0..K-1`.
        sources: keys in `data/sources.json` of what to get for the preparation.
        make_vocabulary: function that makes the vocabulary of a layout which is none of the
            published ones.
        made: the layout that our preparation writes, in the first of its roots.
        siblings: sets with the same images and shared names, to hold the order of labels against.
    """

    name: str
    title: str
    vocabulary: str
    layouts: tuple[Layout, ...]
    sizes: Mapping[str, tuple[int, ...]]
    ignore: tuple[int, ...] = (VOID_8_BIT,)
    sources: tuple[str, ...] = ()
    make_vocabulary: Callable[[Layout], Vocabulary] | None = None
    siblings: tuple[str, ...] = ()
    made: str = ""

    def vocabulary_of(self, layout: Layout) -> Vocabulary:
        """Return the names of the labels in a layout."""
        if self.make_vocabulary is not None:
            return self.make_vocabulary(layout)
        return Vocabulary.load(layout.vocabulary or self.vocabulary)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that at least one layout has."""
        return tuple(s for s in SPLITS if any(s in layout.split_names for layout in self.layouts))


# The same words under the same folder names, for layouts that name splits as we do.
def _read_only(content: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(content)


def _parts_of(proxy: MappingProxyType[Any, Any]) -> tuple[Any, tuple[dict[Any, Any]]]:
    return _read_only, (dict(proxy),)


# Python cannot send read-only mappings to another process, as a check with several processes must.
copyreg.pickle(MappingProxyType, _parts_of)
PLAIN = MappingProxyType({"train": "train", "val": "val"})
YEAR_2017 = MappingProxyType({"train": "train2017", "val": "val2017"})


def decode(values: NDArray[Any], coding: Coding, void: int = VOID_8_BIT) -> NDArray[np.int32]:
    """Turn stored values into labels.

    Args:
        values: `(H, W)` integers as stored.
        coding: rule by which the values are stored.
        void: the value that void has where the coding makes or reads one.

    Returns:
        `(H, W)` labels, void as `void` (or, unchanged, as any other void value of the set).
    """
    labels = values.astype(np.int32)
    if coding == "from-one":
        labels = np.where(labels == 0, void, np.where(labels == void, void, labels - 1))
    elif coding == "void-is-background":
        labels = np.where(labels == void, 0, labels + 1)
    return np.asarray(labels, dtype=np.int32)


def read_data(name: str) -> Any:
    """Return the content of a JSON file in `openvocab/datasets/data`."""
    return packaged_json("openvocab.datasets", "data", name)


def read_list(path: Path) -> list[str]:
    """Read the names in a split list, the first word of each line.

    Raises:
        InputError: the file cannot be read.
    """
    lines = read_text(path, "split list", most_bytes=LIST_BYTES).splitlines()
    return [Path(line.split()[0]).stem for line in lines if line.strip()]
