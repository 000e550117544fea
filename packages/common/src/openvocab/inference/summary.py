"""What is known of every image of a run: a journal while it runs, a summary when it ends.

The journal is what a run goes on from: an image whose line is in it has all its results.
"""

from __future__ import annotations

import csv
import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openvocab.errors import InputError, one_line
from openvocab.files import atomic_path, write_text
from openvocab.inference.layout import JOURNAL, NAMES, SUMMARY_CSV, SUMMARY_JSON
from openvocab.reading.json_files import as_json, parse_json

if TYPE_CHECKING:
    from openvocab.segmenter import Segmentation

_SUMMARIZED = ("file", "seconds", "shares", "scores", "failure")  # what of a row the summary has


@dataclass(frozen=True)
class Row:
    """What is kept of one image, video or raster.

    Attributes:
        file: the image.
        seconds: for reading, segmenting and writing it.
        shares: of the image or of all frames, for each name that was found, largest first.
        scores: the mean certainty of each of these names; empty where the run has no scores.
        failure: why it could not be used.
        state: size in bytes and time of the last change (in ns) of the file.
        size: (height, width), where the run writes formats of other tools.
        segments: the index, the run-length mask and the score of each name that was found, from
            which the files of the whole run are written at its end; None where it has no such.
        formats: of other tools that were written.
        written: files of the image in formats of other tools, relative to the folder.
    """

    file: str
    seconds: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    failure: str | None = None
    state: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    segments: list[dict[str, Any]] | None = None
    formats: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)


