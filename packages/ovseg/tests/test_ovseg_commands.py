"""The commands, with a tiny model and made-up photos."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from openvocab.cli import run
from openvocab.evaluation.results import Result
from openvocab.weights.state_dict import read_state_dict, save_state_dict
from ovseg import demo, evaluate, predict, replace_clip, search_ensemble
from ovseg._convert import CLIP_PREFIX
from ovseg.weights import save_model

NAMES = ["cat", "dog", "sky"]


@pytest.fixture
def checkpoint(tiny, tmp_path):
    path = tmp_path / "ovseg.safetensors"
    save_model(tiny.model(), path, tiny.configs()[1])
    return path


@pytest.fixture
def photo(tiny, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(tiny.cases("eval")[0]["image"]).save(path)
    return path


@pytest.fixture
def data(tmp_path):
    """Two images with labels 0..2 and void, and their names."""
    generator = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name in ("a", "b"):
        labels = np.repeat(generator.integers(0, 3, 4), 10)[None].repeat(30, 0).astype(np.uint8)
        labels[:3] = 255
        image = np.stack([labels * 60 + 40] * 3, -1) + generator.integers(0, 40, (30, 40, 3))
        Image.fromarray(labels).save(tmp_path / "labels" / f"{name}.png")
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    places = {"images": "images", "labels": "labels", "names": "names.txt"}
    return [f"--{flag}={tmp_path / place}" for flag, place in places.items()]


def test_demo_colors_a_photo(checkpoint, photo, tmp_path, capsys):
    arguments = ["--weights", str(checkpoint), "--class-names", *NAMES]
    code = demo.main([*arguments, "--input", str(photo), "--output", str(tmp_path / "out")])
    assert code == 0
    overlay = np.asarray(Image.open(next((tmp_path / "out").glob("*overlay.png"))))
    assert len(np.unique(overlay.reshape(-1, overlay.shape[-1]), axis=0)) > 100
    labels = np.asarray(Image.open(next((tmp_path / "out").glob("*labels.png"))))
    assert labels.shape == (120, 160) and set(np.unique(labels)) <= {0, 1, 2, 255}
    assert "1 of 1 images done" in capsys.readouterr().out


def test_demo_takes_the_originals_command_line(tiny, photo, tmp_path):
    save_state_dict(tmp_path / "model.pth", tiny.state_dict())
    text = tiny.json("config.json")["cfg_yaml"]
    text = text.replace("META_ARCHITECTURE: OVSeg", "META_ARCHITECTURE: OVSegDEMO")
    (tmp_path / "base.yaml").write_text(text)
    (tmp_path / "demo.yaml").write_text(
        "_BASE_: base.yaml\nMODEL:\n  CLIP_ADAPTER:\n    CLIP_ENSEMBLE_WEIGHT: 0.0\n"
    )
    (tmp_path / "names.txt").write_text("\n".join(tiny.class_names()))  # some have commas
    command = ["--config-file", str(tmp_path / "demo.yaml")]
    command += ["--vocabulary", str(tmp_path / "names.txt")]
    command += ["--input", str(photo), "--output", str(tmp_path / "out")]
    command += ["--opts", "MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    assert demo.main([*command, "MODEL.CLIP_ADAPTER.MASK_THR", "0.35"]) == 0
    labels = np.asarray(Image.open(next((tmp_path / "out").glob("*labels.png"))))
    expected = tiny.cases("demo")[0]["label_map"]
    assert (labels == expected).mean() >= 0.99


def test_demo_ends_with_a_sentence_in_a_real_process(tmp_path):
    command = [sys.executable, "-m", "ovseg.demo", "--class-names", "cat", "--input", "x.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--weights" in done.stderr


@pytest.mark.parametrize("command", [predict, demo, evaluate, search_ensemble, replace_clip])
def test_help_is_for_people(command, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"python -m {command.__name__}" in text and len(text.split()) > 40


def test_evaluate_writes_scores_and_protocol(checkpoint, data, tmp_path, capsys):
    seen = tmp_path / "seen.txt"
    seen.write_text("cat\nsky\n")
    out = tmp_path / "out"
    arguments = ["--weights", str(checkpoint), *data, "--output", str(out), "--seen", str(seen)]
    assert evaluate.main(arguments) == 0
    text = capsys.readouterr().out
    assert "harmonic" in text and "detectron2-legacy" in text
    result = Result.load(out / "result.json")
    assert result.card.method == "OVSeg" and result.card.thresholds["ensemble_weight"] == 0.7
    assert result.matrix.sum() == 2 * 27 * 40  # void rows do not count
    scores = json.loads((out / "seen_unseen.json").read_text())
    assert scores["seen"] == [0, 2]


def test_evaluate_names_true_masks(checkpoint, data, tmp_path):
    out = tmp_path / "oracle"
    arguments = ["--weights", str(checkpoint), *data, "--output", str(out)]
    assert evaluate.main([*arguments, "--proposals", "ground-truth"]) == 0
    result = Result.load(out / "result.json")
    assert result.card.settings["proposals"] == "GroundTruthProposals"
    # Each true mask gets one name, so the rows of an image's classes are whole.
    assert result.matrix.sum() == 2 * 27 * 40


def test_evaluate_takes_the_originals_command_line(checkpoint, tmp_path, monkeypatch):
    """`DATASETS.TEST`, `OUTPUT_DIR` and the published weight of the data set."""
    root = tmp_path / "data"
    images = root / "ADEChallengeData2016" / "images" / "validation"
    labels = root / "ADEChallengeData2016" / "annotations_detectron2" / "validation"
    for folder in (images, labels):
        folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (24, 32, 3), np.uint8)).save(
        images / "ADE_val_00000001.jpg"
    )
    Image.fromarray(generator.integers(0, 150, (24, 32), np.uint8)).save(
        labels / "ADE_val_00000001.png"
    )
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    command = ["--eval-only", "--num-gpus", "0"]
    command += ["MODEL.WEIGHTS", str(checkpoint), "DATASETS.TEST", "('ade20k_sem_seg_val',)"]
    command += ["OUTPUT_DIR", str(tmp_path / "out"), "MODEL.CLIP_ADAPTER.MASK_THR", "0.3"]
    command += ["INPUT.MIN_SIZE_TEST", "32", "INPUT.MAX_SIZE_TEST", "64"]
    assert evaluate.main(command) == 0
    card = Result.load(tmp_path / "out" / "result.json").card
    assert card.n_classes == 150 and card.data_set.startswith("ade20k")
    assert card.thresholds == {"mask_threshold": 0.3, "ensemble_weight": 0.7}


@pytest.mark.parametrize(
    ("key", "expected"), [("voc-20", 0.45), ("pascal-context-59", 0.6), ("cityscapes-19", 0.7)]
)
def test_published_weight_of_a_data_set(tiny, key, expected):
    from openvocab.vocabulary import Vocabulary

    inference = tiny.configs()[1]
    vocabulary = Vocabulary.load(key)
    assert evaluate.with_published_weight(inference, vocabulary).ensemble_weight == expected
    assert evaluate.with_published_weight(tiny.demo_config(), vocabulary).ensemble_weight == 0.0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["TEST.SLIDING_WINDOW", "True"], "SLIDING_WINDOW"),
        (["TEST.DENSE_CRF", "True"], "DENSE_CRF"),
        (["DATASETS.TEST"], "no value"),
        (["DATASETS.TEST", "('no_such_set',)"], "no_such_set"),
    ],
)
def test_evaluate_refuses_what_it_cannot_do(checkpoint, options, word, capsys):
    assert run(evaluate.main, ["--weights", str(checkpoint), *options]) == 2
    error = capsys.readouterr().err
    assert word in error and "Traceback" not in error


def test_search_scores_every_setting_from_the_cache(checkpoint, data, tmp_path, capsys):
    out = tmp_path / "search"
    arguments = ["--weights", str(checkpoint), *data, "--output", str(out), "--stride", "1"]
    grid = ["--thresholds", "0.4", "0.6", "--ensemble-weights", "0", "0.3", "0.7"]
    assert search_ensemble.main([*arguments, *grid]) == 0
    assert "best of 6 settings on 2 images" in capsys.readouterr().out
    table = json.loads((out / "grid.json").read_text())
    rows = list(csv.reader((out / "grid.csv").read_text().splitlines()))
    assert [len(r) for r in rows] == [4, 4, 4] and rows[1][0] == "0.4"
    assert Image.open(out / "grid.png").size[0] > 100
    before = {f: f.stat().st_mtime_ns for f in (out / "cache").glob("*.npz")}
    assert len(before) == 2
    assert search_ensemble.main([*arguments, *grid[:3], "--ensemble-weights", "0.5"]) == 0
    assert before == {f: f.stat().st_mtime_ns for f in (out / "cache").glob("*.npz")}
    damaged = next(iter(before))
    damaged.write_bytes(damaged.read_bytes()[:500])
    assert run(search_ensemble.main, [*arguments, *grid]) == 2
    assert f"{damaged.name} is damaged" in capsys.readouterr().err
    # With every pixel scored, a setting has the evaluation's score.
    full = tmp_path / "full"
    flags = ["--region.mask-threshold", "0.6", "--ensemble-weight", "0.3"]
    evaluate.main(["--weights", str(checkpoint), *data, "--output", str(full), *flags])
    expected = Result.load(full / "result.json").scores("detectron2").miou
    assert table["miou"][1][1] == pytest.approx(expected, abs=0.5)


def test_search_checks_its_numbers(checkpoint, data, capsys):
    arguments = ["--weights", str(checkpoint), *data]
    assert run(search_ensemble.main, [*arguments, "--thresholds", "1.5"]) == 2
    assert run(search_ensemble.main, [*arguments, "--stride", "0"]) == 2
    assert "stride" in capsys.readouterr().err


def test_replace_clip_names_what_changed(tiny, tmp_path, capsys):
    save_state_dict(tmp_path / "model.pth", tiny.state_dict())
    clip = {
        k.removeprefix(CLIP_PREFIX): v.clone()
        for k, v in tiny.state_dict().items()
        if k.startswith(CLIP_PREFIX)
    }
    clip["visual.proj"] += 0.5
    clip["visual.mask_embedding"] = torch.full((4, 49, 64), 0.25)  # other depth
    wrapped = {f"module.{k}": v for k, v in clip.items()}
    torch.save({"epoch": 1, "state_dict": wrapped}, tmp_path / "clip.pt")
    paths = [str(tmp_path / name) for name in ("model.pth", "clip.pt", "out.pth")]
    assert replace_clip.main(paths) == 0
    text = capsys.readouterr().out
    assert "visual.proj: mean change 0.5" in text and "visual.mask_embedding: new" in text
    assert f"2 of {len(clip)} tensors changed" in text
    written = read_state_dict(paths[2])
    for name, tensor in written.items():
        expected = clip.get(name.removeprefix(CLIP_PREFIX), tiny.state_dict().get(name))
        assert torch.equal(tensor, expected), name


def test_replace_clip_refuses_another_size(tiny, tmp_path, capsys):
    save_state_dict(tmp_path / "model.pth", tiny.state_dict())
    other = {
        k.removeprefix(CLIP_PREFIX): v
        for k, v in tiny.state_dict().items()
        if k.startswith(CLIP_PREFIX)
    }
    other["visual.proj"] = torch.zeros(64, 48)
    save_state_dict(tmp_path / "clip.safetensors", other)
    paths = [str(tmp_path / n) for n in ("model.pth", "clip.safetensors", "out.pth")]
    assert run(replace_clip.main, paths) == 2
    assert "visual.proj" in capsys.readouterr().err and not (tmp_path / "out.pth").exists()


def test_replace_clip_without_prompts_keeps_the_models(tiny, tmp_path, capsys):
    save_state_dict(tmp_path / "model.pth", tiny.state_dict())
    clip = {
        k.removeprefix(CLIP_PREFIX): v
        for k, v in tiny.state_dict().items()
        if k.startswith(CLIP_PREFIX) and "mask_embedding" not in k
    }
    save_state_dict(tmp_path / "clip.pth", clip)
    paths = [str(tmp_path / n) for n in ("model.pth", "clip.pth", "out.pth")]
    assert replace_clip.main(paths) == 0
    assert "no mask prompts" in capsys.readouterr().out
    name = CLIP_PREFIX + "visual.mask_embedding"
    assert torch.equal(read_state_dict(paths[2])[name], tiny.state_dict()[name])
