"""Confidences: the arithmetic behind them, what a segmenter makes of them, and the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openvocab.calibrate import fit_calibration, judge, main, without_ground
from openvocab.datasets.samples import FolderDataset
from openvocab.errors import InputError
from openvocab.files import write_text
from openvocab.inference import confidence as module
from openvocab.inference.confidence import (
    Evidence,
    apply,
    calibration_file,
    calibration_line,
    counts_as_name,
    grid_evidence,
    load_calibration,
    rated,
    settings_sha256,
    use_calibration,
)
from openvocab.inference.tiles import TiledSegmenter
from openvocab.metrics.calibration import (
    Calibration,
    Head,
    auroc,
    features_of,
    fit_head,
    probability,
    reliability,
)
from openvocab.segmenter import BaseSegmenter, Segmentation
from openvocab.semantic import MaskGeometry, semantic_scores
from openvocab.vocabulary import Background, Vocabulary
from openvocab.world import world_vocabulary

NAMES = Vocabulary(("cat", "dog", "grass"), things=(True, True, False))


def calibration(**changes: Any) -> Calibration:
    made = Calibration(
        confidence=Head(("log_best", "logit_share"), (1.0, 0.5), 0.25),
        named=Head(("log_total",), (2.0,), 1.0),
        method="Grid",
        weights_sha256="abc",
        settings_sha256=settings_sha256(Grid().describe()),
        data_set="pets",
        split="train",
        images=3,
        label_tree_hash="def",
    )
    return replace(made, **changes)


class Grid(BaseSegmenter):
    """Finds the name whose color channel is brightest; what it knows is that brightness."""

    def segment_arrays(
        self, images: list[Any], vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        return [self._segment(image, vocabulary) for image in images]

    def _segment(self, image: Any, vocabulary: Vocabulary) -> Segmentation:
        logits = torch.from_numpy(image).permute(2, 0, 1).float() / 32 - 4
        prob, size = torch.eye(3)[:, : len(vocabulary)], image.shape[:2]
        geometry = MaskGeometry(size, size, size)
        labels = semantic_scores(prob, logits, geometry).argmax(0).numpy().astype(np.int32)
        found = Segmentation(labels, vocabulary)
        return rated(self, found, lambda: grid_evidence(prob, logits, geometry, vocabulary))

    def describe(self) -> dict[str, Any]:
        return {
            "method": "Grid",
            "weights_sha256": "abc",
            "resize_rule": "none",
            "device": "cpu",
            "calibration": calibration_line(self),
        }


def photo(seed: int = 0, size: tuple[int, int] = (12, 10)) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_features_are_the_logarithms_that_they_are_called() -> None:
    log_best, share, log_total = features_of(np.array([0.5, 0.0]), np.array([1.0, 0.0]))
    assert log_best[0] == pytest.approx(math.log(0.5001))
    assert share[0] == pytest.approx(math.log((0.4999995 + 1e-4) / (0.5000005 + 1e-3)))
    assert log_total[0] == pytest.approx(math.log(1.001))
    assert np.isfinite([log_best[1], share[1], log_total[1]]).all()  # where there is no score


def test_a_regression_finds_the_weights_that_made_its_data() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 40_000))
    odds = 1.5 * features[0] - 0.7 * features[2] + 0.4
    right = rng.random(odds.size) < probability(odds)
    head = fit_head(features, right, ("log_best", "log_total"))
    assert head.weights == pytest.approx((1.5, -0.7), abs=0.06) and head.bias == pytest.approx(
        0.4, abs=0.05
    )
    found = probability(head.logits(features))
    assert found.mean() == pytest.approx(right.mean(), abs=1e-3)  # the bias is not held back
    balanced = fit_head(features, right, ("log_best", "log_total"), balanced=True)
    odds = probability(balanced.logits(features))
    assert (odds[right].mean() + odds[~right].mean()) / 2 == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("right", [np.ones(4, bool), np.zeros(4, bool)])
def test_pixels_that_are_all_alike_teach_nothing(right: Any) -> None:
    with pytest.raises(InputError, match="nothing can be learned"):
        fit_head(np.zeros((3, 4)), right, ("log_best",))


def test_probabilities_of_any_odds_are_finite() -> None:
    found = probability(np.array([-1e9, -1.0, 0.0, 1.0, 1e9]))
    assert found.tolist() == pytest.approx([0, 1 / (1 + math.e), 0.5, math.e / (1 + math.e), 1])


def test_the_calibration_error_by_hand() -> None:
    first = (np.array([0.1, 0.3, 0.9]), np.array([False, True, True]))
    second = (np.array([0.8, 1.0]), np.array([True, False]))
    counted = reliability([first, second], bins=2)
    # below 0.5: 2 pixels, 0.4 of confidence, 1 right; above: 3 pixels, 2.7, 2 right
    assert counted.error() == pytest.approx((abs(0.4 - 1) + abs(2.7 - 2)) / 5)
    assert counted.accuracy().tolist() == pytest.approx([1 / 2, 2 / 3])
    coverage, risk = counted.risk_coverage()
    assert coverage.tolist() == pytest.approx([3 / 5, 1])
    assert risk.tolist() == pytest.approx([1 / 3, 2 / 5])
    interval = counted.interval(repetitions=200)
    alone = [reliability([one], bins=2).error() for one in (first, second)]
    assert (interval.low, interval.high) == pytest.approx((min(alone), max(alone)), abs=0.3)
    assert interval.low <= interval.estimate <= interval.high
    with pytest.raises(InputError, match="no image"):
        reliability([])


def test_intervals_of_bins_follow_from_the_images_that_have_them() -> None:
    one, other = (np.array([0.05, 0.95]), np.array([False, True])), (np.array([0.95]), [False])
    low, high = reliability([one, (other[0], np.array(other[1]))], bins=10).accuracy_intervals()
    assert (low[0], high[0]) == (0, 0)  # only one image has it: no draw says anything else
    assert (low[9], high[9]) == (0, 1)  # right in one image and wrong in the other
    assert np.isnan(low[1:9]).all() and np.isnan(high[1:9]).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_errors_and_curves_keep_their_bounds(pixels: list[tuple[float, bool]]) -> None:
    confidence, right = np.array([p for p, _ in pixels]), np.array([r for _, r in pixels])
    counted = reliability([(confidence, right)])
    gap = abs(confidence.mean() - right.mean())  # one bin for all: the smallest error there is
    assert gap - 1e-9 <= counted.error() <= 1
    assert counted.pixels.sum() == len(pixels)
    coverage, risk = counted.risk_coverage()
    assert (np.diff(coverage) >= 0).all() and coverage[-1] == 1
    assert risk[-1] == pytest.approx(1 - right.mean())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_the_area_under_the_curve_counts_pairs(pixels: list[tuple[int, bool]]) -> None:
    scores, positive = np.array([s for s, _ in pixels]), np.array([p for _, p in pixels])
    if positive.all() or not positive.any():
        assert math.isnan(auroc(scores, positive))
        return
    gaps = scores[positive][:, None] - scores[~positive][None]
    assert auroc(scores, positive) == pytest.approx(((gaps > 0) + 0.5 * (gaps == 0)).mean())


@pytest.mark.parametrize("block", [1, 1 << 22])
def test_evidence_is_what_the_scores_say(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    torch.manual_seed(0)
    vocabulary = replace(NAMES, others=("tree",), synonyms=(("tom",), (), ()))
    prob, logits = torch.rand(7, len(vocabulary.words)), torch.randn(7, 6, 5)
    geometry = MaskGeometry((6, 5), (6, 5), (6, 5))
    found = grid_evidence(prob, logits, geometry, vocabulary)
    own = semantic_scores(prob, logits, geometry)[torch.from_numpy(counts_as_name(vocabulary))]
    assert len(own) == 4  # three names and a synonym, but not what only competes
    np.testing.assert_allclose(found.best, own.amax(0), rtol=1e-5)
    np.testing.assert_allclose(found.total, own.sum(0), rtol=1e-5)


def test_the_confidence_is_that_of_the_regression_at_each_pixel() -> None:
    segmenter, image = Grid(), photo()
    plain = segmenter.segment(image, NAMES)
    assert plain.confidence is None and plain.named is None
    known = calibration()
    use_calibration(segmenter, known)
    found = segmenter.segment(image, NAMES)
    assert segmenter.calibrated and found.confidence is not None and found.named is not None
    np.testing.assert_array_equal(found.labels, plain.labels)
    scores = 1 / (1 + np.exp(4 - image / 32.0))
    best, total = scores.max(-1), scores.sum(-1)
    share = best / (total + 1e-6)
    odds = np.log(best + 1e-4) + 0.5 * np.log((share + 1e-4) / (1 - share + 1e-3)) + 0.25
    np.testing.assert_allclose(found.confidence, 1 / (1 + np.exp(-odds)), atol=1e-5)
    odds = 2 * np.log(total + 1e-3) + 1
    np.testing.assert_allclose(found.named, 1 / (1 + np.exp(-odds)), atol=1e-5)
    assert found.confidence.dtype == np.float32


def test_tiles_bring_their_confidences_along() -> None:
    segmenter, image = Grid(), photo(size=(70, 50))
    use_calibration(segmenter, calibration())
    whole = segmenter.segment(image, NAMES)
    tiled = TiledSegmenter(segmenter, 40, 16).segment(image, NAMES)
    np.testing.assert_allclose(tiled.confidence, whole.confidence, atol=1e-6)
    np.testing.assert_allclose(tiled.named, whole.named, atol=1e-6)


def test_padding_of_the_network_s_input_is_cut_off() -> None:
    best = np.full((4, 4), 0.9, np.float32)
    best[:, 2:] = 0.01  # behind the image
    evidence = Evidence(best, np.ones_like(best), MaskGeometry((32, 32), (32, 12), (64, 24)))
    found = Segmentation(np.zeros((64, 24), np.int32), NAMES)
    confidence = apply(calibration(), found, evidence).confidence
    assert confidence is not None and confidence.shape == (64, 24)
    np.testing.assert_allclose(confidence, confidence[0, 0], rtol=1e-5)


def test_the_background_is_as_sure_as_there_is_no_name() -> None:
    vocabulary = Vocabulary(("background", "cat"), background=Background.threshold(0.5))
    assert counts_as_name(vocabulary).tolist() == [True]
    best = np.full((2, 2), 0.3, np.float32)
    evidence = Evidence(best, best, MaskGeometry((2, 2), (2, 2), (2, 2)))
    labels = np.array([[0, 1], [1, 1]], np.int32)
    found = apply(calibration(), Segmentation(labels, vocabulary), evidence)
    assert found.confidence is not None and found.named is not None
    assert found.confidence[0, 0] == pytest.approx(1 - found.named[0, 0])
    assert found.confidence[0, 1] != pytest.approx(1 - found.named[0, 1])


def test_none_of_these_asks_whether_a_name_is_there_and_min_score_whether_it_is_right() -> None:
    labels = np.array([[0, 0], [1, 1]], np.int32)
    sure = np.array([[0.9, 0.9], [0.2, 0.2]], np.float32)
    named = np.array([[0.1, 0.8], [0.8, 0.8]], np.float32)
    found = Segmentation(labels, NAMES, confidence=sure, named=named)
    assert found.with_threshold(none_of_these=0.5).labels.tolist() == [[-1, 0], [1, 1]]
    assert found.with_threshold(min_score=0.5).labels.tolist() == [[0, 0], [-1, -1]]
    with pytest.raises(ValueError, match="named has shape"):
        Segmentation(labels, NAMES, named=named[:1])


def test_the_json_of_a_result_has_scores_where_there_is_a_confidence() -> None:
    labels = np.array([[0, 1], [1, 1]], np.int32)
    sure = np.array([[0.9, 0.2], [0.3, 0.7]], np.float32)
    plain = Segmentation(labels, NAMES).to_json()["segments"]
    assert not any("score" in segment for segment in plain)
    rated = Segmentation(labels, NAMES, confidence=sure).to_json()["segments"]
    assert {one["name"]: one["score"] for one in rated} == {"cat": 0.9, "dog": 0.4}


def test_a_calibration_survives_its_file(tmp_path: Path) -> None:
    known, file = calibration(), calibration_file(tmp_path / "weights.pth")
    assert file.name == "weights.calibration.json"
    known.save(file)
    assert Calibration.load(file) == known and Calibration.load(file).sha256() == known.sha256()
    assert replace(known, images=4).sha256() != known.sha256()
    segmenter = Grid()
    load_calibration(segmenter, file)
    assert segmenter.describe()["calibration"] == known.sha256()


DAMAGE = {
    "no JSON": "{",
    "a list": "[]",
    "nothing": "{}",
    "an unknown feature": json.dumps(
        {"confidence": {"features": ["color"], "weights": [1], "bias": 0}, "named": {}}
    ),
    "weights that are no numbers": json.dumps(
        {"confidence": {"features": ["log_best"], "weights": [float("nan")], "bias": 0}}
    ),
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_calibration_is_left_out_with_a_warning(content: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.calibration.json"
    write_text(file, content)
    with pytest.raises(InputError, match=r"weights\.calibration\.json"):
        Calibration.load(file)
    segmenter = Grid()
    with pytest.warns(UserWarning, match="confidences are left out"):
        load_calibration(segmenter, file)
    assert not segmenter.calibrated and segmenter.describe()["calibration"] == "none"


def test_a_calibration_of_other_weights_or_settings_is_not_used(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    file = tmp_path / "weights.calibration.json"
    calibration(weights_sha256="other").save(file)
    segmenter = Grid()
    with pytest.warns(UserWarning, match="fitted for other weights"):
        load_calibration(segmenter, file)
    assert not segmenter.calibrated
    recwarn.clear()
    calibration(settings_sha256="other").save(file)
    load_calibration(segmenter, file)
    load_calibration(segmenter, tmp_path / "missing.json")
    assert not segmenter.calibrated and not recwarn.list
    same = {"method": "Grid", "weights_sha256": "xyz", "resize_rule": "none", "device": "cuda"}
    assert settings_sha256(same) == settings_sha256(Grid().describe())
    assert settings_sha256({**same, "resize_rule": "half"}) != settings_sha256(same)


@pytest.fixture
def pets(tmp_path: Path) -> FolderDataset:
    """Photos of noise; a third of the true labels are wrong."""
    from PIL import Image

    rng = np.random.default_rng(1)
    folders = [tmp_path / "pets", tmp_path / "labels"]
    for folder in folders:
        folder.mkdir()
    for index in range(6):
        image = photo(index, (40, 30))
        truth = image.argmax(-1).astype(np.uint8)
        noisy = rng.random(truth.shape) < 1 / 3
        truth[noisy] = rng.integers(0, 3, int(noisy.sum()))
        truth[:2] = 255
        for array, folder in zip((image, truth), folders, strict=True):
            Image.fromarray(array).save(folder / f"{index}.png")
    names = tmp_path / "names.txt"
    write_text(names, "\n".join(NAMES.names))
    return FolderDataset(*folders, names)  # type: ignore[call-arg]


def test_a_fitted_calibration_says_how_often_labels_are_right(pets: FolderDataset) -> None:
    segmenter = Grid()
    fitted = fit_calibration(segmenter, pets)
    assert (fitted.data_set, fitted.split, fitted.images) == ("pets", "", 6)
    assert fitted.label_tree_hash == pets.label_tree_hash()
    assert segmenter.on_evidence is None
    use_calibration(segmenter, fitted)
    seen = [judge(segmenter, pets, sample, NAMES) for sample in pets.samples]
    assert not any(one.judgeable()[:2].any() for one in seen)  # void is not judged
    counted = reliability(
        [(one.found.confidence[one.judgeable()], one.right()[one.judgeable()]) for one in seen]
    )
    assert counted.error() < 0.05
    again = fit_calibration(segmenter, pets)  # its own calibration has no influence
    assert (again.confidence, again.named) == (fitted.confidence, fitted.named)


def test_a_method_without_evidence_cannot_be_calibrated(pets: FolderDataset) -> None:
    class Silent(Grid):
        def _segment(self, image: Any, vocabulary: Vocabulary) -> Segmentation:
            return Segmentation(np.zeros(image.shape[:2], np.int32), vocabulary)

    with pytest.raises(InputError, match="cannot be calibrated"):
        fit_calibration(Silent(), pets)


def test_the_ground_leaves_the_names() -> None:
    truth = np.array([[0, 2, 2], [0, 0, 0], [-1, -2, -1]], np.int32)
    shorter, places = without_ground(NAMES, truth) or (None, None)
    assert shorter is not None and places is not None
    assert shorter.names == ("cat", "dog") and shorter.things == (True, True)
    assert places.tolist() == [0, 1, -1]
    shorter, places = without_ground(replace(NAMES, things=None), truth) or (None, None)
    assert shorter is not None and shorter.names == ("dog", "grass")
    assert without_ground(NAMES, np.zeros((2, 2), np.int32)) is None  # no stuff
    assert without_ground(Vocabulary(("cat",)), np.zeros((2, 2), np.int32)) is None
    assert without_ground(replace(NAMES, things=None), np.full((2, 2), -1, np.int32)) is None


def test_the_command_refuses_what_it_cannot_do() -> None:
    with pytest.raises(InputError, match="at least 2"):
        main(["--method", "san", "--limit", "1"])
    assert world_vocabulary().things is not None  # by which the command finds the ground
