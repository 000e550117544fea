"""The whole way from weights and pictures to a report, on networks that know nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import run_all
from report import build_report

from openvocab.cli import run
from openvocab.results import Result

METHODS = ("san", "ovseg", "car")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("OPENVOCAB_CACHE", "")


def arguments(checkpoints, pictures, output, *more) -> list[str]:
    weights = [f"{method}={path}" for method, path in checkpoints.items()]
    return ["--weights", *weights, "--datasets", str(pictures), "--output", str(output),
            "--no-structure", *more]  # fmt: skip


@pytest.fixture(scope="module")
def finished(checkpoints, pictures, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run") / "out"
    assert run_all.main(arguments(checkpoints, pictures, output)) == 0
    return output


def test_every_method_is_scored_on_the_same_images(finished) -> None:
    paths = [path for m in METHODS for path in (finished / "results").glob(f"*--{m}.json")]
    results = [Result.load(path) for path in paths]
    assert {r.card.method for r in results} == {"SAN", "OVSeg", "CaR"}
    assert len({(r.card.label_tree_hash, r.card.vocabulary_hash) for r in results}) == 1
    assert all(r.complete and r.card.n_images == 3 and r.intervals for r in results)


def test_the_comparison_holds_what_the_report_shows(finished) -> None:
    (path,) = (finished / "results").glob("*--comparison.json")
    found = json.loads(path.read_text())
    assert {(p["first"], p["second"]) for p in found["paired"]} == {
        ("san", "ovseg"), ("san", "car"), ("ovseg", "car"),
    }  # fmt: skip
    scores = {m: Result.load(path.parent / f).scores().miou for m, f in found["results"].items()}
    for pair in found["paired"]:
        difference = pair["conventions"]["detectron2"]["difference"]
        assert difference == pytest.approx(scores[pair["first"]] - scores[pair["second"]])
        assert any("weights differ" in line for line in pair["protocol"])
    # "sky", "grass" and "dog" are in COCO-Stuff, "quux" is not; sky's spelling there decides.
    assert 1 <= found["seen"]["classes"] <= 3
    assert [g["disagreement"] for g in found["gallery"]] == sorted(
        (g["disagreement"] for g in found["gallery"]), reverse=True
    )
    assert len(found["gallery"]) == 3
    for times in found["times"].values():
        assert times["seconds"] > 0 and 0 < times["libraries_gib"] < times["peak_gib"] < 16
    assert found["control"].keys() == scores.keys() and not any(found["diagnoses"].values())


def test_the_report_says_every_score_and_nothing_twice(finished) -> None:
    page, text = ((finished / f"report.{kind}").read_text() for kind in ("html", "md"))
    (path,) = (finished / "results").glob("*--comparison.json")
    for name in json.loads(path.read_text())["results"].values():
        miou = f"{Result.load(path.parent / name).scores().miou:.2f}"
        assert miou in page and miou in text
    assert page.count("data:image/jpeg") == 3 and "There is no quality" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # self-contained


def test_the_report_is_made_from_the_json_alone(finished, tmp_path) -> None:
    shutil.copytree(finished / "results", tmp_path / "copy" / "results")
    build_report(tmp_path / "copy")
    for name in ("report.html", "report.md"):
        assert (tmp_path / "copy" / name).read_text() == (finished / name).read_text()


def test_a_second_run_computes_nothing(finished, checkpoints, pictures) -> None:
    only = {"san": checkpoints["san"]}
    logged = {path: path.read_bytes() for path in (finished / "runs").rglob("*/san/*")}
    assert any(path.name.startswith("images-") for path in logged)
    words = arguments(only, pictures, finished, "--models", "san")
    (comparison,) = (finished / "results").glob("*--comparison.json")
    before = comparison.read_bytes()
    assert run_all.main(words) == 0
    assert all(path.read_bytes() == content for path, content in logged.items())
    comparison.write_bytes(before)
    build_report(finished)


def test_what_is_missing_is_said_at_once_and_the_rest_runs(
    checkpoints, pictures, tmp_path, capsys
) -> None:
    given = {**checkpoints, "ovseg": str(tmp_path / "none.pth")}
    del given["car"]
    output = tmp_path / "out"
    words = arguments(given, pictures, output, "--limit", "1")
    words[words.index("--datasets") + 1 : words.index("--output")] = [
        str(pictures), "ade20k-150", str(tmp_path),
    ]  # fmt: skip
    assert run_all.main([*words, "--data-root", str(tmp_path / "data")]) == 0
    said = capsys.readouterr().out
    first = said.index("san on")
    for what in ("weights of car", "weights of ovseg", "data set ade20k-150", f"{tmp_path}"):
        assert said.index(f"missing: {what}" if what[0] != "/" else what) < first
    assert Result.load(next((output / "results").glob("*--san.json"))).card.n_images == 1
    page = (output / "report.html").read_text()
    assert "none.pth" in page and "has no images and no labels" in page


def test_nothing_to_run_is_an_error(tmp_path, capsys) -> None:
    words = ["--weights", f"san={tmp_path / 'none.pth'}", "--datasets", str(tmp_path)]
    assert run(run_all.main, [*words, "--output", str(tmp_path / "o"), "--no-structure"]) == 2
    assert "nothing could be run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--weights", "san"], "METHOD=FILE"),
        (["--weights", "sam=x"], "san"),
        (["--config", "none.yaml"], "no configuration"),
    ],
)
def test_bad_arguments_are_one_sentence(words, said, capsys) -> None:
    assert run(run_all.main, words) == 2
    assert said in capsys.readouterr().err


def test_a_wrong_list_of_seen_names_is_said_before_anything_runs(
    checkpoints, pictures, tmp_path, capsys
) -> None:
    words = arguments(checkpoints, pictures, tmp_path / "o", "--seen", "none.txt")
    assert run(run_all.main, words) == 2
    assert "none.txt" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_configurations_are_read(tmp_path, capsys) -> None:
    folder = Path(run_all.__file__).parent / "configs"
    for path in folder.glob("*.yaml"):
        request = run_all.read_request(run_all.build_parser().parse_args(["--config", str(path)]))
        assert set(request.weights) == set(METHODS) and request.datasets
    bad = tmp_path / "bad.yaml"
    bad.write_text("wheights: {}\n")
    assert run(run_all.main, ["--config", str(bad)]) == 2
    assert "weights" in capsys.readouterr().err


def test_diff_says_the_protocol_before_the_numbers(finished, capsys) -> None:
    first, second = (
        str(next((finished / "results").glob(f"*--{method}.json"))) for method in ("san", "ovseg")
    )
    assert run_all.main(["diff", first, second]) == 0
    said = capsys.readouterr().out
    assert said.index("the weights differ") < said.index("convention")
    assert run_all.main(["diff", first, first]) == 0
    assert "the protocols are the same" in capsys.readouterr().out


def test_processes_share_the_images(checkpoints, pictures, tmp_path, monkeypatch, finished) -> None:
    only = {"san": checkpoints["san"]}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        words = arguments(only, pictures, tmp_path, "--models", "san")
        code = run(run_all.main, words)
        assert code == (2 if rank == "0" else 0)  # who finishes last reports
    (both,) = (tmp_path / "results").glob("*--san.json")
    alone = Result.load(next((finished / "results").glob("*--san.json")))
    assert (Result.load(both).matrix == alone.matrix).all()


@pytest.mark.parametrize("request_words", [
    ([], {"san": "world", "ovseg": "world", "car": "world"}, ("world",)),
    (["--models", "car"], {"car": "world"}, ("world",)),
    (["--datasets", "world:tune"], dict.fromkeys(METHODS, "world"), ("world:tune",)),
    (["--weights", "san=world"], {"san": "world"}, ("world",)),
    (["--weights", "san=a.pth"], {"san": "a.pth"}, ()),
    (["--datasets", "voc-20"], {}, ("voc-20",)),
])  # fmt: skip
def test_what_is_not_said_is_the_world(request_words) -> None:
    words, weights, datasets = request_words
    found = run_all.read_request(run_all.build_parser().parse_args(words))
    assert (found.weights, found.datasets) == (weights, datasets)


def test_it_starts_as_a_script(tmp_path) -> None:
    script = Path(run_all.__file__)
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0 and "--weights" in done.stdout
