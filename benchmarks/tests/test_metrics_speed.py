from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "speed" / "confusion_matrix.py"


def test_it_measures_every_way_and_finds_them_equal(tmp_path):
    output = tmp_path / "speed.json"
    command = [sys.executable, str(SCRIPT), "--classes", "30", "--images", "1", "--rounds", "1"]
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())
    assert [row["maps"] for row in rows] == ["label maps", "noise"]
    for row in rows:
        speeds = row["megapixels_per_second"]
        assert {"naive", "openvocab"} < speeds.keys()
        assert min(speeds.values()) > 0
        assert f"{speeds['openvocab']:.0f} Mpx/s" in done.stdout
