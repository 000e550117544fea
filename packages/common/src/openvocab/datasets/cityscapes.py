"""Cityscapes, the 19 evaluated classes.

Source: Cordts et al. 2016 (ids and train ids of the official label definition); layouts.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from openvocab.datasets.archives import Source
from openvocab.datasets.label_files import read_stored
from openvocab.datasets.preparation import LabelMapTask, Tree, table_of
from openvocab.datasets.spec import PLAIN, VOID_8_BIT, DatasetSpec, Layout
from openvocab.vocabulary import Vocabulary

# The official id of each train id.
IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_LAST_ID = 33
_IMAGE, _IDS, _TRAIN_IDS = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"

CITYSCAPES_19 = DatasetSpec(
    name="cityscapes-19",
    made="official",
    title="Cityscapes",
    vocabulary="cityscapes-19",
    sizes={"train": (2975,), "val": (500,)},
    sources=("cityscapes",),
    layouts=(
        Layout(
            "official",  # FC-CLIP and the mmseg family
            images="leftImg8bit/{split}",
            labels="gtFine/{split}",
            roots=("cityscapes/", ""),
            split_names=PLAIN,
            image_end=_IMAGE,
            label_end=_TRAIN_IDS,
            nested=True,
        ),
    ),
)


def trees(source: Source, output: Path, splits: tuple[str, ...], route: str) -> Iterator[Tree]:
    """Yield the trees to make: official ids to train ids, all others 255."""
    table = table_of(
        {
            **dict.fromkeys(range(_LAST_ID + 1), VOID_8_BIT),
            **{official: label for label, official in enumerate(IDS)},
            VOID_8_BIT: VOID_8_BIT,  # license plates are -1
        }
    )
    vocabulary = Vocabulary.load(CITYSCAPES_19.vocabulary)
    for split in splits:
        labels = source.path(f"gtFine/{split}", f"cityscapes/gtFine/{split}")
        images = source.path(f"leftImg8bit/{split}", f"cityscapes/leftImg8bit/{split}")
        folder = output / "cityscapes/gtFine" / split
        tasks = []
        for path in sorted(labels.rglob(f"*{_IDS}")):
            stem = path.relative_to(labels).as_posix().removesuffix(_IDS)
            image = output / "cityscapes/leftImg8bit" / split / f"{stem}{_IMAGE}"
            tasks.append(
                LabelMapTask(
                    folder / f"{stem}{_TRAIN_IDS}",
                    read_stored,
                    (path,),
                    table,
                    image=(images / f"{stem}{_IMAGE}", image),
                )
            )
        yield Tree(folder, CITYSCAPES_19.name, split, vocabulary, tasks)
