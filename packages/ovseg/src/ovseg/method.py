"""OVSeg as the commands, the page and the benchmark see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openvocab.methods import Method


def _load(weights: str | Path | None = None, **options: Any) -> Any:
    from ovseg.weights import load_ovseg

    return load_ovseg(weights, **options)


METHOD = Method(
    key="ovseg",
    title="OVSeg",
    summary="MaskFormer proposes masks, and a mask-adapted CLIP names each masked crop.",
    load=_load,
    weights="world, or a checkpoint file such as ovseg_swinbase_vitL14_ft_mpt.pth",
    colors=("#b45309", "#ff9d57"),
    rank=1,
    package="ovseg",
)
