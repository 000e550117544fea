"""The table that shows what `structure/measure.py` measured, with one column for each method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

from benchmarks.forms import StageCost, Structure


class StructureRow(TypedDict):
    """One row: what is compared, and a cell for each method."""

    title: str
    cells: list[str]


def structure_rows(structures: Mapping[str, Structure]) -> list[StructureRow]:
    """Return the rows of the table of structure: a title and one cell for each method."""
    rows: dict[str, Callable[[Structure], str]] = {
        "Parameters": lambda s: millions(s["parameters"]["total"]),
        "of them trained by the method": lambda s: millions(s["parameters"]["trained"]),
        "of them frozen": lambda s: millions(s["parameters"]["frozen"]),
        "CLIP sees": pictures_sentence,
        "CLIP layers read or changed": layers_sentence,
        "Where names enter": names_sentence,
        "One more name costs": added_sentence,
        "GFLOP, this image": gflop_sentence,
        "Seconds, this image": lambda s: f"{total_seconds(s):.1f}",
        "Kept for the backward pass": lambda s: (
            "nothing is trained" if s["training_mib"] is None else f"{s['training_mib']:,.0f} MiB"
        ),
        "Peak memory, this image": lambda s: f"{s['image_gib']:.1f} GiB",
    }
    return [
        {"title": title, "cells": [show(s) for s in structures.values()]}
        for title, show in rows.items()
    ]


def names_sentence(structure: Structure) -> str:
    """Say which stages use the names."""
    titles = {stage["key"]: stage["title"] for stage in structure["stages"]}
    return " and ".join(f"“{titles[key]}”" for key in structure["names_enter"])


def pictures_sentence(structure: Structure) -> str:
    """Say what CLIP's image towers were fed."""
    sentences = []
    for tower in structure["clip"]:
        sizes = ", ".join(f"{h} × {w}" for h, w in tower["input_sizes"])
        pictures = tower["pictures"]
        sentences.append(f"{pictures} picture{'s' * (pictures != 1)} of {sizes} ({tower['role']})")
    return "; ".join(sentences) or "nothing"


def layers_sentence(structure: Structure) -> str:
    """Say which blocks of CLIP ran otherwise than in CLIP itself, and what differs in them."""
    sentences = []
    for tower in structure["clip"]:
        layers = tower["vision"]["layers"]
        parts = []
        if extra := _larger(tower["tokens"]):
            count = tower["tokens"][extra[0] - 1] - tower["tokens"][0]
            parts.append(f"{count} more tokens in {_blocks(extra)}")
        if replaced := tower["replaced_before"]:
            parts.append(f"tokens replaced before {_blocks(replaced)}")
        if recomposed := tower["attention_recomposed"]:
            parts.append(f"attention weights read or changed in {_blocks(recomposed)}")
        if gradients := tower["gradients"]:
            parts.append(f"gradients through {_blocks(gradients)}")
        if unused := [i for i in range(1, layers + 1) if _idle(tower["tokens"], i)]:
            parts.append(f"{_blocks(unused)} not run")
        role = tower["role"]
        sentences.append(f"{role}: {', '.join(parts) or 'none'} (of {layers})")
    return "; ".join(sentences) or "none"


def _idle(tokens: Sequence[int], block: int) -> bool:
    return block > len(tokens) or tokens[block - 1] == 0


def _larger(tokens: Sequence[int]) -> list[int]:
    return [i for i, count in enumerate(tokens, start=1) if count > tokens[0]]


def _blocks(numbers: Sequence[int]) -> str:
    """Say "block 3" or "blocks 1 to 4" or "blocks 1, 5"."""
    if len(numbers) == 1:
        return f"block {numbers[0]}"
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"blocks {numbers[0]} to {numbers[-1]}"
    return "blocks " + ", ".join(map(str, numbers))


def added_sentence(structure: Structure) -> str:
    """Say what one more name costs."""
    added = structure["added_names"]
    once = f"{added['text_gflop_once']:.0f} GFLOP once for its text"
    each = added["clip_gflop_each_image"]
    return f"{once}, and {each:.0f} GFLOP on every image" if each else f"{once}; no CLIP pass"


def total_gflop(structure: Structure) -> float:
    """Return the sum over all stages but the text, which is encoded once for a vocabulary."""
    return sum(s["gflop"] for s in structure["stages"] if s["key"] != "text")


def gflop_sentence(structure: Structure) -> str:
    """Say what this image cost, and what it costs if CLIP gets as many pictures as it may."""
    total, most = total_gflop(structure), structure["pictures_at_most"]
    if most is None:
        return f"{total:,.0f}"
    return f"{total:,.0f}; with all {most} pictures {gflop_at_most(structure):,.0f}"


def gflop_at_most(structure: Structure) -> float:
    """Return GFLOP for an image if CLIP gets as many pictures as it may."""
    more = (
        most - stage["gflop"]
        for stage in structure["stages"]
        if (most := at_most(structure, stage)) is not None
    )
    return total_gflop(structure) + sum(more)


def at_most(structure: Structure, stage: StageCost) -> float | None:
    """Return a stage's GFLOP with as many pictures as CLIP may get; None if it has no limit."""
    most = structure["pictures_at_most"]
    if most is None or stage["key"] != "clip":
        return None
    shown = sum(tower["pictures"] for tower in structure["clip"])
    return float(stage["gflop"] * most / shown)


def total_seconds(structure: Structure) -> float:
    """Return the sum over all stages but the text, which is encoded once for a vocabulary."""
    return sum(s["seconds"] for s in structure["stages"] if s["key"] != "text")


def millions(value: int) -> str:
    """Show a number of parameters."""
    return f"{value / 1e6:,.1f} M" if value >= 1e5 else f"{value:,}"
