"""Results as files to download: label map, overlay, JSON, and every format of the export."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from openvocab.errors import InputError
from openvocab.files import atomic_path
from openvocab.formats.regions import result_of
from openvocab.formats.writers import FORMATS, Item, write_format
from openvocab.image import ImageArray
from openvocab.segmenter import Segmentation

_OWN = {"labels": "_labels.png", "overlay": "_overlay.png", "json": ".json"}
CHOICES = (*_OWN, *FORMATS)
USUAL = ("labels", "overlay", "json", "coco", "cutouts")


def write_files(
    image: ImageArray,
    results: Iterable[tuple[str, Segmentation]],
    formats: Sequence[str],
    folder: Path,
) -> list[Path]:
    """Write results of one image in some formats into a folder, and return the files.

    A format of several files becomes one zip archive.

    Args:
        image: (H, W, 3) uint8, that was segmented.
        results: of this image, each with the beginning of its files' names.
        formats: of `CHOICES`.
        folder: where to write; it is empty.

    Raises:
        InputError: a format is unknown, or cannot hold these names.
    """
    if unknown := [name for name in formats if name not in CHOICES]:
        raise InputError(f"there is no format {unknown[0]!r}; choose from {', '.join(CHOICES)}")
    files = []
    with tempfile.TemporaryDirectory(dir=folder) as hidden:
        photo = Path(hidden, "photo.png")
        Image.fromarray(image).save(photo)
        for stem, found in results:
            item = Item(result_of(found, photo.name), photo.stem, photo, image)
            for name in formats:
                if name in _OWN:
                    files.append(_write_own(image, found, folder / f"{stem}{_OWN[name]}"))
                else:
                    files.append(_export(item, name, folder / f"{stem}_{name}"))
    return files


def label_png(result: Segmentation) -> bytes:
    """Return the label map as the bytes of a PNG, see `Segmentation.save`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "labels.png")
        result.save(path)
        return path.read_bytes()


def _write_own(image: ImageArray, found: Segmentation, path: Path) -> Path:
    if path.name.endswith(_OWN["overlay"]):
        with atomic_path(path) as temporary:
            Image.fromarray(found.overlay(image)).save(temporary)
    else:
        found.save(path)
    return path


def _export(item: Item, name: str, path: Path) -> Path:
    """Write one format to a path, which gets the suffix of its only file, or else of a zip."""
    with tempfile.TemporaryDirectory(dir=path.parent) as hidden:
        target = write_format([item], name, Path(hidden))
        files = sorted(file for file in Path(hidden).rglob("*") if file.is_file())
        if files == [target]:
            return target.rename(path.with_suffix(target.suffix))
        root = target if target.is_dir() else Path(hidden)
        path = path.with_suffix(".zip")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.relative_to(root))
    return path
