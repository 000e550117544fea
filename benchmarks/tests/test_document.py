"""Documents say what was measured, and nothing that was not."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from benchmarks.reporting import document
from PIL import Image

from openvocab.cli import run
from openvocab.errors import InputError
from openvocab.evaluation.results import ProtocolCard, Result
from openvocab.metrics.bootstrap import Interval

METHODS = ("san", "ovseg", "car")
# A number with a unit of what is measured; outside of blocks there must be none.
MEASURED = re.compile(r"\b\d[\d.,]*\s?(?:ms|s|MiB|GiB|GFLOPS?|mIoU|seconds|minutes|hours)\b")
CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)


@pytest.mark.parametrize("path", document.documents(), ids=lambda path: path.name)
def test_documents_say_what_the_json_says(path) -> None:
    text = path.read_text("utf-8")
    assert document.rendered(text, document.measurements()) == text
    assert text.count("<!-- measured:") == len(document.BLOCK.findall(text))


@pytest.mark.parametrize("path", document.documents(), ids=lambda path: path.name)
def test_measured_numbers_stand_in_blocks_alone(path) -> None:
    text = CODE.sub("", document.BLOCK.sub("", path.read_text("utf-8")))
    assert not MEASURED.findall(text), (
        f"{path}: give it a block, see benchmarks/reporting/document.py"
    )


def test_measured_numbers_are_recognized() -> None:
    found = MEASURED.findall("it takes 2.5 s and 1,024 MiB, or 40 mIoU in 3 minutes, on 4 images")
    assert found == ["2.5 s", "1,024 MiB", "40 mIoU", "3 minutes"]


def test_the_readme_shows_the_world() -> None:
    text = (document.ROOT / "README.md").read_text("utf-8")
    assert "world-scores" in {match[2] for match in document.BLOCK.finditer(text)}


def test_blocks_are_filled_between_lines_and_within_them() -> None:
    values = {"speed_san": {"memory": {"names": 5000, "width": 7, "height": 9, "peak_gib": 1.26}}}
    said = "5,000 names on a 7 × 9 picture take 1.3 GiB"
    text = "a <!-- measured: san-memory -->old<!-- end --> b"
    assert document.rendered(text, values) == text.replace("old", said)
    text = "a\n\n<!-- measured: san-memory -->\nold\nlines\n<!-- end -->\nb"
    assert document.rendered(text, values) == text.replace("old\nlines", said)
    with pytest.raises(InputError, match="no template 'nonesuch'"):
        document.rendered("<!-- measured: nonesuch --><!-- end -->", {})


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """The results of a run on all scenes, all of them right; no plugin is installed."""
    monkeypatch.setattr(document, "available_methods", lambda: dict.fromkeys(METHODS))
    matrix = np.hstack([np.eye(3, dtype=np.int64) * 9, np.zeros((3, 1), np.int64)])
    for method in METHODS:
        card = ProtocolCard(data_set="world", method=method, n_images=256)
        intervals = {"detectron2": Interval(100.0, 98.76, 100.0)}
        path = tmp_path / "results" / f"world--{method}.json"
        Result(card, ("a", "b", "c"), matrix, intervals).save(path)
    told = {"title": "true masks", "note": "", "all": 81.5, "seen": 1, "unseen": 2, "images": 256}
    comparison = {
        "results": {m: f"world--{m}.json" for m in METHODS},
        "seen": {"classes": 2},
        "scores": {m: {"all": 43.21, "seen": 54.3, "unseen": 12.34} for m in METHODS},
        "control": {m: {"ratio": 7.7} for m in METHODS},
        "diagnoses": {m: {"true-masks": told} for m in METHODS},
        "crops": {"car": {"unseen": 97.5}},
        "times": {m: {"seconds": 1, "peak_gib": 2, "libraries_gib": 1} for m in METHODS},
    }
    path = tmp_path / "results" / "world--comparison.json"
    path.write_text(json.dumps(comparison))
    return tmp_path


def test_a_run_becomes_tables(finished) -> None:
    world = document.collect_world(finished)
    assert world == json.loads(json.dumps(world)) and world["mib"]["car"] == 1024
    text = "<!-- measured: world-results -->\n<!-- end -->"
    found = document.rendered(text, {"world": world})
    assert "| SAN | 43.2 | 98.8 to 100.0 | 54.3 | 12.3 | 7.7 |" in found
    assert "| CLIP, top-1 on crops of unseen names, % | ≥ 90 | 97.5 | yes |" in found
    assert (
        found.count("| 81.5 |") == 3 + 1
        and "do not predict the ranking on real photographs" in found
    )
    assert document.rendered(found, {"world": world}) == found


def test_a_part_of_the_scenes_is_not_quoted(finished, tmp_path, capsys) -> None:
    path = finished / "results" / "world--car.json"
    content = json.loads(path.read_text())
    content["card"]["n_images"] = 8
    path.write_text(json.dumps(content))
    assert run(document.main, [str(finished)]) == 2
    assert "on 8 scenes" in capsys.readouterr().err
    assert run(document.main, [str(tmp_path / "none")]) == 2
    assert "run_all.py first" in capsys.readouterr().err


def test_a_picture_shows_what_the_methods_say(world_run, tmp_path) -> None:
    path = tmp_path / "picture.png"
    document.write_gallery_picture(world_run, path)
    width, height = Image.open(path).size
    assert width > 5 * 180 and height > 3 * 180


def test_the_curves_of_the_wording_show_what_was_measured() -> None:
    values = document.measurements()
    assert document.CURVES.read_text("utf-8") == document.wording_curves(values)
    for found in values["wording"]["methods"].values():
        rows = [row for row in found["wording"]["rows"] if row["part"] == "distractors"]
        assert [row["changed"] for row in rows] == [0, 5, 10, 20, 40]
        assert all(row["low"] <= row["miou"] <= row["high"] for row in rows)
