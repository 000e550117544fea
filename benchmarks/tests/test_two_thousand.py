"""The run over two thousand photos: it is killed, goes on, and every tool reads its result."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
from benchmarks.experiments.two_thousand import READERS, done_in, main, run_once

from openvocab.cli import run

MEASURED = Path(__file__).parents[1] / "measured" / "two_thousand.json"
TOOLS = ("datumaro", "label_studio_sdk", "labelme")


def test_a_run_is_killed_when_enough_is_done(tmp_path: Path) -> None:
    journal = tmp_path / ".predict.jsonl"
    script = "import sys, time; open(sys.argv[1], 'w').write('settings\\n1\\n2\\n'); time.sleep(60)"
    argv = [sys.executable, "-c", script, str(journal)]
    found = run_once(argv, tmp_path / "log", lambda: done_in(tmp_path) >= 2)
    assert found["exit_code"] == -9 and found["seconds"] < 60 and found["peak_memory_mb"] > 1


@pytest.mark.skipif(
    not os.environ.get("OPENVOCAB_TEST_TOOLS")
    and not all(importlib.util.find_spec(name) for name in TOOLS),
    reason="the tools are of the extra 'tools'",
)
def test_a_small_run_is_measured(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    argv = ["--images", "9", "--side", "64", "--memory", "4", "--plain", "--threads", "1"]
    assert run(main, [*argv, "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    runs = found["killed_twice"]["runs"]
    assert len(runs) == 3 and runs[-1]["exit_code"] == 0 and runs[-1]["images_done"] == 9
    for reader in found["killed_twice"]["readers"].values():
        assert reader["images"] == 9 and reader["least_iou"] >= 0.99
    assert found["memory"][0]["images"] == 4


def test_too_few_photos() -> None:
    assert run(main, ["--images", "5"]) == 2


def test_what_was_measured_keeps_the_promise() -> None:
    found = json.loads(MEASURED.read_text())
    killed = found["killed_twice"]
    assert killed["images"] == 2000 and killed["completed_twice"] == 0
    assert [one["exit_code"] for one in killed["runs"]] == [-9, -9, 0]
    assert set(killed["readers"]) == set(READERS)
    for name, reader in killed["readers"].items():
        assert reader["images"] == 2000
        assert reader["least_iou"] >= (0.99 if name == "yolo" else 1)
    memory = {one["images"]: one for one in found["memory"] if one["method"] != "san"}
    assert memory[10000]["peak_memory_mb"] < 1.02 * memory[200]["peak_memory_mb"]
