"""The folder run as users meet it: odd files, kills, full disks, closed outputs, going on."""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openvocab import cli, export
from openvocab.formats.writers import FORMATS
from openvocab.image import ImageArray, read_label_map
from openvocab.inference.progress import Progress
from openvocab.methods import Explained
from openvocab.predict import add_predict_arguments, run_prediction
from openvocab.segmenter import BaseSegmenter, Segmentation
from openvocab.vocabulary import Vocabulary

RGB = ("--class-names", "red,green,blue")


class Brightest(BaseSegmenter):
    """Gives each pixel the name whose place is that of its brightest channel."""

    batch_size = 2

    def __init__(self) -> None:
        self.seen: list[int] = []

    def segment_arrays(
        self, images: list[ImageArray], vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        self.seen.append(len(images))
        results = []
        for image in images:
            scores = image.transpose(2, 0, 1)[: len(vocabulary)].astype(np.float32) / 255
            labels = scores.argmax(axis=0).astype(np.int32)
            results.append(Segmentation(labels, vocabulary, scores if return_scores else None))
        return results

    def describe(self) -> dict[str, Any]:
        return {"method": "brightest", "device": "cpu"}


def main(arguments: Sequence[str] | None, make: Any = None, explain: Any = None) -> int:
    parser = argparse.ArgumentParser()
    add_predict_arguments(parser)
    args = parser.parse_args(arguments)
    return run_prediction(args, make or (lambda args: Brightest()), explain)


def explain(segmenter: Any, image: ImageArray, vocabulary: Vocabulary) -> list[Explained]:
    return [Explained("photo", image)]


Predict = Callable[..., int]


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Predict:
    monkeypatch.chdir(tmp_path)

    def command(*argv: str, make: Any = None, explain: Any = None) -> int:
        return cli.run(lambda arguments: main(arguments, make, explain), argv)

    return command


def photo(path: str | Path, seed: int = 0, size: tuple[int, int] = (20, 30)) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def summary(folder: str | Path = "output") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(folder, "summary.json").read_text(encoding="utf-8"))
    return content


# --- odd files


def test_a_link_to_nothing_counts_as_an_image_that_failed(
    predict: Predict, capsys: pytest.CaptureFixture[str]
) -> None:
    photo("ok.png")
    os.symlink("nowhere.png", "dangling.png")
    os.symlink("loop.png", "loop.png")
    assert predict("dangling.png", "loop.png", "ok.png", *RGB) == 1
    out, err = capsys.readouterr()
    assert "1 of 3 images done" in out
    assert "dangling.png" in err and "loop.png" in err and "Traceback" not in err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_pipes_devices_loops_of_folders_and_endless_files_do_not_hold_up_the_rest(
    predict: Predict, capsys: pytest.CaptureFixture[str]
) -> None:
    photo("in/a.png"), photo("in/z.png", 1)
    os.mkfifo("in/pipe.png")
    os.symlink("/dev/zero", "in/zero.png")
    os.symlink(".", "in/again")
    with open("in/sparse.png", "wb") as file:
        file.truncate(1 << 40)
    assert predict("in", *RGB) == 1
    out, err = capsys.readouterr()
    assert "2 of 5 images done" in out
    assert "device or a pipe" in err and "1099511627776 bytes" in err
    assert summary()["done"] == 2 and summary()["failed"] == 3


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text here")
def test_file_names_that_are_no_text(predict: Predict) -> None:
    photo("in/a.png")
    os.rename(b"in/a.png", b"in/caf\xe9\n.png")
    Path(os.fsdecode(b"in/bad\xff.png")).write_bytes(b"no image")
    assert predict("in", *RGB) == 1
    assert os.path.exists(b"output/caf\xe9\n_labels.png")
    files = {image["file"] for image in summary()["images"]}
    assert files == {"in/caf\\udce9 .png", "in/bad\\udcff.png"}
    with open("output/summary.csv", encoding="utf-8", newline="") as table:
        assert {row["file"] for row in csv.DictReader(table)} == files


