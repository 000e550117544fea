"""The measurements of CaR run, and count what they claim to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import measuring
from benchmarks.speed import car_image

from openvocab.clip.config import CLIPConfig, TextConfig, VisionConfig
from openvocab.clip.model import CLIP
from openvocab.errors import InputError

FOLDER = Path(__file__).parents[1]


@pytest.fixture
def speed(monkeypatch):
    vision, text = VisionConfig(32, 16, 32, 3, 2, 64), TextConfig(77, 64, 16, 1, 1, 32)
    clip = CLIP(CLIPConfig(16, vision, text, "quick_gelu")).eval().requires_grad_(False)
    monkeypatch.setattr(car_image, "random_clip", lambda name: clip)
    monkeypatch.setattr(measuring, "SIDE", 64)
    return car_image


def test_stages_add_up(speed, tmp_path) -> None:
    output = tmp_path / "speed.json"
    size = ["--height", "48", "--width", "64", "--names", "3", "--repeats", "1"]
    assert speed.main([*size, "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert sum(result["share"].values()) == pytest.approx(1)
    assert result["seconds"]["trunk"] > 0
    patches = 3 * 4
    # Of the trunk's products, the largest are the two blocks' MLPs, and the patch embedding.
    assert result["gflop"]["trunk"] * 1e9 > 2 * 2 * 2 * patches * 32 * 64


def test_a_large_picture_is_segmented(speed, capsys) -> None:
    assert speed.main(["--large", "3", "40", "60"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["names"] == found["names_in_crf"] == 3 and 0 < found["names_found"] <= 3
    assert not found["warnings"]


def test_memory_can_be_measured_alone_and_times_stay(speed, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(speed, "in_fresh_process", lambda _, options: {"seconds": 1, "peak_gib": 2})
    output = tmp_path / "speed.json"
    options = ["--memory", "3", "40", "60", "--memory-only", "--output", str(output)]
    with pytest.raises(InputError, match="times to keep"):
        speed.main(options)
    output.write_text('{"seconds": {"trunk": 5}}')
    assert speed.main(options) == 0
    assert json.loads(output.read_text()) == {"seconds": {"trunk": 5}, "memory": {"peak_gib": 2}}


def test_the_recorded_run_keeps_what_was_promised() -> None:
    recorded = json.loads((FOLDER / "measured" / "speed_car.json").read_text())
    assert recorded["utilisation"]["classifier"] >= 0.75
    assert recorded["utilisation"]["trunk"] >= 0.6
    assert recorded["seconds"]["crf_6_labels"] <= 2.7  # the original in C++
    memory = recorded["memory"]
    assert [memory[key] for key in ("names", "height", "width")] == [150, 3000, 4000]
    assert memory["peak_gib"] < 6
    assert memory["warnings"] == [
        "the image of 4000x3000 pixels is segmented at 1024x768, since max_side is 1024; labels "
        "are enlarged to its own size"
    ]
