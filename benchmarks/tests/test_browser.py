"""The report in Debian's Chromium: as on a desk, on a phone, in the dark and on paper."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import run_all
from benchmarks.layout import read_json
from benchmarks.quality.comparison import calibration_curves
from benchmarks.reporting import three_methods
from benchmarks.reporting.report import build_report
from benchmarks.structure.latency import NAME_COUNTS, SIDES
from browser import FAINT, TOO_WIDE, Browser, start_browser
from PIL import Image

from openvocab.evaluation.log import ImageRecord
from openvocab.evaluation.wording import FORMAT as WORDING_FORMAT
from openvocab.metrics.calibration import BINS
from openvocab.metrics.scores import PairCounts

NO_PAIRS = PairCounts(*(np.zeros(0, np.int64) for _ in range(3)))


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    found = start_browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


def worded(number: int) -> dict[str, Any]:
    """What a run measures of the wording, with numbers that are as wide as they can be."""
    share = {"estimate": 98.76 - number, "low": 10.0, "high": 100.0}
    rows = [
        {
            "part": "distractors", "title": f"{count} other names", "changed": count,
            "unreadable": [], "miou": 90.0 - number * count, "low": 1.0, "high": 99.0,
            **({"difference": -12.34, "difference_low": -45.67, "difference_high": -0.12}
               if count else {}),
        }
        for count in (0, 10, 20)
    ]  # fmt: skip
    return {
        "images": 6, "rows": rows, "notes": ["A note."],
        "absent": {"names": share, "pixels": share},
        "card": {"wording": {"names": ["a"] * 60, "scored against distractors": ["a"] * 20}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def report(world_run, tmp_path_factory) -> Path:
    """A report with everything: scores of the world, the published structures, all curves."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(world_run / "results", folder / "results")
    path = folder / "results" / "world--comparison.json"
    calibration = {}
    for number, method in enumerate(("san", "ovseg", "car")):
        random = np.random.default_rng(number)
        records = []
        for _ in range(4):
            pixels = random.integers(1, 500, BINS).astype(float)
            right = pixels * (np.arange(BINS) + 0.5) / BINS
            records.append(
                ImageRecord("", NO_PAIRS, confidence=np.stack([pixels, right * 0.9, right]))
            )
        calibration[method] = calibration_curves(records)
    path.write_text(json.dumps({**read_json(path), "calibration": calibration}))
    structures = read_json(three_methods.DOCS / three_methods.DATA)
    axes = {"names": NAME_COUNTS, "side": SIDES}
    for number, method in enumerate(structures, start=1):
        curves: dict[str, list[dict[str, Any]]] = {
            axis: [{axis: value, "seconds": number * value / 1000} for value in values]
            for axis, values in axes.items()
        }
        curves["names"][-1] |= {"seconds": None, "reason": "could take 90 s"}
        timed = {"side": SIDES[1], "few_names": 4, "curves": curves}
        wording = {"format": WORDING_FORMAT, "wording": worded(number)}
        for name, content in (
            ("latency", timed), ("structure", structures[method]), ("wording", wording),
        ):  # fmt: skip
            path = folder / "results" / f"{name}-{method}.json"
            path.write_text(json.dumps(content))
    return build_report(folder)


_LOADED = "[...document.images].every(i => i.naturalWidth > 0)"
# Texts of a figure that cover each other, or leave it.
_CROWDED = """[...document.querySelectorAll("svg")].flatMap(svg => {
  const box = svg.getBoundingClientRect(), slack = 1.5
  const texts = [...svg.querySelectorAll("text")]
    .map(t => [t.textContent, t.getBoundingClientRect()])
  const covers = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > slack &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > .3 * Math.min(a.height, b.height)
  return texts.flatMap(([said, a], i) => [
    ...(a.left < box.left - slack || a.right > box.right + slack ? [said + " leaves"] : []),
    ...texts.slice(i + 1).filter(([_, b]) => covers(a, b))
      .map(([other]) => said + " covers " + other)
  ])
})"""

