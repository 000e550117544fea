"""The benchmark of the folder run measures what it says, and keeps it."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.speed.folder import main

from openvocab.cli import run


def test_it_compares_a_version_with_a_checkout(tmp_path: Path) -> None:
    checkout, output = Path(__file__).parents[2], tmp_path / "folder.json"
    argv = ["--images", "2", "--parts", "1", "--side", "64", "--threads", "1"]
    assert run(main, [*argv, "--before", str(checkout), "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert (found["images"], found["side"], found["threads"]) == (2, 64, 1)
    assert found["least_agreement_of_labels"] == 1
    for version in ("before", "now"):
        assert found[version]["images_per_second"] > 0
    assert found["times_faster"] > 0


def test_a_checkout_of_something_else(tmp_path: Path) -> None:
    assert run(main, ["--before", str(tmp_path)]) == 2


def test_what_was_measured_keeps_the_promise() -> None:
    path = Path(__file__).parents[1] / "measured" / "folder.json"
    found = json.loads(path.read_text())
    assert found["images"] >= 300 and found["cores"] == 2
    assert found["times_faster"] >= 1.5 and found["times_less_cpu"] >= 1.5
    assert found["least_agreement_of_labels"] > 0.9999
