from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openvocab import cli
from openvocab.formats.run_length import decode_rle
from openvocab.image import read_image, read_label_map
from openvocab.predict import add_predict_arguments, plan_prediction, run_prediction
from openvocab.segmenter import Segmentation
from openvocab.vocabulary import Vocabulary


class ChannelSegmenter:
    """Gives each pixel the name whose place is that of its brightest colour channel."""

    def __init__(self) -> None:
        self.vocabularies: list[Vocabulary] = []

    def segment(
        self, image: Any, vocabulary: Vocabulary, *, return_scores: bool = False
    ) -> Segmentation:
        self.vocabularies.append(vocabulary)
        pixels = read_image(image)
        labels = pixels.argmax(axis=2).astype(np.int32)
        labels[labels >= len(vocabulary)] = -1
        scores = None
        if return_scores:
            scores = np.zeros((len(vocabulary), *labels.shape), np.float32)
            for index in range(min(3, len(vocabulary))):
                scores[index] = pixels[..., index] / 255
        return Segmentation(labels, vocabulary, scores)

    def describe(self) -> dict[str, Any]:
        return {"method": "brightest channel"}


Predict = Callable[..., int]


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Predict:
    """Return the command as a method would build it; it runs in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def command(*argv: str, make: Any = None) -> int:
        def main(arguments: Sequence[str] | None) -> int:
            parser = argparse.ArgumentParser()
            add_predict_arguments(parser)
            return run_prediction(
                parser.parse_args(arguments), make or (lambda args: ChannelSegmenter())
            )

        return cli.run(main, argv)

    return command


def photo(path: str | Path, color: str = "red", size: tuple[int, int] = (40, 30)) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, color)
    image.paste((0, 0, 255), (0, 0, size[0] // 2, size[1]))
    image.save(path)
    return path


OF_THE_RUN = {".predict.jsonl", "names.txt", "summary.csv", "summary.json"}


def results_in(folder: str | Path) -> list[Path]:
    return [Path(folder, file) for file in files_in(folder) if file.endswith(".json")]


def files_in(folder: str | Path) -> list[str]:
    """Return all files but those about the run as a whole."""
    files = [p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()]
    return sorted(file for file in files if Path(file).name not in OF_THE_RUN)


RGB = ("--class-names", "red", "green", "blue")


def test_one_image(predict: Predict) -> None:
    photo("a.png")
    assert predict("--input", "a.png", *RGB, "--output", "out") == 0
    assert files_in("out") == ["a.json", "a_labels.png", "a_overlay.png"]
    labels = read_label_map("out/a_labels.png")
    assert (labels[:, :20] == 2).all() and (labels[:, 20:] == 0).all()
    content = json.loads(Path("out/a.json").read_text())
    assert content["image"] == "a.png" and content["method"] == {"method": "brightest channel"}
    assert {s["name"]: s["area"] for s in content["segments"]} == {"red": 0.5, "blue": 0.5}
    np.testing.assert_array_equal(decode_rle(content["segments"][0]["rle"]), labels == 0)
    overlay = read_image("out/a_overlay.png")
    plain = Segmentation(labels, Vocabulary.from_names(RGB[1:])).overlay("a.png", legend=False)
    np.testing.assert_array_equal(overlay[:30, :40], plain)
    assert (overlay[:30, :40] != read_image("a.png")).any(axis=2).all()  # both halves are tinted
    assert overlay.shape != plain.shape  # the legend is beside or below


def test_positional_images_and_all_kinds(predict: Predict) -> None:
    photo("a.png")
    assert predict("a.png", *RGB, "--save", "scores, label") == 0
    assert files_in("output") == ["a_labels.png", "a_scores.npz"]
    scores = np.load("output/a_scores.npz")["scores"]
    assert scores.shape == (3, 30, 40) and scores[2, 0, 0] == 1


def test_folders_globs_and_files_together(predict: Predict) -> None:
    for name in ("in/x/a.jpg", "in/b.png", "other/c.png", "other/d.bmp", "e.png"):
        photo(name)
    argv = ("--input", "in", "other/*.png", "e.png", *RGB, "--save", "label", "--output", "out")
    assert predict(*argv) == 0
    assert files_in("out") == ["b_labels.png", "c_labels.png", "e_labels.png", "x/a_labels.png"]


@pytest.mark.parametrize(
    ("images", "patterns"),
    [
        (["p/a.png", "q/a.png"], ["p/a.png", "q/a.png"]),
        (["a.png", "a.jpg", "a.bmp"], ["a.png", "a.jpg", "a.bmp"]),
        (["p/a.png", "q/a.png", "q/a.jpg"], ["p", "q"]),
        (["p/s/a.png", "q/s/a.png", "s/a.png"], ["p/s/*", "q/s/*", "s"]),
        (["p/a.png", "q/A.PNG"], ["p", "q"]),
        (["p/a.png", "p/a.png.png", "q/a.jpg"], ["p", "q"]),
        (["in/p/a.png", "p/a.png"], ["in", "p/a.png", "in/p/a.png"]),
    ],
)
def test_results_never_share_a_file(
    predict: Predict, images: list[str], patterns: list[str]
) -> None:
    for name in images:
        photo(name)
    assert predict("--input", *patterns, *RGB, "--output", "out") == 0
    results = files_in("out")
    assert len(results) == len({name.casefold() for name in results}) == 3 * len(images)
    written = {json.loads(p.read_text())["image"] for p in results_in("out")}
    assert written == set(images)


def test_a_bad_file_is_reported_at_the_end_and_does_not_stop_the_rest(
    predict: Predict, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("in/a.png", "in/z.png"):
        photo(name)
    Path("in/b.png").write_bytes(b"not an image")
    Path("in/c.jpg").touch()
    Path("in/d.png").write_bytes(Path("in/a.png").read_bytes()[:60])
    assert predict("in", *RGB, "--output", "out", "--save", "label") == 1
    assert files_in("out") == ["a_labels.png", "z_labels.png"]
    out, err = capsys.readouterr()
    assert "2 of 5 images done" in out
    assert "3 could not be used" in err and "Traceback" not in err
    for name in ("b.png", "c.jpg", "d.png"):
        assert name in err


def test_a_single_bad_file(predict: Predict, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.png").touch()
    assert predict("a.png", *RGB) == 1
    assert "is empty (0 bytes)" in capsys.readouterr().err


def test_the_limit_of_pixels(predict: Predict, capsys: pytest.CaptureFixture[str]) -> None:
    photo("a.png")
    assert predict("a.png", *RGB, "--max-pixels", "1199") == 1
    assert "limit of 1199" in capsys.readouterr().err
    assert predict("a.png", *RGB, "--max-pixels", "1200") == 0


def a_load_too_early(args: argparse.Namespace) -> None:
    raise AssertionError("the model was loaded before the arguments were checked")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (RGB, "no image is given"),
        (("a.png",), "no names are given"),
        (("missing.png", *RGB), "no image at 'missing.png'"),
        (("a.png", "nothing/*.jpg", *RGB), "no image at 'nothing/*.jpg'"),
        (("empty", *RGB), "holds no image"),
        (("a.png", "--class-names", " ", ""), "no class names"),
        (("a.png", "--class-names", ", ,"), "no class names"),
        (("a.png", "--vocabulary", "ade20k-151"), "did you mean ade20k-150"),
        (("a.png", *RGB, "--vocabulary", "voc-20"), "not both"),
        (("a.png", *RGB, "--output", "a.txt"), "cannot be written to 'a.txt'"),
        (("a.png", *RGB, "--output", "a.txt/deep"), "cannot be written"),
        (("a.png", "b.png", *RGB, "--output", "one.png"), "there are 2 images; give a folder"),
        (("a.png", *RGB, "--output", "a.png"), "would overwrite an input image"),
        (("a.png", *RGB, "--device", "abacus"), "device 'abacus'"),
        (("a.png", *RGB, "--max-pixels", "0"), "--max-pixels is 0"),
    ],
)
def test_wrong_arguments_are_found_before_the_model_is_loaded(
    predict: Predict, capsys: pytest.CaptureFixture[str], argv: Sequence[str], message: str
) -> None:
    photo("a.png"), photo("b.png")
    Path("a.txt").write_text("in the way")
    Path("empty").mkdir()
    before = Path("a.png").read_bytes()
    assert predict(*argv, make=a_load_too_early) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert Path("a.png").read_bytes() == before


@pytest.mark.parametrize("kinds", ["labels", "", "overlay,mask"])
def test_unknown_kinds_are_refused(
    predict: Predict, capsys: pytest.CaptureFixture[str], kinds: str
) -> None:
    photo("a.png")
    with pytest.raises(SystemExit) as caught:
        predict("a.png", *RGB, "--save", kinds)
    assert caught.value.code == 2
    assert "expected some of label,overlay,json,scores" in capsys.readouterr().err


def test_output_may_be_the_file_of_one_overlay(predict: Predict) -> None:
    photo("a.png")
    assert predict("a.png", *RGB, "--output", "out/picture.jpg") == 0
    assert files_in("out") == ["picture.jpg"]
    picture = read_image("out/picture.jpg")
    plain = ChannelSegmenter().segment("a.png", Vocabulary.from_names(RGB[1:])).overlay("a.png")
    assert picture.shape == plain.shape and plain.shape != (30, 40, 3)
    assert np.abs(picture[:30, :40] - plain[:30, :40].astype(int)).mean() < 12  # JPEG blurs
    assert predict("a.png", *RGB, "--output", "out/p.png", "--save", "label") == 0
    assert files_in("out") == ["p.png", "p_labels.png", "picture.jpg"]


def test_results_below_the_input_folder_are_not_read_again(predict: Predict) -> None:
    photo("in/a.png")
    for _ in range(2):
        assert predict("in", *RGB, "--output", "in/out", "--save", "overlay") == 0
    assert files_in("in") == ["a.png", "out/a_overlay.png"]
    assert predict("in/out", *RGB, "--output", "in/out", "--save", "label") == 0


def test_a_ground_truth_beside_the_images_is_not_overwritten(
    predict: Predict, capsys: pytest.CaptureFixture[str]
) -> None:
    photo("in/a.jpg"), photo("in/a_labels.png", "green")
    before = Path("in/a_labels.png").read_bytes()
    assert predict("in", *RGB, "--output", "in") == 2
    assert "would overwrite an input image" in capsys.readouterr().err
    assert Path("in/a_labels.png").read_bytes() == before


def test_vocabularies_and_augmentation(predict: Predict) -> None:
    photo("a.png")
    segmenter = ChannelSegmenter()
    assert predict("a.png", "--vocabulary", "ade20k-150", make=segmenter) == 0
    assert predict("a.png", "--class-names", "a, b", make=segmenter) == 0
    assert predict("a.png", "--class-names", "a, b", "c", make=segmenter) == 0
    argv = ("a.png", "--class-names", "sky", "cat", "--augment-vocabulary", "coco-stuff")
    assert predict(*argv, make=segmenter) == 0
    published, split, both, augmented = segmenter.vocabularies
    assert published.key == "ade20k-150" and len(published) == 150
    assert split.names == ("a", "b") and both.names == ("a", "b", "c")
    assert augmented.names == ("sky", "cat") and len(augmented.others) > 80


def test_more_than_255_names_make_16_bit_label_maps(predict: Predict) -> None:
    photo("a.png")
    assert predict("a.png", "--vocabulary", "ade20k-847", "--save", "label") == 0
    assert Image.open("output/a_labels.png").mode.startswith("I")


def test_ctrl_c_leaves_whole_files_only(
    predict: Predict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo("in/a.png"), photo("in/b.png")
    save = Image.Image.save

    def interrupted(image: Image.Image, path: Any, *args: Any, **options: Any) -> None:
        if Path(path).name.startswith(".b_labels"):  # the temporary file of the second result
            Path(path).write_bytes(b"half a file")
            raise KeyboardInterrupt
        save(image, path, *args, **options)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    assert predict("in", *RGB, "--output", "out", "--save", "label") == 130
    assert files_in("out") == ["a_labels.png"]
    assert read_label_map("out/a_labels.png").shape == (30, 40)


def test_a_full_disk_is_one_sentence(
    predict: Predict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo("a.png")

    def full(image: Image.Image, path: Any, *args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert predict("a.png", *RGB) == 2
    assert "cannot write results of 'a.png': No space left" in capsys.readouterr().err
    assert files_in("output") == []


def test_errors_of_the_program_are_one_line_and_the_traceback_on_demand(
    predict: Predict, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(ChannelSegmenter):
        def segment(self, *args: Any, **options: Any) -> Segmentation:
            raise ZeroDivisionError("nothing\nfits")

    photo("a.png")
    assert predict("a.png", *RGB, make=Broken()) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert "ZeroDivisionError: nothing fits, in test_predict.py" in err and "report" in err
    assert predict("a.png", "--debug", *RGB, make=Broken()) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "nothing\nfits" in err


def test_templates_of_the_method_are_used(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_predict_arguments(parser, templates="car")
    args = parser.parse_args([str(photo(tmp_path / "a.png")), "--class-names", "cat"])
    args.output = tmp_path / "out"
    assert plan_prediction(args).vocabulary.templates == "car"


def test_the_import_of_the_command_is_clean() -> None:
    code = (
        "import argparse, sys, openvocab.predict as p; "
        "parser = argparse.ArgumentParser(); p.add_predict_arguments(parser); "
        "parser.parse_args(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""
    for flag in ("--class-names", "--augment-vocabulary", "--save", "--device", "--precision"):
        assert flag in done.stdout