_CUT = "[...document.querySelectorAll('.cut')].filter(e => e.getClientRects().length).length"
_UNSAID = """[...document.querySelectorAll(".wide, .diagram")].filter(box => {
  const said = box.previousElementSibling.getClientRects().length > 0
  return said != (box.scrollWidth > box.clientWidth + 1)
}).map(box => box.textContent.slice(0, 50))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_report_is_whole_and_readable(browser, report, width, scheme) -> None:
    browser.show(report, width, scheme)
    assert browser.complaints() == []
    assert browser.wait(_LOADED) and browser.look("document.images.length") == 2 * 4 * 5
    assert browser.look(TOO_WIDE) == 0
    assert browser.look(FAINT) == []
    assert browser.look(_CROWDED) == []
    assert "expected calibration error" in browser.look("document.body.innerText")
    # What is wider than the screen says so, and nothing else does.
    assert browser.look(_UNSAID) == [] and bool(browser.look(_CUT)) == (width == 390)


def test_the_report_prints(browser, report) -> None:
    browser.show(report)
    found = browser.pdf()
    assert found.startswith(b"%PDF") and 4 <= found.count(b"/Type /Page\n") <= 20


def test_paper_is_white_for_readers_in_the_dark_and_cuts_nothing(browser, report) -> None:
    browser.show(report, 794, "dark")
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.call("Emulation.setEmulatedMedia", media="print", features=[dark])
    assert browser.look("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.look(FAINT) == []
    wider = "[...document.querySelectorAll('.wide, .diagram')]"
    assert browser.look(f"{wider}.filter(e => e.scrollWidth > e.clientWidth + 1).length") == 0
    assert browser.look(_CUT) == 0


@pytest.mark.parametrize(
    ("body", "script", "said"),
    [
        ("<script>console.error('no')</script>", "0", "consoleAPICalled"),
        ("<script>throw 1</script>", "0", "exceptionThrown"),
        ("<img src='https://example.invalid/a.png'>", "0", "asks for https://example.invalid"),
        ("<script src='gone.js'></script>", "0", "asks for file:"),
        ("<p style='width: 900px'>wide</p>", TOO_WIDE, 518),
        ("<p style='color: #999'>faint</p>", FAINT, ["faint 2.8"]),
        ("<svg><text y='20'>one</text><text y='22'>two</text></svg>", _CROWDED, ["one covers two"]),
    ],
)
def test_these_tests_can_fail(browser, tmp_path, body, script, said) -> None:
    page = tmp_path / "page.html"
    viewport = '<meta name="viewport" content="width=device-width">'
    page.write_text(f"<!doctype html>{viewport}<body style='margin: 8px'>{body}</body>")
    browser.show(page, 390)
    found = browser.look(script)
    assert found == said or (isinstance(said, str) and browser.hears(said))


def test_a_policy_in_the_report_forbids_all_requests(browser, report, tmp_path) -> None:
    page = tmp_path / "page.html"
    image = "<img src='https://example.invalid/a.png'>"
    page.write_text(report.read_text().replace("</body>", f"{image}</body>"))
    browser.show(page)
    assert browser.hears("Content Security Policy")


COUNT = 200


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """The report of a run of 200 images and three programs, whose maps are hard to compress."""
    folder, random = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    parts = ("images", "labels", "good", "half", "bad")
    for part in parts:
        (folder / part).mkdir()
    for index in range(COUNT):
        truth, noise = (
            random.integers(0, 30, shape).repeat(96 // shape[1], 0).repeat(96 // shape[1], 1)
            for shape in ((6, 8), (18, 24))
        )
        maps = [random.integers(0, 256, (*truth.shape, 3)).astype(np.uint8), truth]
        slightly = np.where(random.random(truth.shape) < 0.1, noise, truth)
        maps += [slightly, truth if index % 2 else noise, noise]
        for part, values in zip(parts, maps, strict=True):
            picture = Image.fromarray(np.asarray(values, np.uint8))
            picture.save(folder / part / f"{index:03}.png")
    (folder / "names.txt").write_text("\n".join(f"class {i}" for i in range(30)) + "\n")
    words = ["--datasets", str(folder), "--output", str(folder / "out"), "--no-structure"]
    words += ["--predictions", *(f"{name}={folder / name}" for name in parts[2:])]
    assert run_all.main(words) == 0
    return folder / "out" / "report.html"


def test_all_images_of_a_run_are_in_a_page_of_few_megabytes(browser, large) -> None:
    assert large.stat().st_size < 5_000_000
    browser.show(large)
    assert browser.wait(_LOADED) and browser.complaints() == []
    shown, seen = ".all figcaption > bdi", set()
    while True:
        seen |= set(
            browser.look(f"[...document.querySelectorAll('{shown}')].map(e => e.innerText)")
        )
        if browser.look("document.querySelector('.after').disabled"):
            break
        browser.click(".after")
    assert seen == {f"{index:03}" for index in range(COUNT)}


def _status(browser: Browser) -> str:
    return browser.look("document.querySelector('.all [role=status]').textContent")


def test_images_can_be_filtered_by_class_method_and_result(browser, large) -> None:
    browser.show(large)
    browser.enter("[name=agreement]", "one wrong")
    assert _status(browser) == "100 of 200 images"
    browser.enter("[name=method]", "foreign-half")
    assert _status(browser) == "200 of 200 images"
    browser.enter("[name=agreement]", "wrong")
    assert _status(browser) == "100 of 200 images"
    tiles = "[...document.querySelector('.all .gallery').children].map(e => e.innerText.trim())"
    image, truth, half = browser.look(tiles)
    assert (image, truth) == ("image", "ground truth") and half.startswith("half ")
    browser.enter("[name=method]", "")
    browser.enter("[name=name]", "3")
    legends = "[...document.querySelectorAll('.all .legend')].map(e => e.innerText)"
    assert all("class 3" in legend for legend in browser.look(legends))


def test_a_picture_is_enlarged_by_mouse_and_keys(browser, large) -> None:
    browser.show(large)
    assert not browser.look("document.querySelector('dialog').open")
    browser.look("document.querySelector('.image .tile').focus()")
    browser.press("Enter")
    assert browser.look("document.querySelector('dialog').open")
    said = "document.querySelector('dialog p').textContent"
    first = browser.look(said)
    assert first.startswith("image of")
    browser.press("ArrowRight")
    assert browser.look(said).startswith("ground truth of")
    browser.press("ArrowRight")
    assert "of the labelled pixels are right" in browser.look(said)
    browser.press("Escape")
    assert not browser.look("document.querySelector('dialog').open")


def _column(browser: Browser, place: int) -> list[str]:
    cells = f"[...document.querySelectorAll('.sortable tbody tr')].map(r => r.cells[{place}]"
    return browser.look(f"{cells}).map(c => c.dataset.value ?? c.textContent)")


def test_the_table_of_classes_sorts_by_mouse_and_keys(browser, large) -> None:
    browser.show(large)
    names, scores = _column(browser, 0), [float(v) for v in _column(browser, 2)]
    assert len(names) == 30
    button = "document.querySelectorAll('.sortable .sort')"
    browser.look(f"{button}[2].focus()")
    browser.press("Enter")
    assert [float(v) for v in _column(browser, 2)] == sorted(scores, reverse=True)
    browser.press("Enter")
    assert [float(v) for v in _column(browser, 2)] == sorted(scores)
    assert browser.look(f"{button}[2].closest('th').ariaSort") == "ascending"
    browser.look(f"{button}[0].click()")
    assert _column(browser, 0) == sorted(names)
    assert browser.look(f"{button}[2].closest('th').ariaSort") is None


_HOSTILE = (
    "<script>throw 1</script>",
    "\"><img src=x onerror=throw(1)> '&amp;",
    "שלום עולם",
    "x" * 300,
)


@pytest.fixture(scope="module")
def hostile(pictures, tmp_path_factory) -> Path:
    """A report whose class names and titles are code, quotes, right-to-left and very long."""
    folder = tmp_path_factory.mktemp("hostile")
    shutil.copytree(pictures, folder / "data")
    (folder / "data/names.txt").write_text("\n".join(_HOSTILE) + "\n")
    words = ["--datasets", str(folder / "data"), "--output", str(folder / "out"), "--no-structure"]
    words += ["--predictions", *(f"{name}={pictures / 'labels'}" for name in _HOSTILE)]
    assert run_all.main(words) == 0
    return folder / "out" / "report.html"


@pytest.mark.parametrize("width", [390, 1200])
def test_hostile_names_stay_text(browser, hostile, width) -> None:
    browser.show(hostile, width)
    assert browser.complaints() == []
    assert browser.look("document.scripts.length") == browser.look(
        "document.querySelectorAll('body > script').length"
    )
    assert browser.wait(_LOADED) and browser.look(TOO_WIDE) == 0
    assert browser.look(_CROWDED) == []
    text = browser.look("document.body.innerText")
    assert all(name in text for name in _HOSTILE)
    markdown = hostile.with_suffix(".md").read_text()
    assert "<script" not in markdown and "<img" not in markdown
