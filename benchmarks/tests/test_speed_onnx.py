"""The comparison of exported SANs with torch runs, on a small SAN."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from benchmarks.speed.onnx_image import compare, table
from benchmarks.speed.san_image import picture
from tiny_models import tiny_san

ROOT = Path(__file__).parents[2]
LIBRARIES = ("onnx", "onnxruntime", "onnxscript")


def test_the_documentation_shows_what_was_measured() -> None:
    found = json.loads((ROOT / "benchmarks/measured/onnx.json").read_text())
    assert set(found["variants"]) == {"san_vit_b_16", "san_vit_large_14"}
    for variant in found["variants"].values():
        assert variant["embedding_apart"] < 1e-6
        assert set(variant["names"]) == {"1", "60", "847"}
        assert all(one["equal"] >= 0.9999 for one in variant["names"].values())
    most = max(n["names_found"] for v in found["variants"].values() for n in v["names"].values())
    assert most == 5 and found["threads"] == 2 and found["image"] == [480, 640]
    assert table(found["variants"]) in (ROOT / "docs/onnx.md").read_text(encoding="utf-8")


@pytest.mark.skipif(
    not all(importlib.util.find_spec(library) for library in LIBRARIES),
    reason="exporting to ONNX needs the extra onnx",
)
def test_labels_and_times_are_compared() -> None:
    found = compare(tiny_san().config, picture(24, 32), (1, 5), 1)
    assert found["embedding_apart"] < 1e-4 and found["megabytes"] > 0
    for count, measured in found["names"].items():
        assert measured["equal"] >= 0.9999 and 1 <= measured["names_found"] <= int(count)
        assert min(measured["seconds"].values()) > 0
    lines = table({"tiny": found}).splitlines()
    assert len(lines) == 4 and lines[2].startswith("| tiny | 1 | 100.0000 % |")
