"""Pascal Context with all 459 classes.

Of these, 114 have no ground truth in the validation images, so the conventions of mean IoU differ
here as nowhere else. Source: SPEC san 9, SPEC ovseg 12; layouts.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from openvocab.datasets.archives import Source
from openvocab.datasets.pascal_context_masks import image_of, readers
from openvocab.datasets.preparation import LabelMapTask, Tree
from openvocab.datasets.spec import PLAIN, VOID_16_BIT, DatasetSpec, Layout
from openvocab.vocabulary import Vocabulary

_ROOTS = ("VOCdevkit/", "")
_OVSEG = Layout(
    "ovseg",  # CAT-Seg and the mmseg family, too
    images="VOC2010/JPEGImages",
    labels="VOC2010/annotations_detectron2/pc459_{split}",
    roots=_ROOTS,
    split_names=PLAIN,
    label_end=".tif",
)

PASCAL_CONTEXT_459 = DatasetSpec(
    name="pascal-context-459",
    made="ovseg",
    title="Pascal Context, 459 classes",
    vocabulary="pascal-context-459",
    sizes={"train": (4998,), "val": (5104, 5105)},
    ignore=(459, VOID_16_BIT),  # CAT-Seg writes 459 where the others write 65535
    sources=("voc-2010", "pascal-context"),
    siblings=("pascal-context-59",),
    layouts=(
        _OVSEG,
        Layout(
            "san",
            images="pcontext_full/{split}/image",
            labels="pcontext_full/{split}/label",
            split_names=PLAIN,
            label_end=".tif",
        ),
        Layout(
            "fc-clip",
            images="pascal_ctx_d2/images/{split}",
            labels="pascal_ctx_d2/annotations_ctx459/{split}",
            label_end=".tif",
        ),
        Layout(
            "official",  # the .mat files as downloaded
            images="VOCdevkit/VOC2010/JPEGImages",
            labels="trainval",
            split_names=PLAIN,
            coding="from-one",
            label_end=".mat",
            listed="pascalcontext_{split}.txt",
        ),
        replace(
            _OVSEG,
            name="maft+",
            images="VOC2010/images",
            labels="VOC2010/annotations_detectron2_ovs/pc459_{split}",
        ),
    ),
)


def trees(source: Source, output: Path, splits: tuple[str, ...], route: str) -> Iterator[Tree]:
    """Yield the trees to make: `LabelMap - 1` in 16 bits, so that 0 becomes 65535."""
    vocabulary = Vocabulary.load(PASCAL_CONTEXT_459.vocabulary)
    table = np.concatenate([[VOID_16_BIT], np.arange(len(vocabulary))]).astype(np.int32)
    for split in splits:
        folder = output / "VOCdevkit" / _OVSEG.fill(_OVSEG.labels, split)
        images = output / "VOCdevkit" / _OVSEG.images
        tasks = [
            LabelMapTask(
                folder / f"{stem}.tif",
                read,
                arguments,
                table,
                image=(image_of(source, stem), images / f"{stem}.jpg"),
            )
            for stem, read, arguments in readers(source, split, route or "mat")
        ]
        yield Tree(folder, PASCAL_CONTEXT_459.name, split, vocabulary, tasks)
