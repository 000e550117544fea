"""CaR as the commands, the page and the benchmark see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openvocab.methods import Method


def _load(weights: str | Path | None = None, **options: Any) -> Any:
    from car.segmenter import load_car

    return load_car(weights, **options)


METHOD = Method(
    key="car",
    title="CaR",
    summary="No training: CLIP's saliency proposes masks, CLIP scores visually prompted images, "
    "and names that do not survive are dropped until nothing changes.",
    load=_load,
    weights="a configuration such as world or voc21, or one CLIP or two with a comma between",
    templates="car",
    colors=("#0b7a53", "#4fd1a1"),
    rank=2,
    package="car",
)
