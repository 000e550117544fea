"""Every format of another tool that a run can be written in, for `predict`, `export` and the page.

A format consists of files of each image, which are written as soon as the image is segmented, and
of files of the whole run, such as COCO's one JSON file, which are written when all images are done.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openvocab.errors import InputError
from openvocab.files import atomic_path, atomic_paths, write_text
from openvocab.formats import cvat, yolo
from openvocab.formats.coco import same_names, write_coco
from openvocab.formats.labelme import labelme_file
from openvocab.formats.labelstudio import labeling_config, labelstudio_task
from openvocab.formats.polygons import feature_collection
from openvocab.formats.regions import ImageResult, Region, box_of
from openvocab.image import ImageArray, read_image

_OF_ONE_NAME = re.compile(r"\d{3,}_.*\.png")  # a file in the folder of an image


@dataclass(frozen=True)
class Item:
    """An image of a run, as the formats need it.

    Attributes:
        result: what was found in it.
        name: its name in formats that have no folders, see `FlatNames`.
        path: of the image file; None takes `result.image`.
        pixels: (H, W, 3) uint8 where they are known already.
    """

    result: ImageResult
    name: str
    path: Path | None = None
    pixels: ImageArray | None = None

    def file(self) -> Path:
        """Return the image file.

        Raises:
            InputError: it is not there.
        """
        path = self.path or Path(self.result.image)
        if not path.is_file():
            raise InputError(
                f"the image '{self.result.image}' is not there, and this format needs it; run the "
                "command in the folder in which predict was run"
            )
        return path

    def image(self) -> ImageArray:
        """Return the pixels, (H, W, 3) uint8."""
        return read_image(self.file()) if self.pixels is None else self.pixels


class FlatNames:
    """Gives results a name without folders, which no two results share.

    Upper and lower case count as equal, as they are on many file systems.
    """

    def __init__(self, stems: Iterable[str] = ()) -> None:
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()
        for stem in stems:
            self.name(stem)

    def name(self, stem: str) -> str:
        """Return the name of the result with this stem, always the same one."""
        if stem not in self._names:
            name = stem.replace("/", "__")
            while name.casefold() in self._taken:
                name += "_"
            self._taken.add(name.casefold())
            self._names[stem] = name
        return self._names[stem]


Files = Iterator[tuple[str, bytes]]
"""Paths below the target of a format, with the content of each file."""


@dataclass(frozen=True)
class Format:
    """One format of another tool.

    Attributes:
        help: what is written, and who reads it.
        target: name of the file or folder below the output folder.
        image: returns the files of one image; None if the format has none.
        run: writes the files of the whole run to the target; None if the format has none.
        check: refuses names that the format cannot hold.
        has_folders: whether each image has a folder of its own below the target, with a file for
            each name, see `image_folder`.
    """

    help: str
    target: str
    image: Callable[[Item], Files] | None = None
    run: Callable[[Iterable[Item], Path], None] | None = None
    check: Callable[[Sequence[str]], object] | None = None
    has_folders: bool = False


def image_folder(format_name: str, item: Item) -> Path | None:
    """Return the folder of one image's files, relative to the output folder.

    None if the format has no such folder.
    """
    entry = FORMATS[format_name]
    return Path(entry.target, item.result.stem) if entry.has_folders else None


def remove_older_files(folder: Path, written: Iterable[Path]) -> None:
    """Remove the files of names that an earlier result of an image has left in its folder.

    Args:
        folder: of the image, see `image_folder`; it need not exist.
        written: the files of the new result, which stay.
    """
    if not folder.is_dir():
        return
    ours = {file.stat().st_ino for file in written}
    for path in folder.iterdir():
        if _OF_ONE_NAME.fullmatch(path.name) and path.is_file() and path.stat().st_ino not in ours:
            path.unlink()


def image_files(format_name: str, item: Item) -> list[tuple[Path, bytes]]:
    """Return the files of one image in a format, relative to the output folder."""
    entry = FORMATS[format_name]
    if entry.image is None:
        return []
    return [(Path(entry.target, path), content) for path, content in entry.image(item)]


def write_format(items: Iterable[Item], format_name: str, output: Path) -> Path:
    """Write all files of a run in a format.

    Args:
        items: the images; they are gone through once.
        format_name: a key of `FORMATS`.
        output: the folder below which the target of the format lies.

    Returns:
        The file or folder that was written.

    Raises:
        InputError: the format cannot hold these results, or an image that it needs is missing.
    """
    write_run_files(_written(items, format_name, output), format_name, output)
    return output / FORMATS[format_name].target


def write_run_files(items: Iterable[Item], format_name: str, output: Path) -> None:
    """Write the files of the whole run in a format, see `write_format`, and none of one image."""
    write = FORMATS[format_name].run
    if write is None:
        for _ in items:  # writes the files of each image, where they are not written yet
            pass
    else:
        write(items, output / FORMATS[format_name].target)


def _written(items: Iterable[Item], format_name: str, output: Path) -> Iterator[Item]:
    """Yield the items, after the files of each have been written."""
    entry = FORMATS[format_name]
    for item in items:
        if entry.check is not None:
            entry.check(item.result.names)
        written = []
        for path, content in image_files(format_name, item):
            written.append(output / path)
            with atomic_path(written[-1]) as temporary:
                temporary.write_bytes(content)
        folder = image_folder(format_name, item)
        if folder is not None:
            remove_older_files(output / folder, written)
        yield item


def _results(items: Iterable[Item]) -> Iterator[ImageResult]:
    return (item.result for item in items)


def _write_coco(items: Iterable[Item], target: Path) -> None:
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        write_coco(_results(items), file)


def _write_coco_polygons(items: Iterable[Item], target: Path) -> None:
    with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        write_coco(_results(items), file, polygons=True)


def _write_labelstudio(items: Iterable[Item], target: Path) -> None:
    names: dict[str, None] = {}
    with atomic_paths([target, target.with_suffix(".xml")]) as (tasks, config):
        with tasks.open("w", encoding="utf-8") as file:
            file.write("[")
            for count, result in enumerate(_results(items)):
                names.update(dict.fromkeys(result.names))
                task = json.dumps(labelstudio_task(result), ensure_ascii=False)
                file.write((",\n" if count else "\n") + task)
            file.write("\n]\n")
        config.write_text(labeling_config(names), encoding="utf-8")


_COLUMNS = ("image", "index", "name", "pixels", "share", "score", "x", "y", "w", "h")


def _write_csv(items: Iterable[Item], target: Path) -> None:
    with (
        atomic_path(target) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for result in _results(items):
            height, width = result.size
            for region in result.regions:
                mask = region.mask
                pixels = int(mask.sum())
                score = "" if region.score is None else f"{region.score:.6g}"
                row = [result.image, region.index, region.name, pixels]
                writer.writerow([*row, f"{pixels / (height * width):.6g}", score, *box_of(mask)])


def _cvat_files(item: Item) -> Files:
    picture = _png(cvat.class_picture(item.result))
    yield f"{cvat.CLASSES}/{item.name}.png", picture
    yield f"{cvat.OBJECTS}/{item.name}.png", picture


def _write_cvat_lists(items: Iterable[Item], target: Path) -> None:
    names: tuple[str, ...] | None = None
    with atomic_path(target / cvat.LIST) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            for item in items:
                names = same_names(names, item.result)
                file.write(f"{item.name}\n")
    write_text(target / cvat.LABELMAP, cvat.label_map_text(names or ()))


def _yolo_files(item: Item) -> Files:
    source = item.file()
    yield f"images/{item.name}{source.suffix}", source.read_bytes()
    yield f"labels/{item.name}.txt", yolo.yolo_lines(item.result).encode()


def _write_yolo_names(items: Iterable[Item], target: Path) -> None:
    names: tuple[str, ...] | None = None
    for result in _results(items):
        names = same_names(names, result)
    write_text(target / "data.yaml", yolo.data_yaml(names or ()))


def _labelme_files(item: Item) -> Files:
    source = item.file()
    copy = f"{item.name}{source.suffix}"
    content = json.dumps(labelme_file(item.result, copy), ensure_ascii=False, indent=1)
    yield copy, source.read_bytes()
    yield f"{item.name}.json", content.encode()


def _mask_files(item: Item) -> Files:
    for region in item.result.regions:
        content = _png(region.mask.astype(np.uint8) * 255)
        yield f"{item.result.stem}/{_file_name(region)}", content


def _cutout_files(item: Item) -> Files:
    image = item.image()
    for region in item.result.regions:
        mask = region.mask
        left, top, width, height = box_of(mask)
        alpha = mask.astype(np.uint8)[..., None] * 255
        cut = np.concatenate([image, alpha], axis=2)[top : top + height, left : left + width]
        yield f"{item.result.stem}/{_file_name(region)}", _png(cut)


def _polygon_files(item: Item) -> Files:
    content = json.dumps(feature_collection(item.result), ensure_ascii=False)
    yield f"{item.result.stem}.geojson", content.encode()


FORMATS: dict[str, Format] = {
    "coco": Format(
        "one JSON file with run-length masks, for COCO's tools", "coco.json", run=_write_coco
    ),
    "coco-polygons": Format(
        "the same with outlines; masks with holes stay run-length codes",
        "coco_polygons.json",
        run=_write_coco_polygons,
    ),
    "cvat": Format(
        "CVAT's Segmentation mask 1.1", "cvat", _cvat_files, _write_cvat_lists, cvat.label_map_text
    ),
    "yolo": Format(
        "YOLO's segmentation polygons, with the images", "yolo", _yolo_files, _write_yolo_names
    ),
    "labelme": Format("a JSON file for each image, beside a copy of it", "labelme", _labelme_files),
    "labelstudio": Format(
        "tasks with brush masks, and a labeling configuration",
        "labelstudio.json",
        run=_write_labelstudio,
    ),
    "masks": Format(
        "a black and white PNG for each name of each image", "masks", _mask_files, has_folders=True
    ),
    "cutouts": Format(
        "what each mask shows, as PNG with alpha", "cutouts", _cutout_files, has_folders=True
    ),
    "polygons": Format("outlines with holes as GeoJSON, in pixels", "polygons", _polygon_files),
    "csv": Format("a line for each name of each image", "segments.csv", run=_write_csv),
}


def _file_name(region: Region) -> str:
    """Return the name of a region's file: letters, digits, spaces, - and _ of its name stay."""
    name = re.sub(r"[^\w \-]", "_", region.name).strip()[:80] or "name"
    return f"{region.index:03d}_{name}.png"


def _png(pixels: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()
