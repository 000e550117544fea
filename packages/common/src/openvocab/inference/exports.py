"""Formats of other tools in a folder run: what belongs to an image is written with its results.

What belongs to the whole run, such as COCO's one JSON file, is written when all images are done. It
is made from the journal, so that a run that was killed and went on writes the same file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openvocab.errors import one_line
from openvocab.formats.regions import ImageResult, read_region, result_of
from openvocab.formats.writers import (
    FORMATS,
    FlatNames,
    Item,
    image_files,
    image_folder,
    write_run_files,
)
from openvocab.image import ImageArray
from openvocab.inference.summary import Journal, Row
from openvocab.segmenter import Segmentation


@dataclass(frozen=True)
class Exported:
    """What the formats need of one image.

    Attributes:
        files: to write, with their content.
        folders: of this image alone, see `openvocab.formats.writers.image_folder`.
        kept: fields of the image's `Row` in the journal.
    """

    files: list[tuple[Path, bytes]] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)


class Exports:
    """The formats of one run.

    Args:
        journal: of the run.
        formats: keys of `FORMATS`.
        names: of the results of each image.

    Raises:
        InputError: a format cannot hold the names.
    """

    def __init__(self, journal: Journal, formats: Sequence[str], names: Mapping[Path, str]) -> None:
        self.journal, self.formats, self.names = journal, formats, names
        self.flat = FlatNames(names.values())
        check_names(formats, journal.names)

    def of_image(self, path: Path, image: ImageArray, found: Segmentation) -> Exported:
        """Return the files of an image, and what the files of the run need of it."""
        stem = self.names[path]
        result = result_of(found, one_line(str(path)), stem)
        item = Item(result, self.flat.name(stem), path, image)
        files = [file for name in self.formats for file in image_files(name, item)]
        kept = {
            "size": result.size,
            "segments": [
                {"index": one.index, "rle": one.rle, "score": one.score} for one in result.regions
            ],
            "formats": list(self.formats),
            "written": [file.as_posix() for file, _ in files],
        }
        root = self.journal.folder
        folders = [image_folder(name, item) for name in self.formats]
        return Exported(
            [(root / file, data) for file, data in files],
            [root / folder for folder in folders if folder is not None],
            kept,
        )

    def are_complete(self, row: Row) -> bool:
        """Tell whether an earlier run has written all that the formats need of an image."""
        whole = row.segments is not None and set(row.formats).issuperset(self.formats)
        return whole and all((self.journal.folder / file).is_file() for file in row.written)

    def write_run(self, paths: Iterable[Path]) -> None:
        """Write the files of the whole run, for the images that have results."""
        paths = list(paths)
        for name in (name for name in self.formats if FORMATS[name].run is not None):
            write_run_files(self._items(paths), name, self.journal.folder)

    def _items(self, paths: Sequence[Path]) -> Iterator[Item]:
        for path in paths:
            row = self.journal.row(one_line(str(path)))
            if row is None or row.segments is None or row.size is None:
                continue
            stem, names = self.names[path], tuple(self.journal.names)
            height, width = row.size
            regions = tuple(read_region(one, names, (height, width)) for one in row.segments)
            result = ImageResult(row.file, (height, width), names, regions, stem)
            yield Item(result, self.flat.name(stem), path)


def check_names(formats: Iterable[str], names: Sequence[str]) -> None:
    """Refuse names that a format cannot hold.

    Raises:
        InputError: a format cannot hold one of them.
    """
    for name in formats:
        check = FORMATS[name].check
        if check is not None:
            check(names)