def test_one_result_that_cannot_be_written_does_not_stop_the_rest(
    predict: Predict, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate("abc"):
        photo(f"in/{name}.png", seed)
    Path("output/b_overlay.png").mkdir(parents=True)
    assert predict("in", *RGB) == 1
    assert "2 of 3 images done" in capsys.readouterr().out
    names = {path.name for path in Path("output").iterdir() if path.name.startswith(("b", ".b"))}
    assert names == {"b_overlay.png"}  # no half of its results


def test_an_image_called_summary(predict: Predict) -> None:
    photo("in/summary.png"), photo("in/a.png")
    assert predict("in", *RGB) == 0
    assert summary()["done"] == 2
    assert json.loads(Path("output/summary.png.json").read_text())["image"] == "in/summary.png"


# --- names


def test_names_that_are_too_long_are_listed_before_a_model_is_loaded(
    predict: Predict, capsys: pytest.CaptureFixture[str]
) -> None:
    photo("a.png")
    long = [" ".join([word] * 90) for word in ("cat", "dog")]
    Path("names.txt").write_text("\n".join(["sofa", *long]))

    def load(args: argparse.Namespace) -> Any:
        raise AssertionError("loaded too early")

    assert predict("a.png", "--names", "names.txt", make=load) == 2
    err = capsys.readouterr().err
    assert "2 names cannot be used: 'cat cat" in err and "'dog dog" in err and "tokens" in err
    assert err.count("\n") == 1 and not Path("output").exists()


def test_names_from_a_file_in_each_way(predict: Predict) -> None:
    photo("a.png")
    Path("list.txt").write_text("hot air balloon, red\ngreen\nblue\n")
    for argv in (["--names", "list.txt"], ["--class-names", "@list.txt"]):
        assert predict("a.png", *argv) == 0
        assert json.loads(Path("output/a.json").read_text())["names"][0].startswith("hot air")
        assert Path("output/names.txt").read_text().splitlines()[1:] == ["green", "blue"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--class-names", "@none.txt"), "none.txt"),
        (("--class-names", "@none.txt", "cat"), "give @FILE alone"),
        (("--names", "a.txt", "--class-names", "cat"), "not both"),
        ((*RGB, "--min-area", "3"), "0..1"),
        ((*RGB, "--none-of-these", "nan"), "none_of_these is nan"),
        ((*RGB, "--glob", "*.webp"), "matches '*.webp'"),
    ],
)
def test_what_makes_no_sense(
    predict: Predict, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], message: str
) -> None:
    photo("in/a.png")
    assert predict("in", *argv) == 2
    assert message in capsys.readouterr().err


# --- which images


def test_globs_and_folders_without_their_folders(predict: Predict) -> None:
    for name in ("in/a.png", "in/b.jpg", "in/x/c.png", "in/x/d.data"):
        photo(name if not name.endswith("data") else "in/x/d.png")
    os.rename("in/x/d.png", "in/x/d.data")

    def done(*argv: str) -> list[str]:
        assert predict("in", *RGB, "--save", "label", *argv) == 0
        return [Path(image["file"]).name for image in summary()["images"]]

    assert done() == ["a.png", "b.jpg", "c.png"]
    assert done("--no-recursive") == ["a.png", "b.jpg"]
    assert done("--glob", "*.png") == ["a.png", "c.png"]
    assert done("--glob", "x/*") == ["c.png", "d.data"]


# --- results


def test_batches_give_what_single_images_give(predict: Predict) -> None:
    for seed in range(11):
        photo(f"in/{seed:02}.png", seed, (20 + seed, 30))
    segmenter = Brightest()
    assert predict("in", *RGB, make=segmenter) == 0
    assert max(segmenter.seen) > 1 and sum(segmenter.seen) == 11
    for seed in range(11):
        alone = Brightest().segment(f"in/{seed:02}.png", "red,green,blue").labels
        np.testing.assert_array_equal(read_label_map(f"output/{seed:02}_labels.png"), alone)


