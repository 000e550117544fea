from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openvocab.cli import run
from openvocab.errors import InputError
from openvocab.evaluation.log import read_records
from openvocab.evaluation.results import Result
from openvocab.evaluation.run import (
    FolderDataset,
    Sample,
    add_evaluate_arguments,
    evaluate,
    evaluate_set,
    run_evaluation,
)
from openvocab.formats.detectron2 import labels_of_predictions, read_predictions
from openvocab.metrics.boundary import boundary_counts
from openvocab.metrics.calibration import BINS
from openvocab.metrics.scores import ConfusionMatrix
from openvocab.segmenter import Segmentation
from openvocab.vocabulary import Background, Vocabulary

NAMES = ("cat", "dog", "bird")


class RedIsLabel:
    """Takes the red channel for the label; counts its calls."""

    def __init__(self, **described):
        self.calls = 0
        self.described = described

    def segment(self, image, vocabulary, *, return_scores=False, bgr=False):
        self.calls += 1
        labels = np.asarray(image)[..., 0].astype(np.int32)
        return Segmentation(np.where(labels == 200, -1, labels), vocabulary)

    def describe(self):
        return {"method": "red", "weights_sha256": "0" * 64, "thresholds": {}, **self.described}


class StopsAfter(RedIsLabel):
    def __init__(self, images):
        super().__init__()
        self.images = images

    def segment(self, image, vocabulary, *, return_scores=False, bgr=False):
        if self.calls == self.images:
            raise KeyboardInterrupt
        return super().segment(image, vocabulary)


def save_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    """Six images of different sizes whose red channel is the prediction."""
    random = np.random.default_rng(0)
    root = tmp_path / "data set"
    for i in range(6):
        size = (10 + i, 14)
        prediction = random.choice([0, 1, 2, 200], size=size, p=[0.4, 0.3, 0.2, 0.1])
        truth = np.where(random.random(size) < 0.6, prediction % 200, 255)
        red = np.stack([prediction, 0 * prediction, 0 * prediction], axis=-1)
        save_png(root / "images" / "sub" / f"{i}.png", red.astype(np.uint8))
        save_png(root / "labels" / "sub" / f"{i}.png", truth.astype(np.uint8))
    (root / "names.txt").write_text("\n".join(NAMES) + "\n")
    return root


@pytest.fixture
def data(folder):
    return FolderDataset(folder / "images", folder / "labels", folder / "names.txt")


def expected_matrix(data, indices=range(6)):
    confusion = ConfusionMatrix(3)
    for i in indices:
        red = np.asarray(Image.open(data.samples[i].image))[..., 0].astype(int)
        truth = np.asarray(Image.open(data.samples[i].label))
        confusion.update(np.where(red == 200, -1, red), truth)
    return confusion.matrix


def quiet(segmenter, data, **options):
    return evaluate_set(segmenter, data, progress=False, **options)


# --- the numbers --------------------------------------------------------------------------------


def test_the_matrix_is_that_of_all_images(data, tmp_path):
    in_memory = quiet(RedIsLabel(), data)
    on_disk = quiet(RedIsLabel(), data, output=tmp_path / "out")
    np.testing.assert_array_equal(in_memory.matrix, expected_matrix(data))
    read = Result.load(tmp_path / "out" / "result.json")
    np.testing.assert_array_equal(read.matrix, in_memory.matrix)
    assert read.card == in_memory.card == on_disk.card
    assert read.intervals == on_disk.intervals == in_memory.intervals
    interval = read.intervals["detectron2"]
    assert interval.low < read.scores().miou < interval.high


def test_the_card_says_what_was_done(data):
    card = quiet(RedIsLabel(resize_rule="none", mode={"a": 1}), data, limit=4, seed=3).card
    assert (card.data_set, card.n_images, card.n_classes, card.seed) == ("images", 4, 3, 3)
    assert (card.method, card.resize_rule, card.settings) == ("red", "none", {"mode": {"a": 1}})
    assert card.ignore_index == (255,)
    assert card.label_tree_hash == data.label_tree_hash()
    assert len(card.vocabulary_hash) == len(card.templates_hash) == 64


