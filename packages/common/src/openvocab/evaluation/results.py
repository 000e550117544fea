"""Results that can be compared: a confusion matrix, its scores and their protocol card."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from openvocab.errors import InputError, shorten_value
from openvocab.evaluation.protocol import ProtocolCard, diff_cards
from openvocab.files import write_text
from openvocab.metrics.bootstrap import Interval
from openvocab.metrics.boundary import boundary_iou
from openvocab.metrics.scores import (
    CONVENTIONS,
    Convention,
    IntArray,
    Scores,
    all_conventions,
    scores,
)
from openvocab.reading.files import DAMAGE
from openvocab.reading.json_files import read_json_file

__all__ = ["FORMAT", "ProtocolCard", "Result", "diff_cards", "pack", "unpack"]

FORMAT = "openvocab-result-1"


@dataclass(frozen=True)
class Result:
    """The result of one evaluation.

    Args:
        card: the protocol.
        names: the K class names, rows of the matrix.
        matrix: `(K, K + 1)` confusion matrix.
        intervals: bootstrap interval of mIoU for each convention; empty if not computed.
        boundary: `(3, K)` sums of `boundary_counts`, or None.
        complete: False while images of other processes are missing.
        images_of_set: number of images in the set, of which `card.n_images` count here; None where
            it is unknown.
    """

    card: ProtocolCard
    names: tuple[str, ...]
    matrix: IntArray
    intervals: Mapping[Convention, Interval] = field(default_factory=dict)
    boundary: IntArray | None = None
    complete: bool = True
    images_of_set: int | None = None

    @property
    def images(self) -> str:
        """The number of images that count here, and the number in the set if it is larger."""
        count, whole = self.card.n_images, self.images_of_set
        return f"{count} images" if whole in (None, count) else f"{count} of {whole} images"

    def scores(self, convention: Convention = "detectron2") -> Scores:
        """Score the matrix by one convention."""
        return scores(self.matrix, convention)

    def save(self, path: str | Path) -> None:
        """Write the result as JSON, atomically."""
        write_text(path, json.dumps(self.to_json(), indent=1) + "\n")

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        table = all_conventions(self.matrix)
        data: dict[str, Any] = {
            "format": FORMAT,
            "card": self.card.to_json(),
            "complete": self.complete,
            "images_of_set": self.images_of_set,
            "scores": {c: _summary(s, self.intervals.get(c)) for c, s in table.items()},
            "names": list(self.names),
            "iou": _plain(table["detectron2"].iou),
            "accuracy": _plain(table["detectron2"].accuracy),
            "matrix": pack(self.matrix),
        }
        if self.boundary is not None:
            data["boundary_iou"] = _plain(boundary_iou(self.boundary))
            data["boundary"] = pack(self.boundary)
        return data

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read a result; its scores are computed again from the matrix.

        Raises:
            InputError: the file is missing or holds no result.
        """
        data = read_json_file(path, "result")
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(
                f"{path} is not a result of the format {FORMAT!r}; give a result of an evaluation"
            )
        try:
            return cls._from_json(data)
        except DAMAGE as error:
            raise InputError(f"{path} is a damaged result ({error}); evaluate again") from None

    @classmethod
    def _from_json(cls, data: dict[str, Any]) -> Result:
        names = data["names"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"expected a list of text as its names, not {shorten_value(names)}")
        return cls(
            card=ProtocolCard.from_json(data["card"]),
            names=tuple(names),
            matrix=unpack(data["matrix"], (len(names), len(names) + 1)),
            intervals={
                convention: Interval(data["scores"][convention]["mIoU"], *interval)
                for convention in CONVENTIONS
                if (interval := data["scores"][convention].get("mIoU_interval"))
            },
            boundary=unpack(data["boundary"], (3, len(names))) if "boundary" in data else None,
            complete=bool(data["complete"]),
            images_of_set=data.get("images_of_set"),
        )

    def table(self) -> str:
        """Return the scores of all conventions as text, with the definition of each."""
        card, found = self.card, all_conventions(self.matrix)
        present = found["detectron2"].n_present
        head = " ".join(word for word in (card.data_set, card.split) if word)
        lines = [
            f"{head}: {self.images}, {len(self.names)} classes, {present} of them present",
            f"{'convention':<18}{'mIoU':>7}{'95 % interval':>18}{'fwIoU':>8}{'mACC':>8}{'pACC':>8}"
            f"{'averaged over':>15}{'IoU 0':>8}",
        ]
        lines += [_row(s, self.intervals.get(c)) for c, s in found.items()]
        if self.boundary is not None:
            lines.append(f"boundary IoU, mean {np.nanmean(boundary_iou(self.boundary)):.2f}")
        if found["detectron2-legacy"].n_averaged != present:
            lines.append(_why_they_differ(len(self.names) - present, len(self.names)))
        return "\n".join(lines)


def pack(counts: IntArray) -> dict[str, Any]:
    """Return integer counts as a compact JSON value: zlib and base64 of little-endian int64."""
    raw = np.ascontiguousarray(counts, dtype="<i8").tobytes()
    return {
        "shape": list(counts.shape),
        "encoding": "base64 of zlib of little-endian int64, row by row",
        "data": base64.b64encode(zlib.compress(raw, 9)).decode("ascii"),
    }


def unpack(value: Mapping[str, Any], shape: tuple[int, ...]) -> IntArray:
    """Return the counts from the value that `pack` returned.

    Args:
        value: counts in the form that `pack` returns.
        shape: expected shape of the counts, which is checked before anything is unpacked.

    Raises:
        InputError: the value is damaged, or has another shape.
    """
    if tuple(value["shape"]) != shape:
        raise InputError(f"packed counts have shape {shorten_value(value['shape'])}, not {shape}")
    expected = 8 * math.prod(shape)
    try:
        # One byte more than expected is enough to see that there is too much.
        raw = zlib.decompressobj().decompress(base64.b64decode(value["data"]), expected + 1)
    except (ValueError, TypeError, zlib.error) as error:
        raise InputError(f"packed counts are damaged: {error}") from None
    if len(raw) != expected:
        raise InputError(f"packed counts of shape {shape} need {expected} bytes, not {len(raw)}")
    return np.frombuffer(raw, dtype="<i8").astype(np.int64).reshape(shape)


def _summary(found: Scores, interval: Interval | None) -> dict[str, Any]:
    return {
        "mIoU": _number(found.miou),
        "mIoU_interval": None if interval is None else [interval.low, interval.high],
        "fwIoU": _number(found.fwiou),
        "mACC": _number(found.macc),
        "pACC": _number(found.pacc),
        "classes_present": found.n_present,
        "classes_averaged": found.n_averaged,
        "zero_rate": _number(found.zero_rate),
    }


def _row(found: Scores, interval: Interval | None) -> str:
    shown = "" if interval is None else f"{interval.low:.2f} to {interval.high:.2f}"
    return (
        f"{found.convention:<18}{found.miou:>7.2f}{shown:>18}{found.fwiou:>8.2f}{found.macc:>8.2f}"
        f"{found.pacc:>8.2f}{found.n_averaged:>15}{found.zero_rate:>7.1f}%"
    )


def _why_they_differ(absent: int, classes: int) -> str:
    return (
        f"{absent} of the {classes} classes have no ground truth here. 'detectron2' (since July "
        "2022; SAN's logs, FC-CLIP, CAT-Seg) leaves them out; 'detectron2-legacy' (the OVSeg and "
        "SAN papers) and 'mmseg' divide by those that were predicted, too."
    )


def _plain(values: np.ndarray[Any, Any]) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