def file_state(path: Path) -> tuple[int, int] | None:
    """Return size and time of the last change of a file; None if there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


class Shares:
    """Adds up what many pictures of one input show, such as the frames of a video."""

    def __init__(self) -> None:
        self._pixels = 0
        self._areas: dict[str, float] = defaultdict(float)
        self._certainty: dict[str, float] = defaultdict(float)

    def add(self, found: Segmentation) -> None:
        """Add a picture."""
        rated = found.confidence is not None or found.scores is not None
        means = found.mean_certainty() if rated else {}
        self._pixels += found.labels.size
        for name, share in found.areas().items():
            self._areas[name] += share * found.labels.size
            if name in means:
                self._certainty[name] += means[name] * share * found.labels.size

    def row(self, path: Path, seconds: float, failure: str | None = None) -> Row:
        """Return the row of the input; without names if it has failed.

        Args:
            path: of the input.
            seconds: that it took.
            failure: why it could not be read to its end.
        """
        by_area = sorted(self._areas.items(), key=lambda one: -one[1])
        areas = {} if failure else dict(by_area)
        return Row(
            one_line(str(path)),
            round(seconds, 4),
            {name: area / self._pixels for name, area in areas.items()},
            {
                name: self._certainty[name] / areas[name]
                for name in areas
                if name in self._certainty
            },
            failure and one_line(failure),
            file_state(path),
        )


class Journal:
    """The rows of a folder of results, one line of JSON each, after a line with the settings.

    Nothing is written before the first image has results.

    Args:
        folder: of the results.
        settings: what decides the results, as plain data.
        names: of the labels, for a file beside the results.
        keep: go on with the rows of an earlier run.

    Raises:
        InputError: the earlier run had other settings.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], names: Sequence[str], *, keep: bool
    ) -> None:
        self.folder, self.path, self.names = folder, folder / JOURNAL, names
        self.settings = as_json(settings)
        self.started = False
        self._places: dict[str, int] = {}  # of the last row of each image
        self._waiting: list[Row] = []
        self._lock = threading.Lock()
        if keep and self.path.exists():
            self._find_rows()
            self._end_torn_line()
            self.started = True

    def add(self, row: Row) -> None:
        """Keep a row, at once also for a run that goes on after this one was killed."""
        with self._lock:
            self._waiting.append(row)
            if self.started or row.failure is None:
                self._start()
                self._write()

    def start(self) -> None:
        """Take the place of an earlier run's journal, before the first of its results goes."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        if not self.started:
            write_text(self.folder / NAMES, "".join(f"{one_line(n)}\n" for n in self.names))
            write_text(self.path, json.dumps({"settings": self.settings}) + "\n")
            self.started = True

    def _write(self) -> None:
        with self.path.open("ab") as file:
            for row in self._waiting:
                self._places[row.file] = file.tell()
                file.write(json.dumps(vars(row)).encode() + b"\n")
        self._waiting.clear()

    def row(self, file: str) -> Row | None:
        """Return the last row of an image."""
        if file not in self._places:
            return None
        with self.path.open("rb") as journal:
            journal.seek(self._places[file])
            return _parsed(journal.readline())

    def _find_rows(self) -> None:
        with self.path.open("rb") as file:
            first = _json(file.readline())
            before = first.get("settings") if isinstance(first, dict) else None
            if before != self.settings:
                raise InputError(_difference(self.path.parent, before, self.settings))
            place = file.tell()
            for line in file:
                row = _parsed(line)
                if row is not None:
                    self._places[row.file] = place
                place += len(line)

    def _end_torn_line(self) -> None:
        """Let the line that a kill has cut off end, so that the next one begins a line."""
        with self.path.open("rb+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")


def _json(line: bytes) -> Any:
    try:
        return parse_json(line.decode(), JOURNAL, "a row")
    except (InputError, UnicodeDecodeError):
        return None


def _parsed(line: bytes) -> Row | None:
    """Return the row of a line; None of one that was cut off."""
    data = _json(line)
    try:
        row = Row(**data)
    except TypeError:
        return None
    good = isinstance(row.file, str) and isinstance(row.shares, dict)
    return row if good and isinstance(row.scores, dict) else None


def _difference(folder: Path, before: Any, now: Mapping[str, Any]) -> str:
    known = before if isinstance(before, dict) else {}
    keys = sorted(key for key in {*known, *now} if known.get(key) != now.get(key))
    return (
        f"the results in '{folder}' were made with another {' and '.join(keys) or 'program'}; "
        "choose another --output, or leave out --skip-existing to make all anew"
    )


def write_summary(folder: Path, journal: Journal, files: Iterable[str], seconds: float) -> None:
    """Write `summary.csv` and `summary.json` of the images, videos and rasters of a run.

    The table has a line for each name in each image, and one for each image without names.

    Args:
        folder: of the results.
        journal: that has the rows.
        files: all of them, in order.
        seconds: that the run took.
    """
    files = list(files)
    with atomic_path(folder / SUMMARY_CSV) as temporary:
        with temporary.open("w", encoding="utf-8", newline="") as table:
            writer = csv.writer(table)
            writer.writerow(("file", "seconds", "name", "share", "score", "failure"))
            for row in _rows(journal, files):
                writer.writerows(_lines(row))
    with atomic_path(folder / SUMMARY_JSON) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            _write_json(file, journal, files, seconds)


def _rows(journal: Journal, files: Iterable[str]) -> Iterator[Row]:
    yield from filter(None, map(journal.row, files))


def _lines(row: Row) -> list[tuple[Any, ...]]:
    seconds = f"{row.seconds:.3f}"
    if not row.shares:
        return [(row.file, seconds, "", "", "", row.failure or "")]
    scores = {name: f"{score:.4f}" for name, score in row.scores.items()}
    return [
        (row.file, seconds, one_line(name), f"{share:.6f}", scores.get(name, ""), "")
        for name, share in row.shares.items()
    ]


def _write_json(file: Any, journal: Journal, files: list[str], seconds: float) -> None:
    """Write row by row, so that memory does not grow with the number of images."""
    images: dict[str, int] = defaultdict(int)
    shares: dict[str, float] = defaultdict(float)
    done = failed = 0
    file.write('{"images": [')
    for count, row in enumerate(_rows(journal, files)):
        failed += row.failure is not None
        done += row.failure is None
        for name, share in row.shares.items():
            images[name] += 1
            shares[name] += share
        kept = {key: getattr(row, key) for key in _SUMMARIZED}
        file.write(("," if count else "") + "\n" + json.dumps(kept, ensure_ascii=False))
    names = {
        name: {"images": images[name], "mean_share": shares[name] / done}
        for name in sorted(shares, key=lambda name: -shares[name])
    }
    rest = {
        "total": len(files),
        "done": done,
        "failed": failed,
        "seconds": round(seconds, 3),
        "names": names,
        "settings": journal.settings,
    }
    file.write("\n],\n" + json.dumps(rest, ensure_ascii=False, indent=1)[1:])
