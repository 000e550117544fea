"""COCO-Stuff, 171 classes: the pixel maps of things and stuff on COCO 2017.

Source: SPEC san 9, SPEC ovseg 12; layouts.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from openvocab.datasets.archives import Source
from openvocab.datasets.label_files import read_stored
from openvocab.datasets.preparation import LabelMapTask, Tree, table_of
from openvocab.datasets.spec import VOID_8_BIT, YEAR_2017, DatasetSpec, Layout, read_data
from openvocab.vocabulary import Vocabulary

COCO_STUFF_171 = DatasetSpec(
    name="coco-stuff-171",
    made="detectron2",
    title="COCO-Stuff-171",
    vocabulary="coco-stuff-171",
    sizes={"train": (118287,), "val": (5000,)},
    sources=("coco-2017", "stuffthingmaps"),
    siblings=("coco-object-81",),
    layouts=(
        Layout(
            "detectron2",  # OVSeg, SAN, FC-CLIP, MAFT+
            images="coco/{split}",
            labels="coco/stuffthingmaps_detectron2/{split}",
            split_names=YEAR_2017,
        ),
        Layout(
            "cat-seg",
            images="coco-stuff/images/{split}",
            labels="coco-stuff/annotations_detectron2/{split}",
            split_names=YEAR_2017,
        ),
        Layout(
            "mmseg",
            images="coco_stuff164k/images/{split}",
            labels="coco_stuff164k/annotations/{split}",
            split_names=YEAR_2017,
            label_end="_labelTrainIds.png",
        ),
    ),
)


def category_ids() -> list[int]:
    """Return COCO's category id of each label, 1..182."""
    ids: list[int] = read_data("coco_stuff_ids.json")
    return ids


def trees(source: Source, output: Path, splits: tuple[str, ...], route: str) -> Iterator[Tree]:
    """Yield the trees to make: pixels hold the COCO id - 1; all-void label maps are left out."""
    table = table_of(
        {official - 1: label for label, official in enumerate(category_ids())}, fill=VOID_8_BIT
    )
    vocabulary = Vocabulary.load(COCO_STUFF_171.vocabulary)
    for split in splits:
        word = YEAR_2017[split]
        labels, images = pixel_maps(source, word), coco_images(source, word)
        folder = output / "coco/stuffthingmaps_detectron2" / word
        tasks = [
            LabelMapTask(
                folder / path.name,
                read_stored,
                (path,),
                table,
                beyond=VOID_8_BIT,
                image=(
                    images / f"{path.stem}.jpg",
                    output / "coco" / word / f"{path.stem}.jpg",
                ),
                skip_void=True,
            )
            for path in sorted(labels.glob("*.png"))
            if "_" not in path.stem  # other tools put their trees into the same folder
        ]
        yield Tree(folder, COCO_STUFF_171.name, split, vocabulary, tasks)


def pixel_maps(source: Source, word: str) -> Path:
    """Return the folder of the official pixel maps of a split, "train2017" or "val2017"."""
    below = (f"stuffthingmaps/{word}", f"coco/stuffthingmaps/{word}", f"annotations/{word}")
    archive = source.optional(*below)
    if archive is not None:
        return archive
    # The archive has the folders without one around them, where images may lie as well.
    for root in source.roots:
        if next((root / word).glob("*.png"), None) is not None:
            return root / word
    return source.path(*below)


def coco_images(source: Source, word: str) -> Path:
    """Return the folder of the images of a split."""
    for root in source.roots:
        for below in (word, f"coco/{word}", f"images/{word}"):
            if next((root / below).glob("*.jpg"), None) is not None:
                return root / below
    return source.path(f"{word}/*.jpg")
