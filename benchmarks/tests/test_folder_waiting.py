"""How long the network waits for the disk is measured, and the documentation says it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.speed.folder_waiting import Watched, measure
from benchmarks.speed.san_image import cached_text
from tiny_models import tiny_san

from san import SANInference, SANSegmenter

ROOT = Path(__file__).parents[2]


def test_the_share_is_that_of_the_time_between_calls() -> None:
    watched = Watched(SANSegmenter(tiny_san().eval(), cache_dir=False))
    watched.calls += [(10.0, 13.0), (14.0, 18.0)]
    assert watched.share_between_calls() == pytest.approx(1 / 8)


def test_every_photo_is_segmented() -> None:
    segmenter = SANSegmenter(tiny_san().eval(), SANInference(short_side=64), cache_dir=False)
    found = measure(segmenter, cached_text(segmenter, 3), 5, (48, 64))
    assert 2 <= found["calls"] <= 5 and 0 <= found["share_between_calls"] < 1


def test_the_documentation_says_what_was_measured() -> None:
    found = json.loads((ROOT / "benchmarks/measured/folder_waiting.json").read_text())
    assert found["images"] >= 24 and found["size"] == [1536, 2048] and found["names"] == 150
    assert found["share_between_calls"] < 1e-4
    text = (ROOT / "docs/folders.md").read_text(encoding="utf-8")
    assert "less than 0.01 % of the time" in " ".join(text.split())
