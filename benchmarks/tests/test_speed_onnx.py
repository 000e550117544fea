"""The comparison of exported SANs with torch runs, on a small SAN."""

from __future__ import annotations

import pytest
from benchmarks.speed.onnx_image import compare, table
from benchmarks.speed.san_image import picture
from tiny_models import tiny_san

for library in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(library, reason="exporting to ONNX needs the extra onnx")


def test_labels_and_times_are_compared() -> None:
    found = compare(tiny_san().config, picture(24, 32), (1, 5), 1)
    assert found["embedding_apart"] < 1e-4 and found["megabytes"] > 0
    for count, measured in found["names"].items():
        assert measured["equal"] >= 0.9999 and 1 <= measured["names_found"] <= int(count)
        assert min(measured["seconds"].values()) > 0
    lines = table({"tiny": found}).splitlines()
    assert len(lines) == 4 and lines[2].startswith("| tiny | 1 | 100.0000 % |")
