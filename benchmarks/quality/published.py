"""The numbers that the authors report, and which of ours they may stand beside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.layout import read_json
from openvocab.datasets.catalog import CATALOG
from openvocab.evaluation.protocol import ProtocolCard

FILE = Path(__file__).parent / "published.json"
SPLIT = "val"  # of all published numbers


def published(method: str, data_set: str) -> list[dict[str, Any]]:
    """Return the published rows of a method ("san", "ovseg", "car") on a data set."""
    content = read_json(FILE)
    rows = content["rows"]
    return [
        {**row, "architecture": content["architectures"][f"{row['method']}, {row['variant']}"]}
        for row in rows
        if (row["method"].lower(), row["data_set"]) == (method, data_set)
    ]


def differences(row: Mapping[str, Any], card: ProtocolCard) -> list[str]:
    """Say in words why a published number may not stand beside one of ours.

    Args:
        row: of `published`, on the data set of the card.
        card: the protocol of our number.

    Returns:
        One clause for each difference; none if the numbers compare.
    """
    spec = CATALOG[row["data_set"]]
    sizes = spec.sizes[SPLIT]
    names = row.get("vocabulary", spec.vocabulary)
    said = []
    if card.variant != row["architecture"]:
        said.append(f"it is of {row['variant']}, and ours of {card.variant}")
    if card.split != SPLIT:
        said.append(f"it is on the split {SPLIT}, and ours on {card.split}")
    if card.n_images not in sizes:
        most = " or ".join(f"{size:,}" for size in sizes)
        said.append(f"it is on {most} images, and ours on {card.n_images:,}")
    if card.vocabulary != names:
        said.append(f"it has the names {names}, and ours {card.vocabulary}")
    if card.tta != "none":
        said.append(f"ours is the mean over {card.tta}")
    return said
