"""The report in Debian's Chromium: as on a desk, on a phone, in the dark and on paper."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks import run_all
from benchmarks.layout import read_json
from benchmarks.reporting import three_methods
from benchmarks.reporting.report import build_report
from benchmarks.structure.latency import NAME_COUNTS, SIDES
from browser import FAINT, TOO_WIDE, Browser, start_browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    found = start_browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def report(world_run, tmp_path_factory) -> Path:
    """A report with everything: scores of the world, the published structures, all curves."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(world_run / "results", folder / "results")
    structures = read_json(three_methods.DOCS / three_methods.DATA)
    axes = {"names": NAME_COUNTS, "side": SIDES}
    for number, method in enumerate(structures, start=1):
        curves: dict[str, list[dict[str, Any]]] = {
            axis: [{axis: value, "seconds": number * value / 1000} for value in values]
            for axis, values in axes.items()
        }
        curves["names"][-1] |= {"seconds": None, "reason": "could take 90 s"}
        timed = {"side": SIDES[1], "few_names": 4, "curves": curves}
        for name, content in (("latency", timed), ("structure", structures[method])):
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_report_is_whole_and_readable(browser, report, width, scheme) -> None:
    browser.show(report, width, scheme)
    assert browser.complaints() == []
    assert browser.look(_LOADED) and browser.look("document.images.length") == 4 * 5
    assert browser.look(TOO_WIDE) == 0
    assert browser.look(FAINT) == []
    assert browser.look(_CROWDED) == []


def test_the_report_prints(browser, report) -> None:
    browser.show(report)
    found = browser.pdf()
    assert found.startswith(b"%PDF") and 4 <= found.count(b"/Type /Page\n") <= 20


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
    assert found == said or (isinstance(said, str) and said in " ".join(browser.complaints()))


def test_a_policy_in_the_report_forbids_all_requests(browser, report, tmp_path) -> None:
    page = tmp_path / "page.html"
    image = "<img src='https://example.invalid/a.png'>"
    page.write_text(report.read_text().replace("</body>", f"{image}</body>"))
    browser.show(page)
    assert any("Content Security Policy" in said for said in browser.complaints())


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
    assert browser.look(TOO_WIDE) == 0 and browser.look(_LOADED)
    assert browser.look(_CROWDED) == []
    text = browser.look("document.body.innerText")
    assert all(name in text for name in _HOSTILE)
    markdown = hostile.with_suffix(".md").read_text()
    assert "<script" not in markdown and "<img" not in markdown
