"""Weights are looked for before anything runs: files, folders, and names that a loader knows."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.quality import plan


def test_files_and_folders_that_exist_are_left_to_the_evaluation(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    file.write_bytes(b"")
    assert plan.check_weights({"san": str(file), "ovseg": str(tmp_path)}) == []


@pytest.mark.parametrize("source", ["model.pth", "runs/san/model.pth", "/weights/san", "runs/a/b"])
def test_a_path_that_is_not_there_is_missing_without_loading(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "load_method", lambda *_: pytest.fail("nothing is loaded"))
    (missing,) = plan.check_weights({"san": source})
    assert missing.what == "weights of san" and f"no file '{source}'" in missing.sentence


@pytest.mark.parametrize("source", ["facebook/sam3", "shi-labs/oneformer_ade20k_swin_large"])
def test_a_repository_of_the_hub_is_left_to_the_loader(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "load_method", lambda key, part: asked.append((key, part)))
    assert plan.check_weights({"san": source}) == []
    assert asked == [("san", source)]