def test_thresholds_and_scores_reach_files_and_summary(predict: Predict) -> None:
    photo("in/a.png")
    assert predict("in", *RGB, "--none-of-these", "0.7", "--save", "label,json") == 0
    (image,) = summary()["images"]
    labels = read_label_map("output/a_labels.png")
    assert 0.1 < (labels == 255).mean() < 0.9
    assert sum(image["shares"].values()) == pytest.approx((labels != 255).mean())
    assert all(score >= 0.7 for score in image["scores"].values()) and len(image["scores"]) == 3
    assert predict("in", *RGB, "--min-area", "0.99", "--save", "label") == 0
    assert (read_label_map("output/a_labels.png") == 255).all()
    with open("output/summary.csv", newline="") as table:
        (row,) = csv.DictReader(table)
    assert row["file"] == "in/a.png" and row["name"] == "" and float(row["seconds"]) > 0


def test_thresholds_on_raw_scores_are_announced_in_one_line(
    predict: Predict, capsys: pytest.CaptureFixture[str]
) -> None:
    photo("in/a.png")
    assert predict("in", *RGB, "--min-score", "0.5", "--none-of-these", "0.5") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "not calibrated, so --none-of-these and --min-score" in line
    for quiet in (("--min-area", "0.1"), ("--min-score", "0.5", "--quiet")):
        assert predict("in", *RGB, *quiet) == 0
        assert capsys.readouterr().err == ""

    class Calibrated(Brightest):
        calibrated = True

        def segment_arrays(self, *arguments: Any) -> list[Segmentation]:
            found = super().segment_arrays(*arguments)
            return [
                replace(one, confidence=np.full(one.labels.shape, 0.7, np.float32)) for one in found
            ]

    assert predict("in", *RGB, "--min-score", "0.5", make=Calibrated()) == 0
    assert capsys.readouterr().err == ""


