"""Rows of other programs, and a report made of hostile names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import foreign_files
import numpy as np
import pytest
from benchmarks import run_all
from benchmarks.quality.foreign import read_foreign
from benchmarks.reporting.verdicts import verdict_sentences
from PIL import Image

from openvocab.cli import run
from openvocab.compare import Evaluation
from openvocab.errors import InputError
from openvocab.evaluation.results import Result
from openvocab.formats.detectron2 import PredictedClass, write_predictions
from openvocab.formats.run_length import encode_labels

DENSE_CLIP = Path(__file__).parents[2] / "examples" / "dense_clip"


def guess(pictures: Path, wrong: float) -> dict[str, np.ndarray]:
    """Return label maps that are right but for a share of the pixels."""
    random, found = np.random.default_rng(0), {}
    for path in sorted((pictures / "labels").iterdir()):
        truth = np.asarray(Image.open(path)).astype(np.int32)
        lost = (random.random(truth.shape) < wrong) | (truth > 3)
        found[path.stem] = np.where(lost, (truth + 1) % 4, truth)
    return found


@pytest.fixture(scope="module")
def predictions(pictures, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "maps").mkdir()
    for stem, labels in guess(pictures, 0.1).items():
        Image.fromarray(labels.astype(np.uint8)).save(folder / f"maps/{stem}.png")
    (folder / "maps.yaml").write_text("weights: cat_seg.pth\nresize_rule: short side 640\n")
    entries = (
        PredictedClass(f"{stem}.png", label, code)
        for stem, labels in guess(pictures, 0.5).items()
        for label, code in encode_labels(labels).items()
    )
    write_predictions(folder / "other.json", entries)
    return folder / "maps", folder / "other.json"


@pytest.fixture(scope="module")
def run_with_foreign(checkpoints, pictures, predictions, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run") / "out"
    maps, other = predictions
    words = ["--models", "san", "--weights", f"san={checkpoints['san']}", "--no-structure"]
    words += ["--predictions", f"CAT-Seg={maps}", f"a=b={other}", "--output", str(output)]
    assert run_all.main([*words, "--datasets", str(pictures)]) == 0
    return output


def test_foreign_rows_have_everything_but_costs(run_with_foreign, predictions, pictures) -> None:
    (path,) = (run_with_foreign / "results").glob("*--comparison.json")
    found = json.loads(path.read_text())
    keys = ["san", "foreign-cat-seg", "foreign-a-b"]
    assert list(found["results"]) == keys and found["times"]["foreign-cat-seg"] is None
    assert {(p["first"], p["second"]) for p in found["between"]} == {
        (keys[0], keys[1]), (keys[0], keys[2]), (keys[1], keys[2]),
    }  # fmt: skip
    assert {panel["key"] for panel in found["gallery"][0]["panels"]} == {"image", "truth", *keys}
    result = Result.load(path.parent / found["results"]["foreign-cat-seg"])
    right = [
        int((labels == np.asarray(Image.open(pictures / f"labels/{stem}.png"))).sum())
        for stem, labels in guess(pictures, 0.1).items()
    ]
    assert np.trace(result.matrix[:, :-1]) == sum(right)
    folder = next((run_with_foreign / "runs").iterdir())
    assert len(Evaluation.read(folder / "foreign-cat-seg").records) == 3


def test_the_report_says_what_was_stated_and_what_was_not(run_with_foreign) -> None:
    text = (run_with_foreign / "report.html").read_text()
    assert "weights: cat_seg.pth" in text and "training data: not stated" in text
    assert "CAT-Seg is ahead of a=b by" in text and "which is significant at 95 %" in text
    markdown = (run_with_foreign / "report.md").read_text()
    (line,) = (line for line in markdown.splitlines() if line.startswith("| grass |"))
    assert len(line.split(" | ")) == 2 + 2 * 3 and "sky" in line and " %" in line
    missing = json.loads((run_with_foreign / "results" / "missing.json").read_text())["missing"]
    (asked,) = (e["sentence"] for e in missing if e["what"] == "card of CAT-Seg")
    assert "training_data" in asked and "weights," not in asked and "maps.yaml" in asked


HOSTILE = '<script>alert(1)</script> "quoted" \u0645\u0631\u062d\u0628\u0627 ' + "x" * 300


def test_a_plugin_a_folder_and_a_json_become_one_report(
    checkpoints, pictures, predictions, tmp_path
) -> None:
    installed = tmp_path / "site" / "openvocab_dense_clip-0.1.0.dist-info"
    installed.mkdir(parents=True)
    project = tomllib.loads((DENSE_CLIP / "pyproject.toml").read_text("utf-8"))["project"]
    entries = project["entry-points"]["openvocab.methods"]
    lines = ["[openvocab.methods]", *(f"{key} = {value}" for key, value in entries.items())]
    (installed / "entry_points.txt").write_text("\n".join(lines))
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: openvocab-dense-clip\n")
    paths = [str(installed.parent), str(DENSE_CLIP / "src"), os.environ.get("PYTHONPATH", "")]
    maps, other = predictions
    words = ["--models", "maskclip", "--weights", f"maskclip={checkpoints['car']}", "--limit", "3"]
    words += ["--predictions", f"CAT-Seg={maps}", f"{HOSTILE}={other}", "--no-structure"]
    words += ["--datasets", str(pictures), "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, run_all.__file__, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out" / "results").glob("*--comparison.json")
    found = json.loads(path.read_text())
    assert len(found["results"]) == 3 and {"maskclip", "foreign-cat-seg"} < found["results"].keys()
    for name in found["results"].values():
        interval = Result.load(path.parent / name).intervals["detectron2"]
        assert interval.low <= interval.estimate <= interval.high
    assert len(found["between"]) == 3 and all(
        pair["low"] <= pair["high"] for pair in found["between"]
    )
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert page.count("MaskCLIP") > 3 and page.count("CAT-Seg") > 3
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page


def test_predictions_that_cannot_be_scored_leave_the_others(
    predictions, pictures, tmp_path, capsys
) -> None:
    """One row for each format that is read, all of the same predictions."""
    guessed, names = guess(pictures, 0.1), (pictures / "names.txt").read_text().split()
    rows = {w.__name__: w(tmp_path / w.__name__, guessed, names) for w in foreign_files.FORMATS}
    (tmp_path / "empty").mkdir()
    words = ["--predictions", *(f"{title}={path}" for title, path in rows.items())]
    words += [f"none={tmp_path / 'empty'}", "--prediction-offset", "from_one=-1"]
    words += ["--datasets", str(pictures), "--no-structure", "--output", str(tmp_path / "out")]
    assert run(run_all.main, words) == 1
    path = next((tmp_path / "out").rglob("*comparison.json"))
    files = json.loads(path.read_text())["results"]
    results = [Result.load(path.parent / name) for name in files.values()]
    assert [result.card.method for result in results] == list(rows)
    assert len({result.scores("detectron2").miou for result in results}) == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "holds no label maps" in page and all(f">{title}<" in page for title in rows)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--predictions", "maps"], "give NAME=PATH"),
        (["--predictions", "x=gone"], "there is no 'gone'"),
        (["--predictions", "x={maps}", "X={maps}"], "two rows would be called 'X'"),
        (["--predictions", "x={maps}", "--predictions-card", "y=a.yaml"], "names 'y'"),
        (["--predictions", "x={maps}", "--prediction-offset", "y=-1"], "names 'y'"),
        (["--predictions", "x={maps}", "--prediction-offset", "x=one"], "give a whole number"),
        (["--predictions", "x={maps}", "--datasets", "a", "b"], "the run has 2"),
    ],
)
def test_bad_requests_are_one_sentence(words, said, predictions, tmp_path, capsys) -> None:
    words = [word.format(maps=predictions[0]) for word in words]
    assert run(run_all.main, [*words, "--output", str(tmp_path / "o")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_titles_of_other_scripts_get_keys(predictions) -> None:
    (row,) = read_foreign([f"مرحبا={predictions[0]}"])
    assert (row.key, row.title) == ("foreign-row", "مرحبا")
    with pytest.raises(InputError, match="two rows"):
        read_foreign([f"مرحبا={predictions[0]}", f"世界={predictions[0]}"])


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (
            (4.0, 1.0, 7.0),
            "A is ahead of B by 4.00 points of mIoU, which is significant at 95 % "
            "(interval +1.00 to +7.00).",
        ),
        (
            (-4.0, -7.0, -1.0),
            "B is ahead of A by 4.00 points of mIoU, which is significant at 95 % "
            "(interval +1.00 to +7.00).",
        ),
        (
            (-0.5, -2.0, 1.0),
            "B scores 0.50 points of mIoU more than A, which is not significant at 95 %",
        ),
        ((0.0, 0.0, 0.0), "A and B reach the same mIoU"),
    ],
)
def test_sentences_follow_from_the_intervals(difference, said) -> None:
    names = ("first", "second", "difference", "low", "high")
    pair: Any = dict(zip(names, ("a", "b", *difference), strict=True))
    (sentence,) = verdict_sentences([pair], {"a": "A", "b": "B"})
    assert sentence.startswith(said)
