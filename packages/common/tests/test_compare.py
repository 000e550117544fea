from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from openvocab import score
from openvocab.cli import run
from openvocab.compare import (
    Evaluation,
    compare_evaluations,
    compare_every_two,
    compare_results,
    main,
)
from openvocab.errors import InputError
from openvocab.evaluation.run import FolderDataset, evaluate_set
from openvocab.segmenter import Segmentation


class Noisy:
    """Takes the red channel for the label, and gets a share of the pixels wrong."""

    def __init__(self, wrong, variant):
        self.wrong, self.variant = wrong, variant
        self.random = np.random.default_rng(0)

    def segment(self, image, vocabulary, *, return_scores=False):
        labels = np.asarray(image)[..., 0].astype(np.int32)
        wrong = self.random.random(labels.shape) < self.wrong
        return Segmentation(np.where(wrong, (labels + 1) % 3, labels).astype(np.int32), vocabulary)

    def describe(self):
        return {"method": "noisy", "variant": self.variant}


@pytest.fixture
def data(tmp_path):
    random = np.random.default_rng(1)
    for i in range(8):
        truth = random.integers(0, 3, (12, 12)).astype(np.uint8)
        for folder, pixels in (("images", np.stack([truth] * 3, axis=-1)), ("labels", truth)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    return FolderDataset(tmp_path / "images", tmp_path / "labels", tmp_path / "names.txt")


@pytest.fixture
def outputs(data, tmp_path):
    folders = {}
    for variant, wrong in (("good", 0.1), ("bad", 0.4)):
        folders[variant] = tmp_path / variant
        segmenter = Noisy(wrong, variant)
        evaluate_set(segmenter, data, output=folders[variant], progress=False)
    return folders


def test_the_better_method_is_better_and_the_protocols_are_compared(outputs):
    found = compare_results(outputs["good"], outputs["bad"])
    assert found.differences == ("the variant differs: good against bad",)
    for convention, paired in found.paired.items():
        expected = found.first.scores(convention).miou - found.second.scores(convention).miou
        assert paired.interval.estimate == pytest.approx(expected)
        assert 0 < paired.interval.low < expected < paired.interval.high
        assert paired.probability_better == 1


def test_the_command(outputs):
    command = [sys.executable, "-m", "openvocab.compare", str(outputs["good"]), str(outputs["bad"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "the variant differs: good against bad" in done.stdout
    assert "8 images; the difference is first - second" in done.stdout
    assert done.stdout.count("+") == 9  # every difference and interval is above 0


def test_a_method_and_itself(outputs, capsys):
    assert main([str(outputs["good"]), str(outputs["good"])]) == 0
    assert "the protocols are the same" in capsys.readouterr().out


def test_other_images_cannot_be_compared(data, outputs, tmp_path):
    few = tmp_path / "few"
    evaluate_set(Noisy(0, "few"), data, output=few, progress=False, limit=3)
    with pytest.raises(InputError, match="not evaluated on the same images"):
        compare_results(outputs["good"], few)


def test_a_result_of_other_images_than_its_log_is_refused(data, outputs):
    again = evaluate_set(Noisy(0, "good"), data, output=outputs["good"], progress=False, limit=3)
    assert "3 of 8 images" in again.table() and again.to_json()["images_of_set"] == 8
    with pytest.raises(InputError, match="is of 3 of 8 images and its logs hold 8"):
        compare_results(outputs["good"], outputs["bad"])
    evaluate_set(Noisy(0, "bad"), data, output=outputs["bad"], progress=False, limit=3)
    with pytest.raises(InputError, match="without it, which computes only what is missing"):
        compare_results(outputs["good"], outputs["bad"])
    for variant, folder in outputs.items():  # nothing is computed again
        whole = evaluate_set(Noisy(0, variant), data, output=folder, progress=False)
        assert "8 images" in whole.table() and "of 8" not in whole.table()
    found = compare_results(outputs["good"], outputs["bad"])
    assert found.paired["detectron2"].interval.estimate > 0


def test_other_labels_cannot_be_compared(data, outputs, tmp_path):
    Image.new("L", (12, 12)).save(tmp_path / "labels" / "0.png")
    other = tmp_path / "other"
    evaluate_set(Noisy(0.1, "good"), data, output=other, progress=False)
    with pytest.raises(InputError, match="the content of the label maps differs"):
        compare_results(outputs["good"], other)


def test_folders_without_results(outputs, tmp_path, capsys):
    assert run(main, [str(outputs["good"]), str(tmp_path / "no")]) == 2
    assert "no/result.json" in capsys.readouterr().err
    for log in outputs["bad"].glob("*.log"):
        log.unlink()
    assert run(main, [str(outputs["good"]), str(outputs["bad"])]) == 2
    assert "hold 0 of 8 images" in capsys.readouterr().err


def test_any_number_of_results_with_corrected_intervals(data, outputs, tmp_path, capsys):
    scored, foreign = tmp_path / "scored", tmp_path / "foreign"
    foreign.mkdir()
    for path in sorted((tmp_path / "labels").iterdir()):
        truth = np.asarray(Image.open(path))
        Image.fromarray(np.where(truth == 1, 2, truth).astype(np.uint8)).save(foreign / path.name)
    words = ["--images", tmp_path / "images", "--labels", tmp_path / "labels"]
    words = [str(word) for word in [*words, "--names", tmp_path / "names.txt"]]
    arguments = ["--predictions", str(foreign), "--output", str(scored), "--quiet"]
    assert run(score.main, [*arguments, *words]) == 0
    folders = [str(outputs["good"]), str(outputs["bad"])]
    capsys.readouterr()
    assert run(main, [*folders, str(scored)]) == 0
    text = capsys.readouterr().out
    assert "The 3 intervals of a matrix together" in text and "Bonferroni: each has 98.33 %" in text
    assert "method differs: noisy | noisy | foreign" in text
    good, bad = (Evaluation.read(outputs[key]) for key in ("good", "bad"))
    estimate = good.result.scores().miou - bad.result.scores().miou
    assert f"{estimate:+.2f}* (" in text
    assert run(main, [*folders, str(foreign), *words]) == 0
    assert capsys.readouterr().out.split("detectron2\n")[1].split("3:")[0] in text


def test_corrected_intervals_hold_the_single_ones(outputs):
    found = {key: Evaluation.read(folder) for key, folder in outputs.items()}
    single = compare_evaluations(*found.values()).paired["detectron2"].interval
    assert compare_every_two(found)["good", "bad"].interval == single  # one pair: no correction
    three = compare_every_two({**found, "again": found["bad"]})
    corrected = three["good", "bad"].interval
    assert corrected.low < single.low and single.high < corrected.high
    assert corrected.level == pytest.approx(1 - 0.05 / 3)
    between = three["bad", "again"]
    assert between.interval.low == between.interval.high == 0 and between.probability_better == 0.5


def test_one_result_of_many_that_does_not_fit_is_refused(data, outputs, tmp_path, capsys):
    few = tmp_path / "few"
    evaluate_set(Noisy(0, "few"), data, output=few, progress=False, limit=3)
    assert run(main, [*map(str, outputs.values()), str(few)]) == 2
    assert "not evaluated on the same images" in capsys.readouterr().err
