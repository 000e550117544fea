"""ADE20K scene parsing, 150 classes (the challenge data of 2016).

Source: SPEC san 9, SPEC ovseg 12; layouts.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from openvocab.datasets.archives import Source
from openvocab.datasets.label_files import read_stored
from openvocab.datasets.preparation import LabelMapTask, Tree
from openvocab.datasets.spec import VOID_8_BIT, DatasetSpec, Layout
from openvocab.vocabulary import Vocabulary

FOLDER = "ADEChallengeData2016"
_ROOTS = ("", "ade/")  # MAFT+ and the mmseg family have a folder more

ADE20K_150 = DatasetSpec(
    name="ade20k-150",
    made="detectron2",
    title="ADE20K-150",
    vocabulary="ade20k-150",
    sizes={"train": (20210,), "val": (2000,)},
    sources=("ade20k-2016",),
    siblings=("ade20k-150",),
    layouts=(
        Layout(
            "detectron2",
            images=f"{FOLDER}/images/{{split}}",
            labels=f"{FOLDER}/annotations_detectron2/{{split}}",
            roots=_ROOTS,
        ),
        Layout(
            "mmseg",
            images=f"{FOLDER}/images/{{split}}",
            labels=f"{FOLDER}/annotations/{{split}}",
            roots=_ROOTS,
            coding="from-one",
        ),
    ),
)


def trees(source: Source, output: Path, splits: tuple[str, ...], route: str) -> Iterator[Tree]:
    """Yield the trees to make: `annotations - 1`, where 0 becomes 255."""
    vocabulary = Vocabulary.load(ADE20K_150.vocabulary)
    table = np.concatenate([[VOID_8_BIT], np.arange(len(vocabulary))]).astype(np.int32)
    for split in splits:
        word = ADE20K_150.layouts[0].split_names[split]
        labels = source.path(f"{FOLDER}/annotations/{word}")
        images = source.path(f"{FOLDER}/images/{word}")
        folder = output / FOLDER / "annotations_detectron2" / word
        tasks = [
            LabelMapTask(
                folder / path.name,
                read_stored,
                (path,),
                table,
                image=(
                    images / f"{path.stem}.jpg",
                    output / FOLDER / "images" / word / f"{path.stem}.jpg",
                ),
            )
            for path in sorted(labels.glob("*.png"))
        ]
        yield Tree(folder, ADE20K_150.name, split, vocabulary, tasks)
