"""Tables and charts against numbers that are known."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks import layout
from benchmarks.quality.comparison import calibration_curves
from benchmarks.quality.published import published, reasons_not_comparable
from benchmarks.reporting import charts, diagram, figures, report, structure_table

from openvocab.cli import run
from openvocab.datasets.catalog import CATALOG
from openvocab.evaluation.log import ImageRecord
from openvocab.evaluation.results import ProtocolCard, Result
from openvocab.methods import available_methods
from openvocab.metrics.calibration import reliability
from openvocab.metrics.scores import CONVENTIONS, PairCounts
from openvocab.vocabulary import available_vocabularies

KNOWN = available_vocabularies()


def result(method: str, diagonal: int) -> Result:
    matrix = np.full((3, 4), 1, dtype=np.int64)
    matrix[[0, 1], [0, 1]] = diagonal
    matrix[2] = 0  # a class that is absent, but predicted
    card = ProtocolCard(
        data_set="pascal-context-459", split="val", n_images=5104, method=method,
        vocabulary="pascal-context-459", variant="CLIP ViT, width 768, patch 16, 100 queries",
    )  # fmt: skip
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
        "gallery": [], "diagnoses": {m: {} for m in names}, "crops": {},
        "times": {m: {"seconds": 2.0, "peak_gib": 1.0, "libraries_gib": 0.5} for m in names},
        "scores": {m: {"all": 20.0} for m in names},
        "control": {m: {"miou": 1.0, "ratio": 20.0, "permutations": 200} for m in names},
    }  # fmt: skip
    (tmp_path / "results" / "pc--comparison.json").write_text(json.dumps(comparison))
    return tmp_path


def test_published_numbers_stand_beside_those_of_their_protocol(folder) -> None:
    (data,) = report.read_page(folder)["sets"]
    rows = {(r["method"], r["convention"]): r for r in data["rows"]}
    new, old = rows["san", "detectron2"], rows["san", "detectron2-legacy"]
    assert new["miou"] == pytest.approx(1.5 * old["miou"])
    assert [p["miou"] for p in new["published"]] == [16.7053]
    assert new["published"][0]["difference"] == pytest.approx(new["miou"] - 16.7053)
    assert [p["miou"] for p in old["published"]] == [12.6]
    assert not rows["san", "mmseg"]["published"]
    # Of other architectures, and all of OVSeg's, which here has SAN's variant.
    assert {p["variant"] for p in data["published_apart"]} == {
        "CLIP ViT-L/14", "Swin-B, CLIP ViT-L/14", "R-101c, CLIP ViT-B/16",
    }  # fmt: skip
    assert not any(r["published"] for (method, _), r in rows.items() if method == "ovseg")
    text = report.build_report(folder).read_text()
    assert "16.71" in text and "12.60" in text and f"{old['miou']:.2f}" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"n_images": 5105}, []),
        ({"n_images": 30}, ["it is on 5,104 or 5,105 images, and ours on 30"]),
        ({"split": "train"}, ["it is on the split val, and ours on train"]),
        ({"variant": "x"}, ["it is of CLIP ViT-B/16, and ours of x"]),
        ({"vocabulary": "custom"}, ["it has the names pascal-context-459, and ours custom"]),
        ({"tta": "flip"}, ["ours is the mean over flip"]),
    ],
)
def test_other_protocols_are_told_in_words(change, said) -> None:
    card = replace(result("san", 1).card, **change)
    row = next(r for r in published("san", card.data_set) if "B/16" in r["variant"])
    assert reasons_not_comparable(row, card) == said


def test_class_differences_are_sorted_and_leave_absent_classes_out() -> None:
    first, second = result("a", 30), result("b", 20)
    second.matrix[0, 0] = 40
    found = figures.class_differences(first, second)
    assert [name for name, *_ in found] == ["b", "a"]
    assert found[0][2] < found[0][1] and found[1][1] < found[1][2]


def test_many_classes_are_shown_from_both_ends() -> None:
    names = tuple(f"{i}" for i in range(40))
    one, other = (np.diag(np.arange(20, 60)[::step]) for step in (1, -1))
    one, other = (np.hstack([m, np.full((40, 1), 10)]) for m in (one, other))
    rows = figures.class_differences(*(Result(ProtocolCard(), names, m) for m in (one, other)))
    assert len(rows) == 31 and rows[15] is None
    shown = [b - a for _, a, b in filter(None, rows)]
    assert shown == sorted(shown) and shown[0] < 0 < shown[-1]


def test_an_empty_folder_is_one_sentence(tmp_path, capsys) -> None:
    assert run(report.main, [str(tmp_path)]) == 2
    assert "run_all" in capsys.readouterr().err


def test_published_rows_are_complete_and_of_known_sets() -> None:
    rows = [row for key in available_methods() for row in published(key)]
    assert {row["method"] for row in rows} >= {"SAN", "OVSeg", "CaR"}
    assert len({(r["method"], r["variant"], r["data_set"], r["convention"]) for r in rows}) == len(
        rows
    )
    for row in rows:
        assert row["convention"] in CONVENTIONS and row["data_set"] in CATALOG
        assert row.get("vocabulary", CATALOG[row["data_set"]].vocabulary) in KNOWN
        assert row["architecture"]
        assert 0 < row["miou"] < 100 and row["source"]


def test_charts_hold_every_point() -> None:
    svg = charts.draw_curves(
        {"san": [(20, 1.0), (847, 2.0)], "car": [(2, 9.0)]}, "names", "seconds"
    )
    root = ElementTree.fromstring(svg)
    circles = root.findall(".//{*}circle")
    assert len(circles) == 3 and len(root.findall(".//{*}polyline")) == 1
    x = {float(c.get("cx")) for c in circles}
    assert all(0 < value < 440 for value in x) and len(x) == 3
    assert charts.draw_curves({}, "x", "y") == ""


def test_pairs_hold_both_values_of_every_class() -> None:
    rows = [("cat <i>", 80.0, 20.0), None, ("dog", 0.0, 100.0)]
    root = ElementTree.fromstring(charts.pairs(rows, "san", "car", "t"))
    x = {
        method: [float(c.get("cx")) for c in root.findall(f"{{*}}circle[@class='{method}']")]
        for method in ("san", "car")
    }
    low, high = x["san"][1], x["car"][1]  # 0 and 100
    for method, value in (("san", 80), ("car", 20)):
        assert x[method][0] == pytest.approx(low + value / 100 * (high - low), abs=0.2)
    said = [text.text for text in root.findall("{*}text")]
    assert {"cat <i>", "-60.0", "…", "dog", "+100.0"} <= set(said)
    assert charts.pairs([], "san", "car", "t") == ""


def test_points_stand_on_an_axis_from_zero() -> None:
    svg = charts.points({"san": [(0.1, 60.0)], "car": [(10.0, 30.0)]}, "seconds", "mIoU")
    root = ElementTree.fromstring(svg)
    high, low = (float(c.get("cy")) for c in root.findall(".//{*}circle"))
    floor = max(float(line.get("y1")) for line in root.findall("{*}line"))
    assert floor - low == pytest.approx((floor - high) / 2, abs=0.2)


def test_confidences_become_curves_and_methods_without_them_none() -> None:
    random = np.random.default_rng(0)
    images = [(random.random(300), random.random(300) < 0.5) for _ in range(5)]
    nothing = PairCounts(*(np.zeros(0, np.int64) for _ in range(3)))
    counts = [reliability([image]) for image in images]
    records = [
        ImageRecord("", nothing, confidence=np.concatenate([c.pixels, c.confidence, c.right]))
        for c in counts
    ]
    found, wanted = calibration_curves(records), reliability(images)
    assert found is not None and found["error"] == pytest.approx(wanted.error())
    assert found["low"] < found["error"] < found["high"]
    assert found["accuracy"] == pytest.approx(wanted.accuracy())
    bins = zip(found["accuracy_low"], found["accuracy"], found["accuracy_high"], strict=True)
    assert all(low < accuracy < high for low, accuracy, high in bins)
    assert found["coverage"][-1] == 1
    assert calibration_curves([*records, ImageRecord("", nothing)]) is None
    assert calibration_curves([]) is None
    svg = charts.percentages({"san": [(0, 0), (100, 100)]}, "x", "y", diagonal=True)
    ((dashed,), (line,)) = (
        ElementTree.fromstring(svg).findall(path)
        for path in ("{*}line[@stroke-dasharray]", ".//{*}polyline")
    )
    ends = [dashed.get(key) for key in ("x1", "y1", "x2", "y2")]
    assert line.get("points") == "{},{} {},{}".format(*ends)


def test_titles_stand_at_their_points_and_cover_no_other() -> None:
    apart = charts._placed({"san": (60.0, 100.0), "ovseg": (300.0, 100.0)})
    assert apart == {"san": (69.0, 104.0), "ovseg": (309.0, 104.0)}
    close = charts._placed({"san": (60.0, 100.0), "ovseg": (62.0, 101.0), "car": (61.0, 99.0)})
    heights = sorted(height for _, height in close.values())
    assert all(b - a >= 15 for a, b in itertools.pairwise(heights))
    assert all(abs(height - 104) <= 40 for height in heights)


@pytest.mark.parametrize("top", [1.2, 7, 23.4, 55, 99.9, 115])
def test_even_ticks_start_at_zero_and_are_few(top) -> None:
    found = charts.even_ticks((0.0, top))
    assert 3 <= len(found) <= 7 and found[0] == 0 and found[-1] <= top < found[-1] + 1.01 * found[1]


def test_points_that_were_left_out_are_named_with_the_reason() -> None:
    missing = {"names": 5000, "seconds": None, "reason": "could take 90 s"}
    axes = {"names": [{"names": 20, "seconds": 0.5}, missing], "side": [{"side": 64, "seconds": 1}]}
    latency = {"side": 128, "few_names": 4, "curves": axes}
    (group,) = report.read_curves({}, {"car": latency})  # type: ignore[dict-item]
    assert group["left_out"] == ["CaR with 5,000 names (could take 90 s)"]
    svg = figures.latency_figures(group["curves"])["names"]
    assert len(ElementTree.fromstring(svg).findall(".//{*}circle")) == 1


@pytest.mark.parametrize("span", [(0.3, 7), (15, 9000), (0.01, 3000)])
def test_ticks_are_few_and_inside(span) -> None:
    found = charts.ticks(span)
    assert 1 <= len(found) <= 7 and all(span[0] <= t <= span[1] * 1.001 for t in found)


def test_boxes_grow_with_cost_and_stay_visible() -> None:
    widths = [diagram.box_width(cost, 1000) for cost in (0, 10, 250, 1000)]
    assert widths == sorted(widths) and widths[0] == 46 and widths[-1] == 2 * widths[2] == 300


@pytest.mark.parametrize(
    ("numbers", "words"), [([3], "block 3"), ([1, 2, 3], "blocks 1 to 3"), ([1, 5], "blocks 1, 5")]
)
def test_blocks_in_words(numbers, words) -> None:
    assert structure_table._blocks(numbers) == words