def test_boundaries_are_counted_when_asked_for(data, tmp_path):
    for output in (None, tmp_path / "out"):
        result = quiet(RedIsLabel(), data, output=output, boundary=True)
        expected = np.zeros((3, 3), int)
        for sample in data.samples:
            red = np.asarray(Image.open(sample.image))[..., 0].astype(int)
            truth = np.asarray(Image.open(sample.label))
            expected += boundary_counts(np.where(red == 200, -1, red), truth, 3)
        np.testing.assert_array_equal(result.boundary, expected)


class SureOfDogs(RedIsLabel):
    """Is sure of some labels and unsure of others."""

    def segment(self, image, vocabulary, *, return_scores=False, bgr=False):
        found = super().segment(image, vocabulary)
        confidence = np.where(found.labels == 1, 0.95, 0.05).astype(np.float32)
        return replace(found, confidence=confidence)


def test_confidences_are_counted_where_there_are_any(data, tmp_path):
    quiet(SureOfDogs(), data, output=tmp_path)
    records = list(read_records(tmp_path, Result.load(tmp_path / "result.json").card))
    assert len(records) == 6
    counts = np.sum([record.confidence for record in records], axis=0)
    matrix = expected_matrix(data)
    predicted, right = matrix[:, :3].sum(axis=0), np.diag(matrix)  # -1 has no confidence
    filled = {0: predicted[[0, 2]].sum(), BINS - 1: predicted[1]}
    assert {i: n for i, n in enumerate(counts[0]) if n} == filled
    assert counts[2][[0, -1]].tolist() == [right[[0, 2]].sum(), right[1]]
    assert counts[1][[0, -1]] == pytest.approx(counts[0][[0, -1]] * (0.05, 0.95), abs=0.01)
    quiet(RedIsLabel(), data, output=tmp_path / "other")
    other = read_records(tmp_path / "other", Result.load(tmp_path / "other/result.json").card)
    assert all(record.confidence is None for record in other)


def test_predictions_are_saved_in_detectron2s_format(data, tmp_path):
    quiet(RedIsLabel(), data, output=tmp_path, save_predictions=True)
    read = read_predictions(tmp_path / "sem_seg_predictions.json")
    assert list(read) == [str(sample.image) for sample in data.samples]
    for sample in data.samples:
        red = np.asarray(Image.open(sample.image))[..., 0].astype(int)
        found = labels_of_predictions(read[str(sample.image)])
        np.testing.assert_array_equal(found, np.where(red == 200, -1, red))


def test_labels_from_the_index_on_are_background_under_remap(tmp_path):
    """CAT-Seg's VOC-20b: more names than classes, and background is the last class."""
    save_png(tmp_path / "i" / "a.png", np.array([[[0, 0, 0], [1, 0, 0], [2, 0, 0]]], np.uint8))
    save_png(tmp_path / "l" / "a.png", np.array([[0, 1, 1]], np.uint8))
    vocabulary = Vocabulary(("cat", "sky", "sea"), background=Background.remap(1))
    sample = Sample("a", tmp_path / "i" / "a.png", tmp_path / "l" / "a.png")
    result = evaluate(RedIsLabel(), [sample], vocabulary, progress=False)
    assert result.names == ("cat", "background")
    np.testing.assert_array_equal(result.matrix, [[1, 0, 0], [0, 2, 0]])


def test_many_classes_have_255_among_them(tmp_path):
    truth = np.full((4, 4), 255, np.uint16)
    truth[0] = 65535
    save_png(tmp_path / "i" / "a.png", np.full((4, 4, 3), 255, np.uint8))
    save_png(tmp_path / "l" / "a.png", truth)
    names = Vocabulary(tuple(f"name {i}" for i in range(300)))
    sample = Sample("a", tmp_path / "i" / "a.png", tmp_path / "l" / "a.png")
    result = evaluate(RedIsLabel(), [sample], names, progress=False)
    assert result.matrix[255, 255] == result.matrix.sum() == 12


# --- resuming -----------------------------------------------------------------------------------


