"""The comparison of exported SANs with torch runs, on a small SAN."""

from __future__ import annotations

import pytest
from benchmarks.speed.onnx_image import compare, table
from benchmarks.speed.san_image import picture

from openvocab.clip import CLIPConfig, TextConfig, VisionConfig
from san import SANConfig

for library in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(library, reason="exporting to ONNX needs the extra onnx")

TINY = SANConfig(
    clip=CLIPConfig(
        embed_dim=16,
        vision=VisionConfig(image_size=32, patch_size=8, width=16, layers=3, heads=2, mlp_width=32),
        text=TextConfig(
            context_length=77, vocab_size=49408, width=16, layers=1, heads=2, mlp_width=32
        ),
        activation="quick_gelu",
    ),
    split=2,
    fusion=((0, 0), (1, 1), (2, 2)),
    side_width=24,
    side_depth=2,
    side_heads=2,
    side_image_size=64,
    num_queries=9,
    supervised=(1, 2),
    bias_heads=2,
    embed_channels=16,
    mlp_channels=16,
    mlp_layers=2,
)


def test_labels_and_times_are_compared() -> None:
    found = compare(TINY, picture(24, 32), (1, 5), 1)
    assert found["embedding_apart"] < 1e-4 and found["megabytes"] > 0
    for count, measured in found["names"].items():
        assert measured["equal"] >= 0.9999 and 1 <= measured["names_found"] <= int(count)
        assert min(measured["seconds"].values()) > 0
    lines = table({"tiny": found}).splitlines()
    assert len(lines) == 4 and lines[2].startswith("| tiny | 1 | 100.0000 % |")
