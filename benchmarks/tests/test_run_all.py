"""The whole way from weights and pictures to a report, on networks that know nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import run_all
from benchmarks.quality.comparison import seen_classes
from benchmarks.quality.plan import Missing, find_data
from benchmarks.reporting.gallery import AGREEMENTS
from benchmarks.reporting.report import build_report

from openvocab.cli import run
from openvocab.datasets.samples import FolderDataset
from openvocab.evaluation.results import Result
from openvocab.methods import available_methods
from openvocab.world import seen_labels, world_vocabulary

METHODS = ("san", "ovseg", "car")
SCRIPT = str(Path(run_all.__file__).resolve())


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
    order = [AGREEMENTS.index(g["agreement"]) for g in found["gallery"]]
    assert len(order) == 3 and order == sorted(order)
    assert all(0 < g["disagreement"] <= 1 for g in found["gallery"])
    images = json.loads(path.with_name(path.name.replace("comparison", "images")).read_text())
    assert len(images) == 3 and all(i["maps"].keys() == {"truth", *scores} for i in images)
    for times in found["times"].values():
        assert times["seconds"] > 0 and 0 < times["libraries_gib"] < times["peak_gib"] < 16
    assert found["control"].keys() == scores.keys() and not any(found["diagnoses"].values())


def test_the_report_says_every_score_and_nothing_twice(finished) -> None:
    page, text = ((finished / f"report.{kind}").read_text() for kind in ("html", "md"))
    (path,) = (finished / "results").glob("*--comparison.json")
    for name in json.loads(path.read_text())["results"].values():
        miou = f"{Result.load(path.parent / name).scores().miou:.2f}"
        assert miou in page and miou in text
    assert (
        page.count("data:image/jpeg;base64,/") == 3 * 5
        and "This report says nothing about quality" not in page
    )
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # self-contained
    for target in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (finished / target).is_file()


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
        (["--limit", "0"], "at least 1 image"),
        (["diff", "none.json", "none.json"], "none.json"),
    ],
)
def test_bad_arguments_are_one_sentence(words, said, capsys) -> None:
    assert run(run_all.main, words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("wheights: {}", "did you mean weights"),
        ("weights: {sam: a.pth}", "san"),
        ("weights: san=a.pth", "weights: 'san=a.pth'"),
        ("datasets: ade20k-150", "datasets: 'ade20k-150'"),
        ("datasets:", "datasets: None"),
        ("models: [1]", "models: [1]"),
        ("models: [", "is not YAML"),
        ("- models", "holds a list and no keys with values"),
    ],
)
def test_bad_configurations_are_one_sentence(content, said, tmp_path, capsys) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(content)
    assert run(run_all.main, ["--config", str(bad)]) == 2
    found = capsys.readouterr().err
    assert said in found and found.count("\n") == 1


def test_a_wrong_list_of_seen_names_is_said_before_anything_runs(
    checkpoints, pictures, tmp_path, capsys
) -> None:
    words = arguments(checkpoints, pictures, tmp_path / "o", "--seen", "none.txt")
    assert run(run_all.main, words) == 2
    assert "none.txt" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_configurations_are_read() -> None:
    folder = Path(run_all.__file__).parent / "configs"
    for path in folder.glob("*.yaml"):
        request = run_all.read_request(run_all.build_parser().parse_args(["--config", str(path)]))
        assert set(request.weights) == set(METHODS) and request.datasets


def test_diff_says_the_protocol_before_the_numbers(finished, capsys) -> None:
    first, second = (
        str(next((finished / "results").glob(f"*--{method}.json"))) for method in ("san", "ovseg")
    )
    assert run_all.main(["diff", first, second]) == 0
    said = capsys.readouterr().out
    assert said.index("the weights differ") < said.index("convention")
    a, b, difference = map(float, said.splitlines()[-1].split()[1:])
    assert difference == pytest.approx(a - b, abs=0.011)  # of the sign of openvocab.compare
    assert run_all.main(["diff", first, first]) == 0
    assert "the protocols are the same" in capsys.readouterr().out


def test_processes_of_torchrun_share_the_images(checkpoints, pictures, tmp_path, finished) -> None:
    only = {"san": checkpoints["san"]}
    words = arguments(only, pictures, tmp_path, "--models", "san")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", SCRIPT]
    done = subprocess.run([*command, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1
    assert len(list((tmp_path / "runs").rglob("images-*-of-2.log"))) == 2
    (both,) = (tmp_path / "results").glob("*--san.json")
    shared, alone = Result.load(both), Result.load(next((finished / "results").glob("*--san.json")))
    assert (shared.matrix == alone.matrix).all() and shared.intervals == alone.intervals


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are found in /proc")
def test_a_killed_run_leaves_nobody_behind_and_goes_on(
    checkpoints, pictures, tmp_path, finished
) -> None:
    folder, copies = tmp_path / "data", 50
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
        for file in (pictures / part).iterdir():
            for copy in range(copies):  # so many images that the run is killed before the last
                shutil.copy(file, folder / part / f"{file.stem}-{copy}{file.suffix}")
    shutil.copy(pictures / "names.txt", folder)
    only = {"san": checkpoints["san"]}
    words = arguments(only, folder, tmp_path / "out", "--models", "san")
    parent = subprocess.Popen([sys.executable, SCRIPT, *words], stdout=subprocess.DEVNULL)

    def lines() -> int:
        logs = (tmp_path / "out").rglob("images-*.log")
        return sum(log.read_bytes().count(b"\n") for log in logs)

    assert wait_for(lambda: lines() >= 2)  # the protocol, and the first image
    others = descendants(str(parent.pid))
    assert others
    parent.kill()
    parent.wait()
    assert wait_for(lambda: all(is_gone(one) for one in others))
    assert run_all.main(words) == 0
    assert lines() == 1 + 3 * copies  # the protocol, and every image once
    (resumed,) = (tmp_path / "out" / "results").glob("*--san.json")
    alone = Result.load(next((finished / "results").glob("*--san.json")))
    assert (Result.load(resumed).matrix == copies * alone.matrix).all()


def wait_for(happened: Callable[[], bool], seconds: float = 1200) -> bool:
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.05)
    return happened()


def descendants(pid: str) -> list[str]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [*children, *(below for child in children for below in descendants(child))]


def is_gone(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("request_words", [
    ([], dict.fromkeys(available_methods(), "world"), ("world",)),
    (["--models", "car"], {"car": "world"}, ("world",)),
    (["--datasets", "world:tune"], dict.fromkeys(available_methods(), "world"), ("world:tune",)),
    (["--weights", "san=world"], {"san": "world"}, ("world",)),
    (["--weights", "san=a.pth"], {"san": "a.pth"}, ()),
    (["--datasets", "voc-20"], {}, ("voc-20",)),
])  # fmt: skip
def test_what_is_not_said_is_the_world(request_words) -> None:
    words, weights, datasets = request_words
    found = run_all.read_request(run_all.build_parser().parse_args(words))
    assert (found.weights, found.datasets) == (weights, datasets)


def test_it_starts_as_a_script(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0 and "--weights" in done.stdout


@pytest.mark.parametrize(
    ("weights", "not_done", "code"),
    [
        ({"san": "world"}, [], 0),
        ({"san": "world"}, [Missing("san on world", "an image cannot be read")], 1),
        ({}, [], 1),  # nothing of what was asked for could be done
    ],
)
def test_a_run_that_left_something_undone_does_not_end_with_0(
    tmp_path, monkeypatch, weights, not_done, code
) -> None:
    data = {"world": find_data("world:tune", None)}
    monkeypatch.setattr(run_all, "start_server", lambda: None)
    monkeypatch.setattr(run_all, "preflight", lambda r: (replace(r, weights=weights), data, []))
    monkeypatch.setattr(run_all, "evaluate_all", lambda plan, say: not_done)
    monkeypatch.setattr(run_all, "_conclude", lambda *asked: tmp_path)
    words = ["--models", "san", "--datasets", "world", "--output", str(tmp_path)]
    assert run_all.main(words) == code


def test_seen_on_a_folder_is_what_the_checkpoints_were_trained_on(tmp_path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(world_vocabulary().names))
    data = FolderDataset(tmp_path, tmp_path, tmp_path / "names.txt")
    seen = seen_classes(None, data, {"san": "world", "ovseg": "world", "car": "world"})
    assert seen is not None and seen["ids"] == list(seen_labels()) and seen["classes"] == 40
    published = seen_classes(None, data, {"car": "world"})  # CaR was never trained
    assert published is not None and published["list"] == "coco-stuff-171"
