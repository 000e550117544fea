"""The page of many results: what is ranked, what is marked, and what is left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks import leaderboard
from browser import FAINT, TOO_WIDE, Browser, start_browser

from openvocab.cli import run
from openvocab.evaluation.results import ProtocolCard, Result
from openvocab.evaluation.stated import stated_settings
from openvocab.metrics.bootstrap import Interval

CARD = ProtocolCard(
    data_set="ade20k-150", split="val", n_images=2000, label_tree_hash="a" * 64,
    vocabulary_hash="b" * 64, n_classes=3, method="SAN", variant="ViT-B/16",
    weights_sha256="c" * 64, resize_rule="short side 640", code_version="1.0",
)  # fmt: skip
HOSTILE = '"><script>throw 1</script><img src=x onerror=throw(1)> שלום ' + "x" * 300


def save(folder: Path, name: str, diagonal: int, **lines) -> Path:
    matrix = np.full((3, 4), 5, dtype=np.int64)
    matrix[[0, 1], [0, 1]] = diagonal
    matrix[2] = 0  # absent, but predicted: the conventions differ
    intervals = {"detectron2": Interval(50.0, 40.0, 60.0)}
    path = folder / f"{name}.json"
    Result(replace(CARD, **lines), ("a", "b", "c"), matrix, intervals).save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    save(tmp_path, "low", 20, method="Low", resize_rule="other", templates="other")
    save(tmp_path, "high", 90, method="High")
    save(tmp_path, "few", 99, method="Few images", n_images=100)
    save(tmp_path, "told", 95, method="Oracle", settings={"told": "true-masks"})
    save(tmp_path, "names", 97, method="Other names", vocabulary_hash="d" * 64)
    save(tmp_path, "world", 50, method="Elsewhere", data_set="world")
    return tmp_path


def test_equal_scores_share_a_rank(tmp_path) -> None:
    for name, diagonal in (("one", 50), ("two", 90), ("three", 50), ("four", 20)):
        save(tmp_path, name, diagonal, method=name)
    table = leaderboard.tables(leaderboard.read_entries([tmp_path])[0])[0]
    assert [row["place"] for row in table["rows"]] == [1, 2, 2, 4]


def test_only_results_of_one_protocol_are_ranked(folder) -> None:
    entries, left_out = leaderboard.read_entries([folder])
    assert len(entries) == 6 and not left_out
    found = {(t["title"], t["convention"]): t for t in leaderboard.tables(entries)}
    assert len(found) == 2 * 3
    table = found["ade20k-150, val", "detectron2"]
    assert [(row["place"], row["method"]) for row in table["rows"]] == [
        (1, "High"), (2, "Low"), (None, "Few images"), (None, "Other names"), (None, "Oracle"),
    ]  # fmt: skip
    marks = {row["method"]: " ".join(row["marks"]) for row in table["rows"]}
    assert not marks["High"] and not marks["Low"]
    assert marks["Few images"] == "the number of images differs: 2000 against 100"
    assert marks["Other names"].startswith("the class names differ")
    assert "'told' differs: not set against true-masks" in marks["Oracle"]
    legacy = found["ade20k-150, val", "detectron2-legacy"]
    assert legacy["rows"][0]["miou"] < table["rows"][0]["miou"]
    assert [row["method"] for row in found["world, val", "mmseg"]["rows"]] == ["Elsewhere"]


def test_what_has_no_card_or_is_no_result_is_named(folder) -> None:
    save(folder, "empty", 10, method="")
    (folder / "other.json").write_text("{}")
    again = folder / "again.json"
    again.write_text((folder / "high.json").read_text())
    content = json.loads((folder / "low.json").read_text())
    del content["card"]
    (folder / "cardless.json").write_text(json.dumps(content))
    reasons = {path.name: said for path, said in leaderboard.read_entries([folder])[1]}
    assert "says nothing of method" in reasons["empty.json"]
    assert "is not a result" in reasons["other.json"] and "card" in reasons["cardless.json"]
    assert "the same result as" in reasons["high.json"]
    page = leaderboard.build_leaderboard([folder], folder / "site").read_text()
    assert "cardless.json" in page


def test_what_a_run_wrote_is_read_from_its_folder(world_run, tmp_path) -> None:
    assert leaderboard.main([str(world_run), "--output", str(tmp_path / "site")]) == 0
    entries, left_out = leaderboard.read_entries([world_run])
    assert not left_out
    rows = leaderboard.tables(entries)[0]["rows"]
    ranked = [row["method"] for row in rows if row["place"]]
    assert {"SAN", "OVSeg", "CaR"} <= set(ranked)
    told = [row for row in rows if "true-masks" in row["file"]]
    assert len(told) == 3 and all(row["marks"] and not row["place"] for row in told)


@pytest.mark.parametrize("words", [["gone.json"], ["."]])
def test_nothing_to_show_is_one_sentence(tmp_path, monkeypatch, capsys, words) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(leaderboard.main, words) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "site").exists()


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    found = start_browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_is_readable_and_hostile_names_stay_text(browser, folder, width, scheme) -> None:
    save(
        folder, "hostile", 60, method=HOSTILE, variant=HOSTILE,
        settings=stated_settings({"weights": HOSTILE, "note": HOSTILE}),
    )  # fmt: skip
    save(folder, "hostile-set", 60, data_set=HOSTILE, background=HOSTILE)
    save(folder, "hostile-mark", 60, background=HOSTILE)
    page = leaderboard.build_leaderboard([folder], folder / "site")
    browser.show(page, width, scheme)
    assert browser.complaints() == []
    assert browser.look(TOO_WIDE) == 0 and browser.look(FAINT) == []
    assert browser.look("document.scripts.length") == 1
    assert browser.look("document.images.length") == 0
    text = browser.look("document.body.innerText")
    assert text.count(HOSTILE) >= 3 * 5 and "Not ranked: the number of images differs" in text
