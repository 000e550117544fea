"""SAN as the commands, the page and the benchmark see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openvocab.methods import Method


def _load(weights: str | Path | None = None, **options: Any) -> Any:
    from san.segmenter import load_san

    return load_san("san_vit_b_16" if weights is None else weights, **options)


METHOD = Method(
    key="san",
    title="SAN",
    summary="A light network beside a frozen CLIP predicts masks, and the attention bias with "
    "which CLIP names them.",
    load=_load,
    weights="san_vit_b_16 or san_vit_large_14 (fetched on first use), world, or a checkpoint file",
    default_weights="san_vit_b_16",
    colors=("#2563eb", "#7aa7ff"),
    rank=0,
    package="san",
)
