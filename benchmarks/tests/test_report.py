"""Tables and charts against numbers that are known."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import charts
import diagram
import figures
import layout
import numpy as np
import pytest
import report
import structure_table

from openvocab.cli import run
from openvocab.datasets.catalog import CATALOG
from openvocab.metrics import CONVENTIONS
from openvocab.results import ProtocolCard, Result


def result(method: str, diagonal: int) -> Result:
    matrix = np.full((3, 4), 1, dtype=np.int64)
    matrix[[0, 1], [0, 1]] = diagonal
    matrix[2] = 0  # a class that is absent, but predicted
    card = ProtocolCard(data_set="pascal-context-459", method=method, n_images=2)
    return Result(card, ("a", "b", "c"), matrix)


@pytest.fixture
def folder(tmp_path) -> Path:
    names = {"san": "pc--san.json", "ovseg": "pc--ovseg.json"}
    for (method, name), diagonal in zip(names.items(), (30, 20), strict=True):
        result(method, diagonal).save(tmp_path / "results" / name)
    pair = {"first": "san", "second": "ovseg", "protocol": ["x differs"], "conventions": {}}
    comparison = {
        "format": layout.FORMAT, "data_set": "pascal-context-459", "title": "PC-459",
        "results": names, "paired": [pair], "seen": None,
        "gallery": [], "diagnoses": {m: {} for m in names}, "one_step": None, "crops": None,
        "times": {m: {"seconds": 2.0, "peak_gib": 1.0, "libraries_gib": 0.5} for m in names},
        "scores": {m: {"all": 20.0} for m in names},
        "control": {m: {"miou": 1.0, "ratio": 20.0, "permutations": 200} for m in names},
    }  # fmt: skip
    (tmp_path / "results" / "pc--comparison.json").write_text(json.dumps(comparison))
    return tmp_path


def test_published_numbers_stand_beside_those_of_their_convention(folder) -> None:
    page = report.read_page(folder)
    rows = {(r["method"], r["convention"]): r for r in page["sets"][0]["rows"]}
    new, old = rows["san", "detectron2"], rows["san", "detectron2-legacy"]
    assert new["miou"] == pytest.approx(1.5 * old["miou"])
    base = [p for p in new["published"] if "B/16" in p["variant"]]
    assert [p["miou"] for p in base] == [16.7053]
    assert base[0]["difference"] == pytest.approx(new["miou"] - 16.7053)
    assert [p["miou"] for p in old["published"]] == [12.6]
    assert not rows["san", "mmseg"]["published"]
    text = report.build_report(folder).read_text()
    assert "16.71" in text and "12.60" in text and f"{old['miou']:.2f}" in text


def test_class_differences_are_sorted_and_leave_absent_classes_out() -> None:
    first, second = result("a", 30), result("b", 20)
    second.matrix[0, 0] = 40
    found = figures.class_differences(first, second)
    assert [name for name, _ in found] == ["b", "a"]
    assert found[0][1] < 0 < found[1][1]


def test_an_empty_folder_is_one_sentence(tmp_path, capsys) -> None:
    assert run(report.main, [str(tmp_path)]) == 2
    assert "run_all" in capsys.readouterr().err


def test_published_rows_are_complete_and_of_known_sets() -> None:
    rows = report.published()
    assert len({(r["method"], r["variant"], r["data_set"], r["convention"]) for r in rows}) == len(
        rows
    )
    for row in rows:
        assert row["convention"] in CONVENTIONS and row["data_set"] in CATALOG
        assert 0 < row["miou"] < 100 and row["source"]


def test_charts_hold_every_point() -> None:
    svg = charts.curves({"san": [(20, 1.0), (847, 2.0)], "car": [(2, 9.0)]}, "names", "seconds")
    root = ElementTree.fromstring(svg)
    assert len(root.findall("{*}circle")) == 3 and len(root.findall("{*}polyline")) == 1
    x = {float(c.get("cx")) for c in root.findall("{*}circle")}
    assert all(0 < value < 640 for value in x) and len(x) == 3
    assert charts.curves({}, "x", "y") == ""


def test_bars_point_to_the_better() -> None:
    svg = charts.bars([("cat <i>", -10.0), ("dog", 5.0)], "t", "SAN better", "CaR better")
    bars = ElementTree.fromstring(svg).findall("{*}rect")
    assert [b.get("fill") for b in bars] == [charts.COLOURS["san"], charts.COLOURS["car"]]
    assert float(bars[0].get("width")) == pytest.approx(2 * float(bars[1].get("width")), abs=0.2)


def test_points_stand_on_an_axis_from_zero() -> None:
    svg = charts.points({"san": [(0.1, 60.0)], "car": [(10.0, 30.0)]}, "seconds", "mIoU")
    root = ElementTree.fromstring(svg)
    high, low = (float(c.get("cy")) for c in root.findall("{*}circle"))
    floor = max(float(line.get("y1")) for line in root.findall("{*}line"))
    assert floor - low == pytest.approx((floor - high) / 2, abs=0.2)


@pytest.mark.parametrize("top", [1.2, 7, 23.4, 55, 99.9, 115])
def test_even_ticks_start_at_zero_and_are_few(top) -> None:
    found = charts.even_ticks((0.0, top))
    assert 3 <= len(found) <= 7 and found[0] == 0 and found[-1] <= top < found[-1] + 1.01 * found[1]


def test_points_that_were_left_out_are_named_with_the_reason() -> None:
    missing = {"names": 5000, "seconds": None, "reason": "could take 90 s"}
    axes = {"names": [{"names": 20, "seconds": 0.5}, missing], "side": [{"side": 64, "seconds": 1}]}
    latency = {"side": 128, "few_names": 4, "curves": axes}
    (group,) = report.read_curves({}, {"car": latency})
    assert group["left_out"] == ["CaR with 5,000 names (could take 90 s)"]
    svg = figures.latency_figures(group["curves"])["names"]
    assert len(ElementTree.fromstring(svg).findall("{*}circle")) == 1


@pytest.mark.parametrize("span", [(0.3, 7), (15, 9000), (0.01, 3000)])
def test_ticks_are_few_and_inside(span) -> None:
    found = charts.ticks(span)
    assert 1 <= len(found) <= 7 and all(span[0] <= t <= span[1] * 1.001 for t in found)


def test_boxes_grow_with_cost_and_stay_visible() -> None:
    widths = [diagram.box_width(cost, 1000) for cost in (0, 10, 250, 1000)]
    assert widths == sorted(widths) and widths[0] == 40 and widths[-1] == 2 * widths[2] == 300


@pytest.mark.parametrize(
    ("numbers", "words"), [([3], "block 3"), ([1, 2, 3], "blocks 1 to 3"), ([1, 5], "blocks 1, 5")]
)
def test_blocks_in_words(numbers, words) -> None:
    assert structure_table._blocks(numbers) == words
