"""Pascal Context: the 59 frequent classes, and 60 with the background.

Its label trees come by three routes (`pascal_context_masks`) and in two orders: SAN's is
alphabetical, OVSeg's has the 20 classes of VOC first. Which order the trees of CAT-Seg and MAFT+
have is not in the specifications; they are read like OVSeg's, whose folders they share, and the
doctor checks.
Source: SPEC san 9, SPEC ovseg 12; layouts.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from openvocab.datasets.archives import Source
from openvocab.datasets.pascal_context_masks import (
    full_names,
    image_of,
    numbers_of,
    readers,
)
from openvocab.datasets.preparation import IntArray, LabelMapTask, Tree, table_of
from openvocab.datasets.spec import PLAIN, VOID_8_BIT, DatasetSpec, Layout
from openvocab.vocabulary import BACKGROUND_NAME, Background, Vocabulary

_ALPHABETICAL, _VOC_FIRST = "pascal-context-59", "ovseg-pascal-context-59"
_ROOTS = ("VOCdevkit/", "")
_SIZES = {"train": (4998,), "val": (5104, 5105)}
_SAN = Layout(
    "san", images="pcontext/{split}/image", labels="pcontext/{split}/label", split_names=PLAIN
)
_OVSEG = Layout(
    "ovseg",  # CAT-Seg and SED, too
    images="VOC2010/JPEGImages",
    labels="VOC2010/annotations_detectron2/pc59_{split}",
    roots=_ROOTS,
    split_names=PLAIN,
    vocabulary=_VOC_FIRST,
)
_FC_CLIP = Layout(
    "fc-clip",
    images="pascal_ctx_d2/images/{split}",
    labels="pascal_ctx_d2/annotations_ctx59/{split}",
)
_MAFT = replace(
    _OVSEG,
    name="maft+",
    images="VOC2010/images",
    labels="VOC2010/annotations_detectron2_ovs/pc59_{split}",
)
_MMSEG = Layout(
    "mmseg",
    images="VOC2010/JPEGImages",
    labels="VOC2010/SegmentationClassContext",
    roots=_ROOTS,
    split_names=PLAIN,
    listed="VOC2010/ImageSets/SegmentationContext/{split}.txt",
)


def vocabulary_with_background(layout: Layout) -> Vocabulary:
    """Return the 60 names of a layout: the background, and its 59 in their order."""
    names = Vocabulary.load(layout.vocabulary or _ALPHABETICAL)
    if layout.vocabulary is None:
        return Vocabulary.load("pascal-context-60")
    return Vocabulary(
        (BACKGROUND_NAME, *names.names), background=Background.names((BACKGROUND_NAME,))
    )


PASCAL_CONTEXT_59 = DatasetSpec(
    name="pascal-context-59",
    made="ovseg",
    title="Pascal Context, 59 classes",
    vocabulary=_ALPHABETICAL,
    sizes=_SIZES,
    sources=("voc-2010", "pascal-context", "pascal-context-detail"),
    siblings=("pascal-context-459",),
    layouts=(_OVSEG, _SAN, _FC_CLIP, _MAFT, replace(_MMSEG, coding="from-one")),
)

PASCAL_CONTEXT_60 = DatasetSpec(
    name="pascal-context-60",
    made="mmseg",
    title="Pascal Context, 59 classes and the background",
    vocabulary="pascal-context-60",
    make_vocabulary=vocabulary_with_background,
    sizes=_SIZES,
    sources=PASCAL_CONTEXT_59.sources,
    siblings=("pascal-context-459",),
    layouts=(
        _MMSEG,
        *(replace(one, coding="void-is-background") for one in (_SAN, _OVSEG, _FC_CLIP, _MAFT)),
    ),
)


def trees(source: Source, output: Path, splits: tuple[str, ...], route: str) -> Iterator[Tree]:
    """Yield the trees of the 59 classes: Detail's route in SAN's layout, the others in OVSeg's."""
    route = route or "mat"
    layout = _SAN if route == "detail" else _OVSEG
    below = "" if route == "detail" else "VOCdevkit/"
    vocabulary = Vocabulary.load(layout.vocabulary or _ALPHABETICAL)
    for split in splits:
        folder = output / below / layout.fill(layout.labels, split)
        images = output / below / layout.fill(layout.images, split)
        tasks = _tasks(source, split, route, folder, images, label_table(vocabulary, VOID_8_BIT, 0))
        yield Tree(folder, PASCAL_CONTEXT_59.name, split, vocabulary, tasks, route)


def trees_60(source: Source, output: Path, splits: tuple[str, ...], route: str) -> Iterator[Tree]:
    """Yield the trees of the 60 classes in the layout of mmseg: background 0, then 1..59."""
    route = route or "detail"
    base = output / "VOCdevkit"
    table = label_table(Vocabulary.load(_ALPHABETICAL), 0, 1)
    for split in splits:
        folder = base / _MMSEG.labels
        tasks = _tasks(source, split, route, folder, base / _MMSEG.images, table)
        listing = base / str(_MMSEG.listed).format(split=split)
        names = "".join(f"{task.target.stem}\n" for task in tasks)
        vocabulary = Vocabulary.load("pascal-context-60")
        yield Tree(
            folder, PASCAL_CONTEXT_60.name, split, vocabulary, tasks, route, {listing: names}
        )


def label_table(vocabulary: Vocabulary, other: int, first: int) -> IntArray:
    """Return the label of each of the 459 numbers and 0; `other` where it is none of the 59."""
    labels = dict.fromkeys(range(len(full_names()) + 1), other)
    numbers = numbers_of(vocabulary.names)
    return table_of(labels | {n: label for label, n in enumerate(numbers, first)})


def _tasks(
    source: Source, split: str, route: str, folder: Path, images: Path, table: IntArray
) -> list[LabelMapTask]:
    return [
        LabelMapTask(
            folder / f"{stem}.png",
            read,
            arguments,
            table,
            beyond=int(table[0]),
            image=(image_of(source, stem), images / f"{stem}.jpg"),
        )
        for stem, read, arguments in readers(source, split, route)
    ]
