"""Shows how much the scores on the world depend on the list of names, as curves and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from benchmarks.layout import read_json
from benchmarks.quality.wording import MeasuredWording
from benchmarks.reporting import charts
from openvocab.evaluation.wording import FORMAT, AbsentNames, Wording, WordingRow
from openvocab.methods import available_methods

FIGURE = "wording"
X_TITLE = "names asked for"


class WordingSection(TypedDict):
    """What the report shows of the wording."""

    figures: dict[str, str]
    scenes: int
    scored: int
    rows: dict[str, list[WordingRow]]
    absent: dict[str, AbsentNames]
    notes: list[str]


def read_wordings(results: Path) -> dict[str, Wording]:
    """Return what a run measured of the wording, by method; files of other versions are no part."""
    found = {}
    for key in available_methods():
        measured: MeasuredWording | None = read_json(results / f"wording-{key}.json")
        if measured is not None and measured.get("format") == FORMAT:
            found[key] = measured["wording"]
    return found


def wording_section(wordings: Mapping[str, Wording]) -> WordingSection:
    """Return the section of the report; without rows where nothing was measured."""
    first = next(iter(wordings.values()), None)
    return {
        "figures": {FIGURE: distractor_curves(wordings)} if wordings else {},
        "scenes": first["images"] if first else 0,
        "scored": scored(first) if first else 0,
        "rows": {key: rows_of(found, "distractors") for key, found in wordings.items()},
        "absent": {key: one["absent"] for key, one in wordings.items() if "absent" in one},
        "notes": list(dict.fromkeys(note for one in wordings.values() for note in one["notes"])),
    }


def rows_of(wording: Wording, part: str) -> list[WordingRow]:
    """Return the rows of one part that have a score."""
    return [row for row in wording["rows"] if row["part"] == part and "miou" in row]


def scored(wording: Wording) -> int:
    """Return how many names are scored while others compete."""
    lists: Mapping[str, Any] = wording["card"]["wording"]
    return len(lists.get("scored against distractors", lists["names"]))


def distractor_curves(wordings: Mapping[str, Wording]) -> str:
    """Draw mIoU against the number of names that are asked for, a curve for each method."""
    series: dict[str, Sequence[charts.Point]] = {}
    bars: dict[str, Sequence[tuple[float, float]]] = {}
    for key, wording in wordings.items():
        rows = rows_of(wording, "distractors")
        series[key] = [(scored(wording) + row["changed"], row["miou"]) for row in rows]
        bars[key] = [(row["low"], row["high"]) for row in rows]
    return charts.points(series, X_TITLE, "mIoU, %", bars)
