"""Results as files to download: label map, overlay, JSON, COCO and cut-outs."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from PIL import Image

from openvocab.files import atomic_path
from openvocab.formats.coco import write_coco
from openvocab.formats.regions import result_of
from openvocab.formats.writers import Item, image_files
from openvocab.image import ImageArray
from openvocab.segmenter import Segmentation


def write_files(image: ImageArray, result: Segmentation, folder: Path, stem: str) -> list[Path]:
    """Write all files of a result into a folder, and return them.

    Args:
        image: (H, W, 3) uint8, that was segmented.
        result: of this image.
        folder: where to write.
        stem: the beginning of each file's name.
    """
    endings = ("_labels.png", "_overlay.png", ".json", "_coco.json", "_cutouts.zip")
    labels, overlay, plain, coco, cutouts = (folder / f"{stem}{ending}" for ending in endings)
    result.save(labels)
    with atomic_path(overlay) as temporary:
        Image.fromarray(result.overlay(image)).save(temporary)
    result.save(plain)
    item = Item(result_of(result, stem), stem, pixels=image)
    with atomic_path(coco) as temporary, temporary.open("w", encoding="utf-8") as file:
        write_coco([item.result], file)
    with atomic_path(cutouts) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for path, content in image_files("cutouts", item):
            archive.writestr(path.name, content)
    return [labels, overlay, plain, coco, cutouts]


def label_png(result: Segmentation) -> bytes:
    """Return the label map as the bytes of a PNG, see `Segmentation.save`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "labels.png")
        result.save(path)
        return path.read_bytes()
