"""Who is ahead, by how much, and whether that is sure: sentences made from intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.forms import Between


def sentences(pairs: Sequence[Between], titles: Mapping[str, str]) -> list[str]:
    """Return one sentence for each pair, from the intervals that are corrected for their number."""
    return [_sentence(pair, titles) for pair in pairs if pair["difference"] is not None]


def _sentence(pair: Between, titles: Mapping[str, str]) -> str:
    first, second = titles[pair["first"]], titles[pair["second"]]
    ahead, low, high = pair["difference"] or 0.0, pair["low"] or 0.0, pair["high"] or 0.0
    if ahead < 0:
        first, second, ahead, low, high = second, first, -ahead, -high, -low
    interval = f"{low:+.2f} to {high:+.2f}"
    if low > 0:
        return f"{first} is ahead of {second} by {ahead:.2f} points of mIoU, surely ({interval})."
    if ahead == 0:
        return f"{first} and {second} reach the same mIoU; the difference is {interval}."
    return (
        f"{first} scores {ahead:.2f} points more than {second}, but that is not sure: the "
        f"difference may be anything from {interval}."
    )


def ranking(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows of one convention, the highest mIoU first."""
    own = [row for row in rows if row["convention"] == "detectron2"]
    return sorted(own, key=lambda row: -row["miou"] if row["miou"] == row["miou"] else 0.0)
