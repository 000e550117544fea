"""The text benchmark runs, and compares two ways that give the same values."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "speed" / "text_embeddings.py"


def test_both_ways_agree_and_the_result_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "text.json"
    command = [sys.executable, str(SCRIPT), "--names", "2", "--parts", "2", "--output", str(output)]
    printed = subprocess.run([*command, "--threads", "1"], check=True, capture_output=True).stdout
    result = json.loads(output.read_text())
    assert json.loads(printed) == result
    assert result["largest_difference"] < 1e-6
    assert (result["names"], result["templates"], result["threads"]) == (2, 14, 1)