def test_finished_images_are_not_computed_again(data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        quiet(StopsAfter(4), data, output=tmp_path)
    assert not (tmp_path / "result.json").exists()
    again = RedIsLabel()
    result = quiet(again, data, output=tmp_path)
    assert again.calls == 2
    np.testing.assert_array_equal(result.matrix, expected_matrix(data))
    idle = RedIsLabel()
    assert quiet(idle, data, output=tmp_path).intervals == result.intervals
    assert idle.calls == 0


def test_a_limit_can_be_raised(data, tmp_path):
    first = quiet(RedIsLabel(), data, output=tmp_path, limit=2)
    np.testing.assert_array_equal(first.matrix, expected_matrix(data, range(2)))
    more = RedIsLabel()
    result = quiet(more, data, output=tmp_path)
    assert more.calls == 4
    np.testing.assert_array_equal(result.matrix, expected_matrix(data))


def test_a_log_cut_anywhere_gives_the_same_result(data, tmp_path):
    quiet(RedIsLabel(), data, output=tmp_path)
    log = tmp_path / "images-0-of-1.log"
    content = log.read_bytes()
    ends = [i for i, byte in enumerate(content) if byte == ord("\n")]
    for cut in {*range(ends[0] + 1, len(content), 97), *(e + 1 for e in ends), ends[-1]}:
        log.write_bytes(content[:cut])
        whole_lines = sum(end <= cut for end in ends) - 1  # only the newline may be missing
        again = RedIsLabel()
        result = quiet(again, data, output=tmp_path)
        assert again.calls == 6 - whole_lines
        np.testing.assert_array_equal(result.matrix, expected_matrix(data))


def test_a_damaged_line_is_computed_again(data, tmp_path):
    quiet(RedIsLabel(), data, output=tmp_path)
    log = tmp_path / "images-0-of-1.log"
    lines = log.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"counts":[', b'"counts":[1', 1)
    log.write_bytes(b"".join(lines))
    again = RedIsLabel()
    result = quiet(again, data, output=tmp_path)
    assert again.calls == 1
    np.testing.assert_array_equal(result.matrix, expected_matrix(data))


def test_another_protocol_starts_anew_and_says_so(data, tmp_path):
    quiet(RedIsLabel(), data, output=tmp_path)
    other = RedIsLabel(resize_rule="short side 640")
    with pytest.warns(UserWarning, match=r"started anew: the resize rule differ"):
        quiet(other, data, output=tmp_path)
    assert other.calls == 6


def test_not_resuming_starts_anew(data, tmp_path):
    quiet(RedIsLabel(), data, output=tmp_path)
    again = RedIsLabel()
    quiet(again, data, output=tmp_path, resume=False)
    assert again.calls == 6


def test_what_was_not_logged_is_computed_again(data, tmp_path):
    quiet(RedIsLabel(), data, output=tmp_path)
    again = RedIsLabel()
    result = quiet(again, data, output=tmp_path, boundary=True, save_predictions=True)
    assert again.calls == 6
    np.testing.assert_array_equal(result.matrix, expected_matrix(data))


PROGRAM = """
import sys, time
from pathlib import Path
import numpy as np
from openvocab.evaluation.run import FolderDataset, evaluate_set
from openvocab.segmenter import Segmentation

class Hanging:
    calls = 0
    def segment(self, image, vocabulary, *, return_scores=False, bgr=False):
        with open(sys.argv[3], "a") as file:
            file.write("x")
        self.calls += 1
        while self.calls > int(sys.argv[4]):
            time.sleep(60)
        return Segmentation(image[..., 0].astype(np.int32) % 200, vocabulary)
    def describe(self):
        return {"method": "hanging"}

root = Path(sys.argv[1])
data = FolderDataset(root / "images", root / "labels", root / "names.txt")
evaluate_set(Hanging(), data, output=Path(sys.argv[2]), progress=False)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_loses_only_the_image_it_was_at(folder, tmp_path):
    output, calls = tmp_path / "out", tmp_path / "calls"
    log = output / "images-0-of-1.log"
    command = [sys.executable, "-c", PROGRAM, str(folder), str(output), str(calls)]
    process = subprocess.Popen([*command, "3"], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:  # the protocol and three images are logged; it hangs at the fourth
        while not (log.exists() and log.read_bytes().count(b"\n") >= 4):
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = log.read_bytes().count(b"\n") - 1
    assert finished == 3
    before = len(calls.read_text())
    subprocess.run([*command, "6"], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert len(calls.read_text()) - before == 6 - finished
    assert Result.load(output / "result.json").card.n_images == 6


# --- several processes --------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes_gives_the_same_result(data, tmp_path, world):
    alone = quiet(RedIsLabel(), data, output=tmp_path / "alone", save_predictions=True)
    together = tmp_path / "together"
    for rank in reversed(range(world)):
        segmenter = RedIsLabel()
        result = quiet(segmenter, data, output=together, shard=(rank, world), save_predictions=True)
        assert segmenter.calls == 6 // world
        assert result.complete == (rank == 0)
        assert (together / "result.json").exists() == (rank == 0)
    assert result.to_json() == alone.to_json()
    for name in ("result.json", "sem_seg_predictions.json"):
        assert (together / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_one_process_goes_on_where_two_were(data, tmp_path):
    quiet(RedIsLabel(), data, output=tmp_path, shard=(1, 2))
    alone = RedIsLabel()
    result = quiet(alone, data, output=tmp_path)
    assert alone.calls == 3
    np.testing.assert_array_equal(result.matrix, expected_matrix(data))


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_ranks_that_do_not_exist(data, shard):
    with pytest.raises(InputError, match="rank"):
        quiet(RedIsLabel(), data, shard=shard)


# --- folders ------------------------------------------------------------------------------------


def test_what_has_no_partner_is_left_out_with_a_warning(folder, data):
    save_png(folder / "images" / "alone.jpg", np.zeros((4, 4, 3), np.uint8))
    (folder / "labels" / "sub" / "3.png").unlink()
    (folder / "labels" / "notes.txt").write_text("not a label map")
    with pytest.warns(UserWarning, match=r"2 images without a label map.*: alone, sub/3"):
        assert [sample.id for sample in data.samples] == [f"sub/{i}" for i in (0, 1, 2, 4, 5)]


def test_pairs_that_fit_give_no_warning(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(data.samples) == 6


def test_folders_that_are_no_data_set(folder, tmp_path):
    names = folder / "names.txt"
    with pytest.raises(InputError, match="does not exist"):
        _ = FolderDataset(tmp_path / "no", folder / "labels", names).samples
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image in"):
        _ = FolderDataset(tmp_path / "empty", folder / "labels", names).samples
    save_png(folder / "images" / "sub" / "1.jpg", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(InputError, match="differ only in their suffix"):
        _ = FolderDataset(folder / "images", folder / "labels", names).samples


def test_the_label_hash_sees_every_change_but_not_the_place(folder, data, tmp_path):
    before = data.label_tree_hash()
    moved = folder.rename(tmp_path / "moved")
    there = FolderDataset(moved / "images", moved / "labels", moved / "names.txt")
    assert there.label_tree_hash() == before
    save_png(moved / "labels" / "sub" / "0.png", np.zeros((10, 14), np.uint8))
    assert there.label_tree_hash() != before


# --- bad data -----------------------------------------------------------------------------------


def test_a_label_value_without_name_is_told_with_file_value_and_count(folder, data):
    path = folder / "labels" / "sub" / "2.png"
    truth = np.array(Image.open(path))
    truth[0, :3] = 77
    save_png(path, truth)
    segmenter = RedIsLabel()
    with pytest.raises(InputError, match=r"2\.png: .*77 \(3 pixels\).*0\.\.2"):
        quiet(segmenter, data)
    assert segmenter.calls == 2  # it is seen before the third image is segmented


def test_sizes_must_agree(folder, data):
    save_png(folder / "labels" / "sub" / "1.png", np.zeros((5, 5), np.uint8))
    with pytest.raises(InputError, match=r"1\.png has 11 x 14 .*1\.png 5 x 5"):
        quiet(RedIsLabel(), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"limit": 0}, "limit is 0"), ({"save_predictions": True}, "output folder")],
)
def test_options_that_make_no_sense(data, options, message):
    with pytest.raises(InputError, match=message):
        quiet(RedIsLabel(), data, **options)


def test_ids_are_unique_and_there_are_samples(data):
    with pytest.raises(InputError, match="same id"):
        evaluate(RedIsLabel(), [data.samples[0]] * 2, data.vocabulary, progress=False)
    with pytest.raises(InputError, match="no images"):
        evaluate(RedIsLabel(), [], data.vocabulary, progress=False)


# --- the command --------------------------------------------------------------------------------


def command(*argv):
    def main(arguments):
        parser = argparse.ArgumentParser()
        add_evaluate_arguments(parser)
        return run_evaluation(parser.parse_args(arguments), lambda args: RedIsLabel())

    return run(main, [str(argument) for argument in argv])


@pytest.fixture
def folder_flags(folder, tmp_path):
    return (
        *("--images", folder / "images", "--labels", folder / "labels"),
        *("--names", folder / "names.txt", "--output", tmp_path / "out"),
    )


def test_the_command_prints_all_conventions(folder_flags, tmp_path, capsys):
    assert command(*folder_flags, "--boundary-iou", "--save-predictions") == 0
    printed = capsys.readouterr().out
    for words in ("6 images, 3 classes, 3 of them present", "detectron2-legacy", "mmseg"):
        assert words in printed
    assert "boundary IoU" in printed
    assert (tmp_path / "out" / "sem_seg_predictions.json").exists()
    data = json.loads((tmp_path / "out" / "result.json").read_text())
    assert data["card"]["method"] == "red"


def test_the_command_in_two_processes(folder_flags, tmp_path, capsys):
    assert command(*folder_flags, "--rank", 0, "--world-size", 2) == 0
    assert "3 images are done" in capsys.readouterr().err
    assert command(*folder_flags, "--rank", 1, "--world-size", 2) == 0
    assert "6 images, 3 classes" in capsys.readouterr().out


def test_the_place_among_processes_comes_from_the_environment(folder_flags, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command(*folder_flags) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["images-1-of-2.log"]


def test_the_void_values_of_the_command(folder, folder_flags, capsys):
    path = folder / "labels" / "sub" / "2.png"
    truth = np.array(Image.open(path))
    truth[0] = 254
    save_png(path, truth)
    assert command(*folder_flags) == 2
    assert "254" in capsys.readouterr().err
    assert command(*folder_flags, "--ignore-index", 254, 255) == 0
    warning = capsys.readouterr().err
    assert "started anew: the void values differ: [255] against [254, 255]" in warning
    assert ".py" not in warning


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "--images and --labels and --names"),
        (("--images", "x"), "missing --labels and --names"),
        (("--dataset", "a", "--images", "x"), "not both"),
        (("--images", "x", "--labels", "y", "--names", "no.txt"), "no.txt"),
    ],
)
def test_a_command_without_data(argv, message, capsys):
    assert command(*argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["ade20k-150", "ade20k_sem_seg_val", "ade20k_150_test_sem_seg"])
def test_a_known_data_set_under_its_names(tmp_path, capsys, name):
    root = tmp_path / "ADEChallengeData2016"
    truth = np.array([[0, 3, 149, 255]], np.uint8)
    red = np.stack([np.array([[0, 3, 1, 5]])] * 3, axis=-1).astype(np.uint8)
    save_png(root / "images" / "validation" / "ADE_val_1.png", red)
    save_png(root / "annotations_detectron2" / "validation" / "ADE_val_1.png", truth)
    output = tmp_path / "out"
    assert command("--dataset", name, "--data-root", tmp_path, "--output", output) == 0
    printed = capsys.readouterr()
    assert "ade20k-150 val: 1 images, 150 classes, 3 of them present" in printed.out
    assert "in the layout of detectron2" in printed.err
    result = Result.load(output / "result.json")
    assert (result.card.data_set, result.card.split) == ("ade20k-150", "val")
    assert result.scores("detectron2").miou == pytest.approx(200 / 3)
    assert result.scores("detectron2-legacy").miou == pytest.approx(200 / 4)
    assert command("--dataset", "ade20k-15", "--data-root", tmp_path) == 2
    assert "ade20k-150" in capsys.readouterr().err
