from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from car import demo, evaluate, predict
from car.config import named_config
from car.evaluate import summarize
from car.segmenter import CaRSegmenter, load_car
from openvocab.cli import run
from openvocab.errors import InputError
from openvocab.evaluation.protocol import ProtocolCard
from openvocab.evaluation.results import Result


@pytest.fixture
def model(clip_files, monkeypatch, tmp_path) -> list[str]:
    monkeypatch.setenv("OPENVOCAB_CACHE", str(tmp_path / "cache"))
    return ["--clip", str(clip_files[0]), "--classifier-clip", str(clip_files[1])]


@pytest.fixture
def picture(photo, tmp_path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    return path


def test_demo_writes_mask_overlay_and_steps(model, picture, tmp_path) -> None:
    output = tmp_path / "out"
    names = ["--class-names", "red ball", "blue box", "--confidence-threshold", "0"]
    arguments = ["--input", str(picture), "--output", str(output), "--show-steps"]
    assert demo.main([*model, *names, *arguments]) == 0
    labels = np.asarray(Image.open(output / "photo_labels.png"))
    assert labels.shape == (90, 120) and set(np.unique(labels)) <= {0, 1, 255}
    assert Image.open(output / "photo_overlay.png").size[0] >= 120
    assert Image.open(output / "photo_steps.png").size[0] > 300
    method = json.loads((output / "photo.json").read_text())["method"]
    assert method["method"] == "CaR" and method["thresholds"]["confidence"] == 0


def test_demo_takes_a_file_of_the_original(clip_files, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENVOCAB_CACHE", "")
    proposer, judge = map(str, clip_files)
    content = {
        "image_path": picture.name,
        "image_caption": ["red ball", "blue box"],
        "clip": {"clip_model_name": proposer, "semantic_clip_model_name": judge},
        "car": {"visual_prompt_type": ["circle", "blur"], "confidence_threshold": 0},
        "test": {"seg_mode": "semantic", "use_pseudo": False},
    }
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump(content))
    output = tmp_path / "out"
    assert demo.main(["--cfg-path", str(path), "--output_path", str(output)]) == 0
    names = json.loads((output / "photo.json").read_text())["names"]
    assert names == ["red ball", "blue box"]
    assert not (output / "photo_steps.png").exists()
    assert "give --sam FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "missing.jpg", "--class-names", "cat"], "missing.jpg"),
        (["--class-names", "cat"], "no image is given"),
        (["--input", "PICTURE", "--class-names", " , "], "no class names"),
        (["--input", "PICTURE"], "name"),
        (
            ["--input", "PICTURE", "--class-names", "cat", "--sam", "no_vit_b.pth"],
            "SAM|segment-any",
        ),
        (["--cfg-path", "missing.yaml"], "missing.yaml"),
        (["--config", "voc", "--input", "PICTURE"], "no configuration 'voc'"),
        (["--config", "voc21", "--cfg-path", "a.yaml"], "not both"),
        (["--input", "PICTURE", "--class-names", "a", "--mask-threshold", "2"], "0..1"),
        (["--input", "PICTURE", "--class-names", "a", "--visual-prompt-type", "crop"], "crop"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(model, picture, capsys, arguments, message) -> None:
    given = [str(picture) if word == "PICTURE" else word for word in arguments]
    assert run(demo.main, [*model, *given]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    assert __import__("re").search(message, error)


def test_demo_says_in_one_sentence_what_was_reduced(model, picture, tmp_path, capsys) -> None:
    words = ["--input", str(picture), "--class-names", "cat", "--max-side", "64"]
    assert run(demo.main, [*model, *words, "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: the image of 120x90 pixels is segmented at 64x48, since max_side is 64; labels "
        "are enlarged to its own size"
    ]


def test_demo_runs_as_a_module(model, picture, tmp_path) -> None:
    command = [sys.executable, "-m", "car.demo", *model, "--input", str(tmp_path / "no.jpg")]
    done = subprocess.run(
        [*command, "--class-names", "cat"], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 2
    assert "no.jpg" in done.stderr and "Traceback" not in done.stderr


def test_weights_name_a_configuration_one_clip_or_two(clip_files, picture, tmp_path) -> None:
    proposer, judge = map(str, clip_files)
    words = [
        "--input",
        str(picture),
        "--class-names",
        "dog",
        "sky",
        "--output",
        str(tmp_path / "o"),
    ]

    def described(*arguments: str) -> dict:
        assert predict.main([*words, *arguments]) == 0
        return json.loads((tmp_path / "o" / "photo.json").read_text())["method"]

    world = described("--weights", "world")
    assert world["variant"] == "proposals world, classifier world"
    assert world["thresholds"]["confidence"] == 0.003
    one = described("--weights", proposer)
    assert one["variant"] == f"proposals {proposer}, classifier {proposer}"
    assert one["thresholds"]["confidence"] == 0.45
    two = described("--weights", f"{proposer},{judge}", "--config", "voc21")
    assert two["variant"] == f"proposals {proposer}, classifier {judge}"
    assert two["thresholds"]["confidence"] == 0.6

    def loaded(*words: str, **options: str) -> dict:
        return json.loads(json.dumps(load_car(*words, device="cpu", **options).describe()))

    assert loaded(f"{proposer},{judge}", config="voc21") == two
    assert loaded("world") == loaded(config="world") == world


def test_weights_that_are_not_there_are_one_sentence(picture, capsys) -> None:
    words = ["--input", str(picture), "--class-names", "a", "--weights", "nowhere.safetensors"]
    assert run(predict.main, words) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "nowhere.safetensors" in error and "\n" not in error


@pytest.fixture
def folders(photo, tmp_path) -> list[str]:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    truth = np.zeros(photo.shape[:2], np.uint8)
    truth[20:71, 75:106], truth[30:60, 25:55] = 2, 1
    for name in ("a", "b"):
        Image.fromarray(photo).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(truth).save(tmp_path / "labels" / f"{name}.png")
    (tmp_path / "names.txt").write_text("background\nred ball\nblue box\n")
    return [
        *("--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels")),
        *("--names", str(tmp_path / "names.txt")),
    ]


def test_evaluate_resumes_and_prints_both_mean_ious(model, folders, tmp_path, capsys, monkeypatch):
    output = tmp_path / "result"
    arguments = [*model, *folders, "--config", "voc21", "--output_path", str(output)]
    assert evaluate.main([*arguments, "--limit", "1", "--confidence_threshold", "0"]) == 0
    segmented: list[int] = []
    segment = CaRSegmenter.segment

    def spy(self, *given, **options):
        segmented.append(1)
        return segment(self, *given, **options)

    monkeypatch.setattr(CaRSegmenter, "segment", spy)
    assert evaluate.main([*arguments, "--confidence_threshold", "0"]) == 0
    assert len(segmented) == 1  # the first image was done
    text = capsys.readouterr().out
    assert "The original reports the first; it published 67.6" in text
    result = Result.load(output / "result.json")
    assert result.card.method == "CaR" and result.matrix.shape == (3, 4)
    summary = json.loads((output / "car.json").read_text())
    assert summary["published"]["scores"] == {"mIoU": 67.6}
    assert summary["mIoU"] != summary["mIoU_ignore_background"]
    settings = yaml.safe_load((output / "config.yaml").read_text())
    assert settings["mask_threshold"] == 0.4 and settings["confidence_threshold"] == 0
    assert settings["visual_prompt_type"] == ["circle", "blur"]


def test_original_flags_override_the_file(model, folders, tmp_path) -> None:
    output = tmp_path / "result"
    flags = {
        "--mask_threshold": "0.45",
        "--confidence_threshold": "0.01",
        "--clipes_threshold": "0.35",
        "--bg_factor": "2",
        "--stuff_bg_factor": "3",
        "--visual_prompt_type": "blur,gray",
        "--stuff_visual_prompt_type": "circle,blur",
        "--output_path": str(output),
    }
    words = [word for pair in flags.items() for word in pair]
    content = {"car": {"mask_threshold": 0.9}, "test": {"num_chunks": 2, "chunk_index": 1}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    arguments = [*model, *folders, *words, "--cfg-path", str(tmp_path / "c.yaml")]
    assert evaluate.main([*arguments, "--index", "0"]) == 0
    assert not (output / "result.json").exists()  # the other part is missing
    assert evaluate.main(arguments) == 0
    settings = yaml.safe_load((output / "config.yaml").read_text())
    assert settings["mask_threshold"] == 0.45 and settings["clipes_threshold"] == 0.35
    assert settings["visual_prompt_type"] == ["blur", "gray"]
    assert settings["stuff_visual_prompt_type"] == ["circle", "blur"]
    assert Result.load(output / "result.json").card.n_images == 2


def test_evaluate_says_what_is_wrong(model, folders, tmp_path) -> None:
    chunks = {"car": {}, "test": {"num_chunks": 2}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(chunks))
    with pytest.raises(InputError, match="part 5 of num_chunks 2"):
        evaluate.main([*model, *folders, "--cfg-path", str(tmp_path / "c.yaml"), "--index", "5"])
    with pytest.raises(InputError, match="use --mode semantic"):
        evaluate.main([*model, *folders, "--mode", "refer"])
    with pytest.raises(InputError, match="needs --mode refer"):
        evaluate.main([*model, "--dataset", "refcoco"])
    with pytest.raises(InputError, match=r"VOC|voc"):
        evaluate.main([*model, "--config", "voc21", "--data-root", str(tmp_path)])


def test_ignoring_the_background_flatters() -> None:
    # Of 100 pixels of class 1, 40 are taken for background; class 2 is never found.
    matrix = np.array([[50, 0, 0, 0], [40, 60, 0, 0], [10, 0, 0, 0]])
    result = Result(ProtocolCard(), ("background", "a", "b"), matrix)
    summary = summarize(result, named_config("ade150"))
    assert summary["mIoU"] == pytest.approx((50 + 60 + 0) / 3)
    assert summary["mIoU_ignore_background"] == pytest.approx(100)  # class 2 left the mean
    assert summary["original_reports"] == "mIoU_ignore_background"
    assert summary["published"]["scores"] == {}
