"""SAN's commands as a person types them, with the recorded weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openvocab.cli import run
from openvocab.errors import InputError
from openvocab.image import read_label_map
from san import evaluate, predict
from san.weights import save_network


@pytest.fixture
def weights(recording, tmp_path: Path) -> Path:
    path = tmp_path / "san.safetensors"
    save_network(recording.network(), path, recording.inference)
    return path


@pytest.fixture
def photos(recording, tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for index in recording.images:
        image = recording.load(f"infer_{index}_input")["image_uint8"].numpy()
        place = folder / "deep" if index else folder
        Image.fromarray(image).save(place / f"{index}.png")
    return folder


@pytest.fixture
def labelled(recording, photos: Path, tmp_path: Path) -> list[str]:
    """Arguments that name a folder pair whose label maps are the recorded predictions."""
    labels = tmp_path / "labels"
    (labels / "deep").mkdir(parents=True)
    for index in recording.images:
        truth = recording.load(f"infer_{index}_input")["argmax"].numpy().astype(np.uint8)
        place = labels / "deep" if index else labels
        Image.fromarray(truth).save(place / f"{index}.png")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(recording.meta["vocabulary"]))
    return ["--images", str(photos), "--labels", str(labels), "--names", str(names)]


def command(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_predict_a_folder(recording, weights, photos, tmp_path: Path) -> None:
    names = recording.meta["vocabulary"]
    (photos / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    quoted = [name.replace(",", ";") for name in names]
    code = predict.main(
        [
            "--input",
            str(photos),
            "--class-names",
            *quoted,
            "--weights",
            str(weights),
            "--output",
            str(out),
            "--device",
            "cpu",
        ]
    )
    assert code == 1  # for the broken one
    results = [path for path in out.rglob("*.json") if path.name != "summary.json"]
    assert len(results) == len(recording.images)
    described = json.loads(results[0].read_text())
    assert described["names"] == quoted


def test_predict_as_typed(recording, weights, photos, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command(
        "san.predict", photos / "0.png", "--class-names", "cat", "grass", "--weights", weights,
        "--output", out, "--save", "label",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (label,) = out.rglob("*.png")
    image = Image.open(photos / "0.png")
    assert read_label_map(label).shape == (image.height, image.width)
    missing = command("san.predict", "none.jpg", "--class-names", "cat", "--weights", weights)
    assert missing.returncode == 2 and "Traceback" not in missing.stderr
    assert missing.stderr.count("\n") == 1 and "none.jpg" in missing.stderr


def test_the_flags_of_the_original(weights, photos, tmp_path: Path) -> None:
    target = tmp_path / "result.png"
    arguments = ["--img-path", str(photos / "0.png"), "--vocab", "cat,dog, ", "--aug-vocab"]
    code = predict.main([*arguments, "--model-path", str(weights), "--output-file", str(target)])
    assert code == 0
    assert Image.open(target).width >= Image.open(photos / "0.png").width


@pytest.mark.parametrize(
    ("content", "name"),
    [(b"", "empty.png"), (b"\x89PNG\r\n\x1a\n", "truncated.png"), (b"text", "text.jpg")],
)
def test_images_that_cannot_be_read(
    weights, tmp_path: Path, content: bytes, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    out = tmp_path / "out"
    arguments = [str(path), "--class-names", "cat", "--weights", str(weights)]
    code = run(predict.main, [*arguments, "--output", str(out)])
    assert code in (1, 2)
    assert name in capsys.readouterr().err
    assert not [p for p in out.rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class-names", "cat"], "no image"),
        (["PHOTO"], "no names"),
        (["PHOTO", "--class-names", " , "], "name"),
        (["PHOTO", "--vocabulary", "ade20k-151"], "did you mean"),
        (["PHOTO", "--class-names", "cat", "--weights", "none.pth"], "no SAN weights"),
        (["PHOTO", "--class-names", "cat", "--config-file", "none.yaml"], "none.yaml"),
        (["PHOTO", "--class-names", "cat", "--device", "warp"], "is unknown"),
    ],
)
def test_arguments_that_cannot_be_used(
    photos, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(photos / "0.png") if a == "PHOTO" else a for a in arguments]
    assert run(predict.main, arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_evaluate_a_folder_pair(weights, labelled, tmp_path: Path, capsys) -> None:
    out = tmp_path / "results"
    options = ["--weights", str(weights), "--output", str(out), "--device", "cpu"]
    assert evaluate.main([*labelled, *options]) == 0
    assert "detectron2" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert result["card"]["method"] == "SAN" and result["card"]["n_images"] >= 3
    scores = result["scores"]["detectron2"]
    assert scores["pACC"] > 99.9  # the truth is what the original predicted


def test_evaluate_scores_seen_and_unseen_classes(
    weights, labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = Path(labelled[labelled.index("--names") + 1]).read_text().split("\n")
    (tmp_path / "seen.txt").write_text(f"{names[0]}\nnot a class\n")
    options = ["--weights", str(weights), "--output", str(tmp_path / "out")]
    assert evaluate.main([*labelled, *options, "--seen", str(tmp_path / "seen.txt")]) == 0
    assert "1 seen classes: mIoU" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "seen_unseen.json").read_text())["seen"] == [0]
    (tmp_path / "seen.txt").write_text("not a class\n")
    wrong = [*labelled, *options, "--seen", str(tmp_path / "seen.txt")]
    with pytest.raises(InputError, match="none of the seen names"):
        evaluate.main(wrong)


def test_evaluate_with_augmentation(weights, labelled, tmp_path: Path) -> None:
    out = tmp_path / "results"
    options = ["--weights", str(weights), "--output", str(out), "--limit", "1"]
    assert evaluate.main([*labelled, *options, "--tta", "--tta-sizes", "64", "96"]) == 0
    card = json.loads((out / "result.json").read_text())["card"]
    assert "64" in str(card["tta"])


def test_a_killed_evaluation_goes_on_where_it_stopped(weights, photos, tmp_path: Path) -> None:
    """SIGKILL in the middle; the second run must not touch finished images again."""
    labels, names = tmp_path / "many_labels", tmp_path / "names.txt"
    many = tmp_path / "many"
    many.mkdir()
    labels.mkdir()
    generator = np.random.default_rng(0)
    for index in range(40):
        image = generator.integers(0, 255, (150, 200, 3), dtype=np.uint8)
        Image.fromarray(image).save(many / f"{index:02}.png")
        truth = generator.integers(0, 3, (150, 200), dtype=np.uint8)
        Image.fromarray(truth).save(labels / f"{index:02}.png")
    names.write_text("cat\ndog\ngrass\n")
    out = tmp_path / "out"
    arguments = [
        "--images", many, "--labels", labels, "--names", names, "--weights", weights,
        "--output", out,
    ]  # fmt: skip
    first = subprocess.Popen(
        [sys.executable, "-m", "san.evaluate", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while _records(out) < 3 and first.poll() is None:
        time.sleep(0.02)
    assert first.poll() is None, "it ended before it could be killed"
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    finished = _records(out)
    for path in sorted(many.iterdir())[: max(finished - 1, 1)]:
        path.write_bytes(b"would fail if it were read again")
    assert finished >= 3 and not (out / "result.json").exists()
    again = command("san.evaluate", *arguments)
    assert again.returncode == 0, again.stderr
    assert json.loads((out / "result.json").read_text())["card"]["n_images"] == 40


def _records(out: Path) -> int:
    logs = [p for p in out.rglob("*") if p.is_file() and p.suffix in (".jsonl", ".log")]
    return sum(max(log.read_bytes().count(b"\n") - 1, 0) for log in logs)


def test_evaluate_on_ade20k_in_detectron2_s_layout(recording, weights, tmp_path: Path) -> None:
    root = tmp_path / "datasets" / "ADEChallengeData2016"
    images, labels = (root / d / "validation" for d in ("images", "annotations_detectron2"))
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    generator = np.random.default_rng(1)
    for index in recording.images[:2]:
        image = recording.load(f"infer_{index}_input")["image_uint8"].numpy()
        Image.fromarray(image).save(images / f"ADE_val_{index:08}.jpg")
        truth = generator.choice([0, 5, 149, 255], image.shape[:2]).astype(np.uint8)
        Image.fromarray(truth).save(labels / f"ADE_val_{index:08}.png")
    for name in ("ade20k-150", "ade20k_sem_seg_val"):  # ours, and the original's
        out = tmp_path / name
        data = ["--dataset", name, "--data-root", str(tmp_path / "datasets")]
        assert evaluate.main([*data, "--output", str(out), "--weights", str(weights)]) == 0
        result = json.loads((out / "result.json").read_text())
        assert result["card"]["vocabulary"] == "ade20k-150" and result["card"]["n_images"] == 2
        assert result["scores"]["mmseg"]["classes_present"] == 3