def test_the_summary_has_every_image_in_order(predict: Predict) -> None:
    photo("in/a.png"), photo("in/c.png")
    Path("in/b.png").write_bytes(b"junk")
    assert predict("in", *RGB) == 1
    found = summary()
    assert [Path(image["file"]).stem for image in found["images"]] == ["a", "b", "c"]
    assert "not an image" in found["images"][1]["failure"]
    assert found["names"]["red"]["images"] == 2 and found["total"] == 3
    with open("output/summary.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    shares: dict[str, float] = {}
    for row in rows:
        if row["share"]:
            shares[row["file"]] = shares.get(row["file"], 0) + float(row["share"])
    assert shares == pytest.approx({"in/a.png": 1, "in/c.png": 1}, abs=1e-4)
    assert [row["failure"] != "" for row in rows if row["file"] == "in/b.png"] == [True]


# --- going on


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    for seed in range(12):
        photo(tmp_path / f"in/{seed:02}.png", seed)
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1]); "
        "import test_folder_run as t; from openvocab.inference import outputs\n"
        "write, calls = outputs.write_picture, []\n"
        "def dying(picture, file):\n"
        "    calls.append(file)\n"
        "    if len(calls) == 9: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    write(picture, file)\n"
        "outputs.write_picture = dying\n"
        "t.main(['in', '--class-names', 'red,green,blue'])"
    )
    argv = [sys.executable, "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    complete = {path.stem for path in (tmp_path / "output").glob("*.json")}
    with (tmp_path / "output/.predict.jsonl").open("a") as journal:
        journal.write('{"file": "in/00.p')  # a line that was cut off
    segmenter = Brightest()
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        argv = ["in", *RGB, "--skip-existing"]
        assert main(argv, segmenter) == 0
        assert 12 - len(complete) <= sum(segmenter.seen) <= 9  # at most 4 were being written
        assert summary()["done"] == 12
        assert len([p for p in Path("output").iterdir() if not p.name.startswith(".")]) == 39
        again = Brightest()
        assert main(argv, again) == 0 and again.seen == []
        photo("in/03.png", 99)  # a photo was edited
        Path("output/05_labels.png").unlink()
        assert main(argv, again) == 0 and sum(again.seen) == 2
    finally:
        os.chdir(before)


def test_results_of_other_names_are_not_gone_on_with(
    predict: Predict, capsys: pytest.CaptureFixture[str]
) -> None:
    photo("in/a.png")
    assert predict("in", *RGB) == 0
    assert predict("in", "--class-names", "red,green,sky", "--skip-existing") == 2
    assert "made with another names" in capsys.readouterr().err
    assert predict("in", *RGB, "--skip-existing", "--min-area", "0.1") == 2
    assert "another thresholds" in capsys.readouterr().err
    assert predict("in", *RGB, "--skip-existing") == 0
    assert "1 of them by an earlier run" in capsys.readouterr().out


# --- formats of other tools

SAVE = ("--save", "label,json," + ",".join(FORMATS))


def contents(folder: str | Path) -> dict[str, bytes]:
    """Return the files of formats in a folder of results, by their path in it."""
    found = {}
    for entry in FORMATS.values():
        target = Path(folder, entry.target)
        for path in [target] if target.is_file() else target.rglob("*"):
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def test_a_run_writes_each_format_as_the_export_of_its_results_does(predict: Predict) -> None:
    for seed, name in enumerate(("a.png", "x/a.png", "x/b.png")):
        photo(f"in/{name}", seed)
    assert predict("in", *RGB, *SAVE, "--min-area", "0.33", "--output", "out") == 0
    for name in FORMATS:
        export.main(["out", "--format", name, "--output", "again"])
    assert contents("out") == contents("again")
    assert {Path(path).parts[0] for path in contents("out")} == {
        entry.target for entry in FORMATS.values()
    }
    coco = json.loads(Path("out/coco.json").read_text())
    assert [one["file_name"] for one in coco["images"]] == ["in/a.png", "in/x/a.png", "in/x/b.png"]
    assert Path("out/yolo/labels/x__a.txt").exists() and Path("out/polygons/x/a.geojson").exists()


def test_formats_alone(predict: Predict, capsys: pytest.CaptureFixture[str]) -> None:
    photo("in/a.png")
    assert predict("in", *RGB, "--save", "coco,masks") == 0
    assert "1 of 1 images done, results in 'output'" in capsys.readouterr().out
    assert len(list(Path("output/masks/a").iterdir())) == 3
    assert not Path("output/a.json").exists() and not Path("output/a_labels.png").exists()


def test_a_run_that_goes_on_writes_the_formats_of_all_images(predict: Predict) -> None:
    for seed in range(3):
        photo(f"in/{seed}.png", seed)
    assert predict("in", *RGB, *SAVE, "--output", "whole") == 0
    os.rename("in/2.png", "late.png")
    assert predict("in", *RGB, *SAVE) == 0
    os.rename("late.png", "in/2.png")
    Path("output/masks/1/000_red.png").unlink()
    Path("output/coco.json").unlink()
    again = Brightest()
    assert predict("in", *RGB, *SAVE, "--skip-existing", make=again) == 0
    assert sum(again.seen) == 2  # the new one, and the one that has lost a mask
    assert contents("output") == contents("whole")


def test_a_format_that_is_asked_for_later_is_written_for_all(predict: Predict) -> None:
    photo("in/a.png"), photo("in/b.png", 1)
    assert predict("in", *RGB, "--save", "label,csv") == 0
    assert predict("in", *RGB, "--save", "label,csv,cvat", "--skip-existing") == 0
    assert len(list(Path("output/cvat/SegmentationClass").iterdir())) == 2
    again = Brightest()
    assert predict("in", *RGB, "--save", "label,cvat", "--skip-existing", make=again) == 0
    assert again.seen == []


def test_a_new_result_leaves_no_mask_of_the_old_one(predict: Predict) -> None:
    photo("in/a.png"), photo("in/a/b.png", 1)
    save = ("--save", "masks,cutouts")
    assert predict("in", "--class-names", "cat,red/green,blue", *save) == 0
    Path("output/masks/a/notes.png").write_bytes(b"of the user")
    assert predict("in", "--class-names", "red,green,Blue", *save, "--glob", "a.png") == 0
    new = ["000_red.png", "001_green.png", "002_Blue.png"]
    old = ["000_cat.png", "001_red_green.png", "002_blue.png"]
    found = {path.relative_to("output").as_posix() for path in Path("output").rglob("*.png")}
    assert found == {
        "masks/a/notes.png",
        *(f"{kind}/{path}" for kind in ("masks", "cutouts") for path in (f"a/{n}" for n in new)),
        *(f"{kind}/{path}" for kind in ("masks", "cutouts") for path in (f"a/b/{n}" for n in old)),
    }
    limit = ("--min-area", "1", "--glob", "a.png")
    assert predict("in", *RGB, "--save", "masks", *limit) == 0  # nothing is left to draw
    assert [path.name for path in Path("output/masks/a").glob("*.png")] == ["notes.png"]


def test_an_export_leaves_no_mask_of_the_old_one(predict: Predict) -> None:
    photo("in/a.png")
    for names in ("cat,dog,cow", "red,green,blue"):
        assert predict("in", "--class-names", names) == 0
        assert cli.run(export.main, ["output", "--format", "masks"]) == 0
    left = sorted(path.name for path in Path("output/masks/a").iterdir())
    assert left == ["000_red.png", "001_green.png", "002_blue.png"]


def test_results_of_a_run_that_was_stopped_are_not_taken_for_older_ones(
    predict: Predict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from openvocab.inference import folder

    photo("in/a.png")
    old = ("--class-names", "cat,dog,cow")
    assert predict("in", *old) == 0
    write = folder.write_results  # type: ignore[attr-defined]

    def stopped(*arguments: Any) -> None:
        write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "write_results", stopped)
    assert predict("in", *RGB) == 130
    assert json.loads(Path("output/a.json").read_text())["names"] == ["red", "green", "blue"]
    assert predict("in", *old, "--skip-existing") == 2
    assert "made with another names" in capsys.readouterr().err


STEPS = ("--show-steps", "--save")


@pytest.mark.parametrize("kinds", ["csv", "masks,coco", "json,csv", "label"])
def test_steps_are_shown_beside_any_kind_of_result(predict: Predict, kinds: str) -> None:
    photo("in/x/a.png")
    assert predict("in", *RGB, *STEPS, kinds, explain=explain) == 0
    assert np.asarray(Image.open("output/x/a_steps.png")).shape[1] == 1600
    again = Brightest()
    skip = (*STEPS, kinds, "--skip-existing")
    assert predict("in", *RGB, *skip, explain=explain, make=again) == 0 and again.seen == []
    Path("output/x/a_steps.png").unlink()
    assert predict("in", *RGB, *skip, explain=explain, make=again) == 0 and again.seen == [1]
    assert Path("output/x/a_steps.png").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--class-names", "a:b", "--save", "cvat"), "cannot hold the name 'a:b'"),
        (("--class-names", "a,#b", "--save", "cvat"), "cannot hold the name '#b'"),
        ((*RGB, "--save", "coco", "--output", "one.png"), "--save coco needs a folder"),
    ],
)
def test_formats_that_do_not_fit(
    predict: Predict, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], message: str
) -> None:
    photo("in/a.png")
    assert predict("in", *argv) == 2
    assert message in capsys.readouterr().err and not Path("output").exists()


