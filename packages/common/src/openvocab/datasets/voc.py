"""PASCAL VOC 2012: 20 classes, 21 with the background, and CAT-Seg's 20b.

Source: SPEC san 9, SPEC ovseg 12; layouts.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from openvocab.datasets.archives import Source
from openvocab.datasets.label_files import read_stored
from openvocab.datasets.preparation import IntArray, LabelMapTask, Tree, table_of
from openvocab.datasets.spec import PLAIN, VOID_8_BIT, DatasetSpec, Layout, read_list
from openvocab.vocabulary import Background, Vocabulary

_FOLDERS = ("VOCdevkit/VOC2012", "VOC2012")
_ROOTS = ("VOCdevkit/", "")
_CLASSES = 20
_SIZES = {"train": (10582, 1464), "val": (1449,)}
_MMSEG = Layout(
    "mmseg",
    images="VOC2012/JPEGImages",
    labels="VOC2012/SegmentationClass",
    roots=_ROOTS,
    split_names=PLAIN,
    listed="VOC2012/ImageSets/Segmentation/{split}.txt",
)


def voc_20b(layout: Layout) -> Vocabulary:
    """Return CAT-Seg's 59 prompts: the 20 classes, then the 39 others of Pascal Context.

    Labels from 20 on are the background. Source: layouts.md, metric conventions.
    """
    own = Vocabulary.load("voc-20").names
    others = Vocabulary.load("ovseg-pascal-context-59").names[_CLASSES:]
    return Vocabulary((*own, *others), background=Background.remap(_CLASSES))


VOC_20 = DatasetSpec(
    name="voc-20",
    made="ovseg",
    title="PASCAL VOC 2012, 20 classes",
    vocabulary="voc-20",
    sizes=_SIZES,
    sources=("voc-2012", "voc-aug"),
    siblings=("voc-21",),
    layouts=(
        Layout(
            "ovseg",  # CAT-Seg and SED, too
            images="VOCdevkit/VOC2012/JPEGImages",
            labels="VOCdevkit/VOC2012/annotations_detectron2/{split}",
            split_names=PLAIN,
        ),
        Layout(
            "san",
            images="VOC2012/JPEGImages",
            labels="VOC2012/annotations_detectron2/{split}",
            split_names=PLAIN,
        ),
        Layout(
            "fc-clip",
            images="pascal_voc_d2/images/{split}",
            labels="pascal_voc_d2/annotations_pascal20/{split}",
        ),
        Layout(
            "maft+",
            images="VOC2012/images_detectron2/{split}",
            labels="VOC2012/annotations_ovs/{split}",
            roots=_ROOTS,
            split_names=PLAIN,
        ),
        replace(_MMSEG, coding="from-one"),
    ),
)

VOC_20B = DatasetSpec(
    name="voc-20b",
    made="cat-seg",
    title="PASCAL VOC 2012, 20 classes and what CAT-Seg counts as background",
    vocabulary="voc-20",
    make_vocabulary=voc_20b,
    sizes=_SIZES,
    sources=("voc-2012", "voc-aug"),
    siblings=("voc-21",),
    layouts=(
        Layout(
            "cat-seg",
            images="VOC2012/JPEGImages",
            labels="VOC2012/annotations_detectron2_bg/{split}",
            roots=_ROOTS,
            split_names=PLAIN,
        ),
    ),
)

VOC_21 = DatasetSpec(
    name="voc-21",
    made="fc-clip",
    title="PASCAL VOC 2012, 20 classes and the background",
    vocabulary="voc-21",
    sizes=_SIZES,
    sources=("voc-2012",),
    layouts=(
        _MMSEG,
        Layout(
            "fc-clip",
            images="pascal_voc_d2/images/{split}",
            labels="pascal_voc_d2/annotations_pascal21/{split}",
        ),
    ),
)


def trees(source: Source, output: Path, splits: tuple[str, ...], route: str) -> Iterator[Tree]:
    """Yield the trees of VOC-20: `SegmentationClassAug - 1`; all-void label maps are left out."""
    table = _table({0: VOID_8_BIT, VOID_8_BIT: VOID_8_BIT}, shift=-1)
    folder = output / "VOCdevkit/VOC2012/annotations_detectron2"
    vocabulary = Vocabulary.load("voc-20")
    for split in splits:
        tasks = _tasks(source, output, split, folder / split, table, skip_void=True)
        yield Tree(folder / split, VOC_20.name, split, vocabulary, tasks)


def trees_20b(source: Source, output: Path, splits: tuple[str, ...], route: str) -> Iterator[Tree]:
    """Yield the trees of VOC-20b: as VOC-20, and the background is label 20."""
    table = _table({0: _CLASSES, VOID_8_BIT: VOID_8_BIT}, shift=-1)
    folder = output / "VOCdevkit/VOC2012/annotations_detectron2_bg"
    vocabulary = voc_20b(VOC_20B.layouts[0])
    for split in splits:
        tasks = _tasks(source, output, split, folder / split, table)
        yield Tree(folder / split, VOC_20B.name, split, vocabulary, tasks)


def trees_21(source: Source, output: Path, splits: tuple[str, ...], route: str) -> Iterator[Tree]:
    """Yield the trees of VOC-21 in FC-CLIP's layout: the values as they are."""
    table = _table({0: 0, VOID_8_BIT: VOID_8_BIT}, shift=0)
    layout = VOC_21.layouts[1]
    for split in splits:
        folder = output / layout.fill(layout.labels, split)
        images = output / layout.fill(layout.images, split)
        tasks = _tasks(source, output, split, folder, table, images=images)
        yield Tree(folder, VOC_21.name, split, Vocabulary.load("voc-21"), tasks)


def _table(others: dict[int, int], shift: int) -> IntArray:
    return table_of({**{k: k + shift for k in range(1, _CLASSES + 1)}, **others})


def _tasks(
    source: Source,
    output: Path,
    split: str,
    folder: Path,
    table: IntArray,
    *,
    skip_void: bool = False,
    images: Path | None = None,
) -> list[LabelMapTask]:
    base = source.path(*_FOLDERS)
    names = read_list(source.path(*_lists(split)))
    # The augmented masks (SBD) hold the official ones, too; a plain VOC has only those.
    labels = source.optional(
        "SegmentationClassAug", *(f"{below}/SegmentationClassAug" for below in _FOLDERS)
    )
    labels = labels or base / "SegmentationClass"
    target = images or output / "VOCdevkit/VOC2012/JPEGImages"
    return [
        LabelMapTask(
            folder / f"{name}.png",
            read_stored,
            (labels / f"{name}.png",),
            table,
            image=(base / "JPEGImages" / f"{name}.jpg", target / f"{name}.jpg"),
            skip_void=skip_void,
        )
        for name in names
    ]


def _lists(split: str) -> tuple[str, ...]:
    """Return the places of a split's list: the augmented training list of 10,582 before 1,464."""
    official = [f"{below}/ImageSets/Segmentation/{split}.txt" for below in _FOLDERS]
    if split == "val":
        return tuple(official)
    augmented = [f"{below}/ImageSets/Segmentation/trainaug.txt" for below in _FOLDERS]
    return ("train.txt", *(f"{below}/train.txt" for below in _FOLDERS), *augmented, *official)
