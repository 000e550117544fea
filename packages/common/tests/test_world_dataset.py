"""The embedded world as a data set, and its command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openvocab.cli import run
from openvocab.datasets import resolve
from openvocab.datasets.samples import FolderDataset
from openvocab.errors import InputError
from openvocab.evaluation.run import evaluate_set
from openvocab.image import read_image, read_label_map
from openvocab.segmenter import Segmentation
from openvocab.world import dataset as dataset_module
from openvocab.world import main, names_in_caption, open_world, scene, world_vocabulary

# Of 200 scenes of 128 pixels. It changes when, and only when, the validation labels change; results
# on the old ones can then no longer be compared with new ones.
VALIDATION_HASH = "82ea9a0305cbf4a726ede37c65d1028a669247ffa9f5ecf92d7a9d5df84d6a92"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_validation_split_is_the_one_that_results_were_measured_on() -> None:
    data = resolve("world")
    assert (data.name, data.split, len(data.samples)) == ("world", "val", 200)
    assert data.ignore_index == (255,)
    assert data.vocabulary == world_vocabulary()
    assert data.label_tree_hash() == VALIDATION_HASH


def test_files_hold_the_scenes() -> None:
    data = resolve("world:tune:3")
    assert [sample.id for sample in data.samples] == ["000000", "000001", "000002"]
    for index, sample in enumerate(data.samples):
        drawn = scene(index, "tune")
        np.testing.assert_array_equal(read_image(sample.image), drawn.image)
        np.testing.assert_array_equal(read_label_map(sample.label), drawn.label)
        np.testing.assert_array_equal(data.read_label(sample), drawn.label)


def test_training_split_has_the_seen_names_only() -> None:
    data = resolve("world:train:4")
    assert data.vocabulary == world_vocabulary(seen_only=True)
    labels = np.concatenate([data.read_label(s).ravel() for s in data.samples])
    assert set(labels.tolist()) - {255} <= set(range(len(data.vocabulary)))


def test_only_missing_files_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_world("val", 3, size=32)
    first.samples[1].label.unlink()
    times = first.samples[0].image.stat().st_mtime_ns
    drawn: list[int] = []

    def counting(index, split, size):
        drawn.append(index)
        return scene(index, split, size)

    monkeypatch.setattr(dataset_module, "scene", counting)
    again = open_world("val", 5, size=32)
    assert drawn == [1, 3, 4]
    assert again.samples[0].image.stat().st_mtime_ns == times
    assert again.samples[:3] == first.samples


def test_another_version_of_the_world_has_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_world("val", 1, size=32).samples[0].image
    monkeypatch.setattr(dataset_module, "world_version", lambda: "f" * 64)
    after = open_world("val", 1, size=32).samples[0].image
    assert before != after and before.exists() and after.exists()


def test_without_a_cache_files_go_to_the_data_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENVOCAB_CACHE", "")
    data = resolve("world:val:1", tmp_path / "data")
    assert data.samples[0].image.is_relative_to(tmp_path / "data" / "world")


def test_evaluation_on_the_world() -> None:
    data = open_world("val", 6, size=48)

    class Truth:
        """Answers with the ground truth, and "dog" where there is none."""

        def segment(self, image, vocabulary, *, return_scores=False):
            found = next(s for s in data.samples if (read_image(s.image) == image).all())
            labels = data.read_label(found).astype(np.int32)
            return Segmentation(np.where(labels == 255, 0, labels), vocabulary)

        def describe(self):
            return {"method": "truth"}

    result = evaluate_set(Truth(), data, progress=False)
    assert result.complete and result.card.data_set == "world" and result.card.n_images == 6
    assert result.matrix.trace() == result.matrix.sum() > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("world:pretrain", "no split 'pretrain' with masks; it has train, tune, val"),
        ("world:train:many", "asks for 'many' scenes"),
        ("world:val:0", "cannot have 0 scenes"),
    ],
)
def test_impossible_splits_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(name)


def test_command_draws_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    options = ["--count", "3", "--columns", "2", "--size", "48", "--seed", "7"]
    assert main(["--draw", str(sheet), *options]) == 0
    assert "CC BY-SA 4.0" in capsys.readouterr().out
    pixels = np.array(Image.open(sheet))
    corner = pixels[14 : 14 + 384 : 8, 14 : 14 + 384 : 8]  # one of 8 x 8 equal pixels
    np.testing.assert_array_equal(corner, scene(7, "val", 48).image)
    assert pixels.shape[1] > pixels.shape[0] > 384 * 2


def test_command_writes_folders_that_are_a_data_set(tmp_path: Path) -> None:
    options = ["--split", "pretrain", "--count", "5", "--size", "40", "--seed", "10"]
    assert main(["--write", str(tmp_path), *options]) == 0
    data = FolderDataset(tmp_path / "images", tmp_path / "labels", tmp_path / "names.txt")
    assert data.vocabulary.names == world_vocabulary(seen_only=True).names
    scenes = [scene(10 + i, "pretrain", 40) for i in range(5)]
    for sample, drawn in zip(data.samples, scenes, strict=True):
        np.testing.assert_array_equal(read_image(sample.image), drawn.image)
        np.testing.assert_array_equal(data.read_label(sample), drawn.label)
    lines = (tmp_path / "captions.tsv").read_text().splitlines()
    assert lines == [f"{10 + i:06d}.png\t{drawn.caption}" for i, drawn in enumerate(scenes)]
    nouns = [line.split("\t")[1] for line in (tmp_path / "nouns.tsv").read_text().splitlines()]
    assert nouns == [", ".join(names_in_caption(drawn.caption)) for drawn in scenes]


def test_command_lists_the_world_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "openvocab.world"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "32 seen things: dog" in text and "4 unseen stuff:" in text and "world:val 200" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--draw", "sheet.txt"], "sheet.txt is no picture"),
        (["--draw", "sheet.png", "--count", "0"], "0 scenes"),
        (["--draw", "sheet.png", "--size", "4"], "size is 4"),
        (["--draw", "sheet.png", "--seed", "-3"], "index is -3"),
    ],
)
def test_command_refuses_what_it_cannot_draw(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, options) == 2
    assert message in capsys.readouterr().err
