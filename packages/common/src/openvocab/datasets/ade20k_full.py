"""ADE20K in full, with the 847 classes that occur often enough (the release of January 2021).

Source: SPEC ovseg 12, SPEC san 9; layouts.md. How the longer side is rounded is in neither; here it
is cut to an integer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from openvocab.datasets.archives import Source
from openvocab.datasets.label_files import decode_ids, read_coded
from openvocab.datasets.preparation import IntArray, LabelMapTask, Tree, table_of
from openvocab.datasets.spec import VOID_16_BIT, DatasetSpec, Layout, read_data
from openvocab.errors import InputError
from openvocab.files import atomic_path
from openvocab.image import read_image
from openvocab.reading.pickles import read_plain_pickle
from openvocab.vocabulary import Vocabulary

FOLDER = "ADE20K_2021_17_01"
INDEX = "index_ade20k.pkl"
SHORT_SIDE = 512

ADE20K_847 = DatasetSpec(
    name="ade20k-847",
    made="detectron2",
    title="ADE20K-847",
    vocabulary="ade20k-847",
    sizes={"train": (25574,), "val": (2000,)},
    ignore=(VOID_16_BIT,),
    sources=("ade20k-2021",),
    siblings=("ade20k-150",),
    layouts=(
        Layout(
            "detectron2",
            images=f"{FOLDER}/images_detectron2/{{split}}",
            labels=f"{FOLDER}/annotations_detectron2/{{split}}",
            roots=("", "ade/"),
            label_end=".tif",
        ),
    ),
)


def trees(source: Source, output: Path, splits: tuple[str, ...], route: str) -> Iterator[Tree]:
    """Yield the trees to make: object ids to train ids, the short side at most 512."""
    vocabulary = Vocabulary.load(ADE20K_847.vocabulary)
    ids = read_data("ade20k_full_ids.json")
    table = table_of({object_id: label for label, object_id in enumerate(ids)}, fill=VOID_16_BIT)
    index = source.path(f"{FOLDER}/{INDEX}", INDEX)
    entries = read_index(index)
    for split in splits:
        word = ADE20K_847.layouts[0].split_names[split]
        folder = output / FOLDER / "annotations_detectron2" / word
        images = output / FOLDER / "images_detectron2" / word
        tasks = []
        for below, name in entries:
            if name.split("_")[1] != split:
                continue
            image = source.path(f"{below}/{name}", f"{FOLDER}/{below}/{name}")
            stem = Path(name).stem
            labels = image.with_name(f"{stem}_seg.png")
            target = folder / f"{stem}.tif"
            arguments = (labels, image, images / name)
            tasks.append(LabelMapTask(target, read_shrunk, arguments, table, beyond=VOID_16_BIT))
        yield Tree(folder, ADE20K_847.name, split, vocabulary, tasks)


def read_index(path: Path) -> list[tuple[str, str]]:
    """Read (folder, file name) of every image from the official index.

    Raises:
        InputError: the file is no index, would run code, or names a path outside the folder.
    """
    index = read_plain_pickle(path)
    try:
        pairs = [
            (str(folder), str(name))
            for folder, name in zip(index["folder"], index["filename"], strict=True)
        ]
    except (KeyError, TypeError, ValueError, IndexError):
        raise InputError(
            f"{path} has no lists 'folder' and 'filename' of equal length; expected the index of "
            f"{FOLDER}"
        ) from None
    for folder, name in pairs:
        outside = Path(folder).is_absolute() or ".." in Path(folder, name).parts
        if outside or "/" in name or len(name.split("_")) < 3:
            raise InputError(
                f"{path} names the file {folder}/{name}, which no index has; "
                "fetch the archive again"
            )
    return pairs


def read_shrunk(labels: Path, image: Path, image_target: Path) -> IntArray:
    """Read object ids and write the image, both shrunk until the short side is 512.

    The image is written first, so that a label map is never without it.
    """
    pixels = read_image(image)
    ids = decode_ids(read_coded(labels))
    if ids.shape != pixels.shape[:2]:
        raise InputError(
            f"{labels} has {ids.shape[1]}x{ids.shape[0]} pixels and its image {pixels.shape[1]}x"
            f"{pixels.shape[0]}; fetch the archive again"
        )
    height, width = ids.shape
    scale = SHORT_SIDE / min(height, width)
    if scale < 1:
        size = (
            (SHORT_SIDE, int(height * SHORT_SIDE / width))
            if width < height
            else (int(width * SHORT_SIDE / height), SHORT_SIDE)
        )
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
        # Ids are at most 25 * 256 + 255 and fit what OpenCV resizes.
        ids = cv2.resize(ids.astype(np.uint16), size, interpolation=cv2.INTER_NEAREST)
    if not image_target.exists():
        with atomic_path(image_target) as temporary:
            Image.fromarray(pixels).save(temporary, quality=95, subsampling="4:2:0")
    return ids.astype(np.int32)