# --- memory


def test_what_is_on_the_way_is_bounded(predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    from openvocab.inference import folder

    alive, most, lock = [0], [0], threading.Lock()
    read, write = folder.read_image, folder.write_results  # type: ignore[attr-defined]

    def counted_read(path: Path, **options: Any) -> Any:
        image = read(path, **options)
        with lock:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        return image

    def slow_write(*arguments: Any) -> None:
        time.sleep(0.002)
        write(*arguments)
        with lock:
            alive[0] -= 1

    monkeypatch.setattr(folder, "read_image", counted_read)
    monkeypatch.setattr(folder, "write_results", slow_write)
    for seed in range(150):
        photo(f"in/{seed:03}.png", seed, (4, 5))
    assert predict("in", *RGB, "--save", "label", "--quiet") == 0
    assert alive[0] == 0 and most[0] <= 60


# --- the system


def run_as_process(tmp_path: Path, arguments: str, **options: Any) -> Any:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
    code += "import test_folder_run as t; from openvocab.cli import run; sys.exit(run(t.main))"
    command = f'exec "$PYTHON" -c "$CODE" {arguments}'
    environment = {**os.environ, "PYTHON": sys.executable, "CODE": code, **options}
    return subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
def test_full_closed_and_broken_outputs(tmp_path: Path) -> None:
    photo(tmp_path / "in/a.png")
    for where, codes in (
        (">/dev/full", (2,)),
        (">&-", (0,)),
        (">&- 2>&-", (0,)),
        ("2>/dev/full", (0,)),
    ):
        done = run_as_process(tmp_path, f"in --class-names red,green --output out {where}")
        assert done.returncode in codes, (where, done)
        assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
        assert done.stderr.count("\n") <= 1
        assert (tmp_path / "out/a_labels.png").exists()
        for path in (tmp_path / "out").iterdir():
            path.unlink()


def test_nobody_reads_the_output(tmp_path: Path) -> None:
    photo(tmp_path / "in/a.png")
    read, write = os.pipe()
    os.close(read)
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
    code += "import test_folder_run as t; from openvocab.cli import run; sys.exit(run(t.main))"
    done = subprocess.run(
        [sys.executable, "-c", code, "in", *RGB],
        cwd=tmp_path,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.returncode == cli.BROKEN_PIPE and done.stderr == ""
    assert (tmp_path / "output/a_labels.png").exists()


# --- progress


class Terminal:
    """A stream that is, or is not, a terminal."""

    def __init__(self, is_one: bool) -> None:
        self.is_one, self.text = is_one, ""

    def isatty(self) -> bool:
        return self.is_one

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...


@pytest.mark.parametrize(("terminal", "quiet"), [(True, False), (False, False), (False, True)])
def test_progress(terminal: bool, quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = Terminal(terminal), [0.0]
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Progress(100, quiet=quiet, clock=lambda: now[0])
    for index in range(50):
        now[0] += 0.5
        if index == 20:
            progress.fail("'b.png' is no image\x1b[2J")
        else:
            progress.advance()
    progress.close()
    lines = stream.text.split("\n")
    if terminal:
        assert len(lines) == 2 and lines[0].count("\r\x1b[K") == 20
        assert lines[1].endswith("\r\x1b[K") and "50 of 100 images, 1 failed" in lines[1]
    else:
        expected = [] if quiet else ["20 of 100 images, 2.0 per second, 0:40 left"]
        expected += ["'b.png' is no image\\x1b[2J"]
        expected += [] if quiet else ["40 of 100 images, 1 failed, 2.0 per second, 0:30 left"]
        assert lines == [*expected, ""]


# --- what other commands read


@pytest.fixture
def colored_set(tmp_path: Path, predict: Predict) -> Path:
    """Photos of one's own with their true labels, predicted into `first` and `second`."""
    Path("names.txt").write_text("red\ngreen\nblue\n")
    for seed in range(4):
        path = photo(f"i/deep/{seed}.png", seed)
        labels = np.asarray(Image.open(path)).argmax(axis=2).astype(np.uint8)
        Path("l/deep").mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(f"l/deep/{seed}.png")
    assert predict("i", "--names", "names.txt", "--output", "first") == 0
    limit = ("--none-of-these", "0.6")
    assert predict("i", "--names", "names.txt", "--output", "second", *limit) == 0
    return tmp_path


DATA = ("--images", "i", "--labels", "l", "--names", "names.txt")


def test_score_visualize_and_compare_read_the_results_as_they_are(
    colored_set: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    from openvocab import compare, score, visualize

    assert cli.run(score.main, ["--predictions", "first", *DATA, "--output", "scored"]) == 0
    assert "100.00" in capsys.readouterr().out
    assert cli.run(visualize.main, ["--input", "first", *DATA, "--output", "drawn"]) == 0
    assert "4 pictures" in capsys.readouterr().out
    assert cli.run(compare.main, ["first", "second", *DATA]) == 0
    numbers = capsys.readouterr().out.splitlines()[-1].split()
    assert float(numbers[1]) == 100 and float(numbers[2]) < 100
    assert not [warning for warning in recwarn if "left out" in str(warning.message)]


def test_predictions_of_other_names_are_not_scored(
    colored_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from openvocab import compare, score

    Path("names.txt").write_text("green\nred\nblue\n")
    assert cli.run(score.main, ["--predictions", "first", *DATA]) == 2
    assert "of the names red, green, blue (3)" in capsys.readouterr().err
    assert cli.run(compare.main, ["first", "second"]) == 2
    assert "say with --dataset" in capsys.readouterr().err
