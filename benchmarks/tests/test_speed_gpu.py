"""The script for a borrowed GPU runs to its end on a CPU, so that it needs no debugging there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import measuring
from benchmarks.speed import gpu, loading, training_step

from openvocab.cli import run
from san.config import san_world

MEASURED = Path(__file__).parents[1] / "measured"
SMALL = ["--device", "cpu", "--models", "world", "--names", "3", "--side", "64", "--no-compile"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "SIDE", 64)
    monkeypatch.setattr(training_step, "san_vit_b_16", san_world)


def test_everything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "PRECISIONS", ("fp32", "bf16"))  # fp16 is slow on a CPU
    once = lambda work, repeats=1, device="cpu": measuring.timed(work, 1, device)[0]  # noqa: E731
    monkeypatch.setattr(gpu, "best_time", once)
    argv = [*SMALL, "--batches", "2", "--train", "san", "--train-side", "160"]
    assert run(gpu.main, [*argv, "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert found["methods"].keys() == {"san", "ovseg", "car"} and not found["skipped"]
    for method in found["methods"].values():
        assert method["variants"].keys() == {"fp32", "bf16"}
        assert method["variants"]["fp32"]["equal_labels"] == 1
        for variant in method["variants"].values():
            assert variant["equal_labels"] > 0.9 and variant["images_per_second"]["2"] > 0
            assert variant["share_of_product"] > 0
    for step in found["training"]["san"].values():
        assert step["losses"][-1] < step["losses"][0]
    assert found["exchange"]["engine"] == "gloo" and found["exchange"]["processes"] == 2
    assert capsys.readouterr().out.count("| SAN |") == 2


def test_what_there_is_no_time_for_is_named(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    argv = [*SMALL, "--minutes", "0", "--train", "--output", str(output)]
    assert run(gpu.main, argv) == 0
    assert json.loads(output.read_text())["skipped"] == ["san", "ovseg", "car", "two processes"]


def test_loading_takes_no_more_memory_than_the_weights() -> None:
    found = json.loads((MEASURED / "loading.json").read_text())["methods"]
    assert found.keys() == set(loading.WRITERS)
    assert all(kind["peak_over_weights"] <= 1.15 for one in found.values() for kind in one.values())
