"""COCO-Object: the 80 things of COCO with and without the background.

Source: SPEC car 10; layouts.md. That the label maps come from the pixel maps of COCO-Stuff, with
all stuff as background and unlabelled pixels as void, is our choice: the specifications give no
rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from openvocab.datasets.archives import Source
from openvocab.datasets.coco_stuff import category_ids, coco_images, pixel_maps
from openvocab.datasets.label_files import read_stored
from openvocab.datasets.preparation import LabelMapTask, Tree, table_of
from openvocab.datasets.spec import VOID_8_BIT, YEAR_2017, DatasetSpec, Layout
from openvocab.vocabulary import Vocabulary

_THINGS = 80
_END = "_instanceTrainIds.png"
_LAYOUT = Layout(
    "mmseg",
    images="images/{split}",
    labels="annotations/{split}",
    roots=("coco_object/", "coco_stuff164k/", "coco/"),
    split_names=YEAR_2017,
    label_end=_END,
)

COCO_OBJECT_81 = DatasetSpec(
    name="coco-object-81",
    made="mmseg",
    title="COCO-Object, 80 classes and the background",
    vocabulary="coco-object-81",
    sizes={"train": (118287,), "val": (5000,)},
    sources=("coco-2017", "stuffthingmaps"),
    layouts=(_LAYOUT,),
)

COCO_OBJECT_80 = DatasetSpec(
    name="coco-object-80",
    made="mmseg",
    title="COCO-Object, 80 classes",
    vocabulary="coco-object-80",
    sizes=COCO_OBJECT_81.sizes,
    sources=COCO_OBJECT_81.sources,
    layouts=(replace(_LAYOUT, coding="from-one"),),
)


def trees(source: Source, output: Path, splits: tuple[str, ...], route: str) -> Iterator[Tree]:
    """Yield the trees to make: things 1..80, stuff 0, unlabelled 255."""
    ids = category_ids()
    stuff = dict.fromkeys(range(max(ids)), 0)
    things = {official - 1: label + 1 for label, official in enumerate(ids[:_THINGS])}
    table = table_of({**stuff, **things, VOID_8_BIT: VOID_8_BIT})
    vocabulary = Vocabulary.load(COCO_OBJECT_81.vocabulary)
    for split in splits:
        word = YEAR_2017[split]
        labels, images = pixel_maps(source, word), coco_images(source, word)
        folder = output / "coco_object/annotations" / word
        tasks = [
            LabelMapTask(
                folder / f"{path.stem}{_END}",
                read_stored,
                (path,),
                table,
                image=(
                    images / f"{path.stem}.jpg",
                    output / "coco_object/images" / word / f"{path.stem}.jpg",
                ),
            )
            for path in sorted(labels.glob("*.png"))
            if "_" not in path.stem  # other tools put their trees into the same folder
        ]
        yield Tree(folder, COCO_OBJECT_81.name, split, vocabulary, tasks)
