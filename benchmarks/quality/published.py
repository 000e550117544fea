"""The scores that the authors report, and the conditions for comparing ours with them."""

from __future__ import annotations

from benchmarks.forms import PublishedRow
from benchmarks.layout import read_json
from openvocab.datasets.catalog import CATALOG
from openvocab.evaluation.protocol import ProtocolCard
from openvocab.methods import available_methods

SPLIT = "val"  # of all published numbers


def published(key: str, data_set: str | None = None) -> list[PublishedRow]:
    """Return the published rows of a method, on one data set or on all.

    A method that is not installed, or brings no numbers, has none.
    """
    method = available_methods().get(key)
    if method is None or method.published is None:
        return []
    content = read_json(method.published)
    rows: list[PublishedRow] = content["rows"]
    architectures: dict[str, str] = content["architectures"]
    return [
        {**row, "method": method.title, "architecture": architectures[row["variant"]]}
        for row in rows
        if data_set in (None, row["data_set"])
    ]


def reasons_not_comparable(row: PublishedRow, card: ProtocolCard) -> list[str]:
    """Return in words why a published score cannot be compared with one of ours.

    Args:
        row: row of `published`, on the data set of the card.
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
