"""Sentences that say which method scores higher, and whether the difference is significant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.forms import Between


def verdict_sentences(pairs: Sequence[Between], titles: Mapping[str, str]) -> list[str]:
    """Return one sentence for each pair of methods that was compared.

    Args:
        pairs: differences of mIoU, with intervals that are corrected for the number of pairs.
        titles: the title of each method, by its key.
    """
    return [_sentence(pair, titles) for pair in pairs if pair["difference"] is not None]


def _sentence(pair: Between, titles: Mapping[str, str]) -> str:
    first, second = titles[pair["first"]], titles[pair["second"]]
    ahead, low, high = pair["difference"] or 0.0, pair["low"] or 0.0, pair["high"] or 0.0
    if ahead < 0:
        first, second, ahead, low, high = second, first, -ahead, -high, -low
    interval = f"{low:+.2f} to {high:+.2f}"
    if low > 0:
        return (
            f"{first} is ahead of {second} by {ahead:.2f} points of mIoU, which is significant at "
            f"95 % (interval {interval})."
        )
    if ahead == 0:
        return f"{first} and {second} reach the same mIoU (interval {interval})."
    return (
        f"{first} scores {ahead:.2f} points of mIoU more than {second}, which is not significant "
        f"at 95 % (interval {interval})."
    )


def ranking(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows of detectron2's convention, the highest mIoU first."""
    own = [row for row in rows if row["convention"] == "detectron2"]
    return sorted(own, key=lambda row: -row["miou"] if row["miou"] == row["miou"] else 0.0)
