"""The log of an evaluation, which stays valid if the process is killed at any time."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from openvocab.errors import InputError
from openvocab.evaluation.results import ProtocolCard, diff_cards
from openvocab.metrics.calibration import BINS, FloatArray
from openvocab.metrics.scores import IntArray, PairCounts
from openvocab.reading.files import DAMAGE
from openvocab.reading.json_files import parse_json

_PATTERN = "images-*.log"


@dataclass(frozen=True)
class ImageRecord:
    """The stored results of one image.

    Args:
        id: id of the sample.
        pairs: non-zero cells of its confusion matrix.
        boundary: `(3, K)` boundary pixels per class, or None.
        segments: run-length masks by class id, or None.
        confidence: `(3, B)` in each of B bins of confidence the number of pixels, the sum of their
            confidences and the number of right ones, see `metrics.calibration.Reliability`; None
            where the method is not calibrated.
    """

    id: str
    pairs: PairCounts
    boundary: IntArray | None = None
    segments: dict[int, dict[str, Any]] | None = None
    confidence: FloatArray | None = None


class EvaluationLog:
    """The records of one process, in a folder that other processes may share.

    Each line carries a checksum; a line that was cut off by a kill is ignored and its image is
    computed again. Logs of another protocol are not used.

    Args:
        folder: folder of the logs.
        card: the protocol; the number of images may differ, so that a limit can be raised.
        shard: (rank, world): which of how many processes this is.
        keep: go on with what an earlier run logged, else start anew.
    """

    def __init__(
        self, folder: Path, card: ProtocolCard, shard: tuple[int, int], *, keep: bool
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.card = replace(card, n_images=0)
        self.path = folder / f"images-{shard[0]}-of-{shard[1]}.log"
        self.changes = self._changes()
        if not keep and shard[0] == 0:
            for path in folder.glob(_PATTERN):
                path.unlink(missing_ok=True)
        if self.changes or not keep:
            self.path.unlink(missing_ok=True)
        self._open()

    def _changes(self) -> list[str]:
        """Return how the protocol of the existing log differs from this one."""
        if not self.path.exists():
            return []
        found = _header(self.path)
        return ["its first line is damaged"] if found is None else diff_cards(found, self.card)

    def _open(self) -> None:
        fresh = not self.path.exists()
        self._file = self.path.open("ab+")
        if fresh:
            self._append({"card": self.card.to_json()})
            return
        self._file.seek(0, os.SEEK_END)
        if self._file.tell():
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":  # killed while writing: leave the half line behind
                self._file.write(b"\n")

    def append(self, record: ImageRecord) -> None:
        """Append an image; when this returns, it is on the disk."""
        pairs = record.pairs
        entry: dict[str, Any] = {
            "id": record.id,
            "truth": pairs.truth.tolist(),
            "predicted": pairs.predicted.tolist(),
            "counts": pairs.counts.tolist(),
        }
        if record.boundary is not None:
            ids = np.flatnonzero(record.boundary.any(axis=0))
            columns = [ids.tolist(), *record.boundary[:, ids].tolist()]
            entry["boundary"] = columns
        if record.segments is not None:
            entry["segments"] = {str(label): code for label, code in record.segments.items()}
        if record.confidence is not None:
            entry["confidence"] = record.confidence.round(4).tolist()
        self._append(entry)

    def records(self) -> Iterator[ImageRecord]:
        """Read the records of this protocol from the logs of all processes."""
        return read_records(self.folder, self.card)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, entry: dict[str, Any]) -> None:
        text = json.dumps(entry, separators=(",", ":")).encode()
        self._file.write(b"%08x %b\n" % (zlib.crc32(text), text))
        self._file.flush()
        os.fsync(self._file.fileno())


def read_records(folder: Path, card: ProtocolCard) -> Iterator[ImageRecord]:
    """Read the records of a protocol from the logs in a folder, whoever wrote them."""
    card = replace(card, n_images=0)
    for path in sorted(folder.glob(_PATTERN)):
        if _header(path) == card:
            for entry in _entries(path):
                if "id" in entry:
                    yield _record(entry, card.n_classes, path)


def _record(entry: dict[str, Any], num_classes: int, path: Path) -> ImageRecord:
    try:
        cells = [np.array(entry[k], dtype=np.int64) for k in ("truth", "predicted", "counts")]
        boundary = None
        if "boundary" in entry:
            ids, *values = entry["boundary"]
            boundary = np.zeros((3, num_classes), dtype=np.int64)
            boundary[:, np.array(ids, dtype=np.int64)] = values
        segments = entry.get("segments")
        if segments is not None:
            segments = {int(label): code for label, code in segments.items()}
        confidence = None
        if "confidence" in entry:
            confidence = np.array(entry["confidence"], dtype=np.float64).reshape(3, BINS)
        return ImageRecord(str(entry["id"]), PairCounts(*cells), boundary, segments, confidence)
    except DAMAGE as error:
        raise InputError(
            f"{path} holds an image that no evaluation of ours wrote ({error!r:.80}); delete it "
            f"and evaluate again"
        ) from None


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """Return the complete lines of a log."""
    with path.open("rb") as file:
        for line in file:
            checksum, _, text = line.rstrip(b"\n").partition(b" ")
            if checksum == b"%08x" % zlib.crc32(text):
                entry = parse_json(text.decode("utf-8", "replace"), str(path), "a line of a log")
                if isinstance(entry, dict):
                    yield entry


def _header(path: Path) -> ProtocolCard | None:
    first = next(_entries(path), {})
    try:
        return ProtocolCard.from_json(first["card"]) if "card" in first else None
    except (InputError, AttributeError, TypeError):  # written by another version
        return None
