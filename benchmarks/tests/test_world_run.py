"""The embedded world, scored by networks that know nothing: every number has its place."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import run_all
from report import read_page

from openvocab.results import Result
from openvocab.world import seen_labels

SCENES = 4


@pytest.fixture(scope="module")
def finished(checkpoints, tmp_path_factory) -> Path:
    """A run on the first scenes of the world."""
    output = tmp_path_factory.mktemp("world") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENVOCAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        weights = [f"{method}={path}" for method, path in checkpoints.items()]
        words = ["--weights", *weights, "--datasets", "world", "--limit", str(SCENES)]
        assert run_all.main([*words, "--no-structure", "--output", str(output)]) == 0
    return output


@pytest.fixture
def comparison(finished) -> dict:
    return json.loads((finished / "results" / "world--comparison.json").read_text())


def load(finished: Path, *parts: str) -> Result:
    return Result.load(finished / "results" / f"{'--'.join(('world', *parts))}.json")


def test_seen_names_are_those_of_the_world(comparison) -> None:
    assert comparison["seen"]["ids"] == list(seen_labels()) and comparison["seen"]["classes"] == 40
    for scores in comparison["scores"].values():
        assert scores["harmonic"] <= max(scores["seen"], scores["unseen"]) + 1e-9


def test_every_diagnosis_is_there_for_every_method(finished, comparison) -> None:
    told = ["true-masks", "true-names", "known-presence"]
    assert {m: list(found) for m, found in comparison["diagnoses"].items()} == {
        "san": told, "ovseg": told, "car": [*told, "one-step"],
    }  # fmt: skip
    for method, found in comparison["diagnoses"].items():
        for part, entry in found.items():
            result = load(finished, method, part)
            assert entry["all"] == pytest.approx(result.scores().miou) and entry["images"] == SCENES
            assert result.card.settings.get("told") == (part if part != "one-step" else None)
    assert load(finished, "car", "one-step").card.settings["max_steps"] == 1


def test_true_names_lose_only_what_masks_lose(finished) -> None:
    for method in ("san", "ovseg", "car"):
        itself, told = load(finished, method), load(finished, method, "true-names")
        assert told.scores().miou >= itself.scores().miou
        # No name that is nowhere in the truth is ever predicted.
        absent = told.matrix.sum(axis=1) == 0
        assert not told.matrix[:, :-1][:, absent].any()


def test_only_true_names_are_predicted_where_they_are_known(finished) -> None:
    matrix = load(finished, "ovseg", "known-presence").matrix
    absent = matrix.sum(axis=1) == 0
    assert not matrix[:, :-1][:, absent].any() and matrix.any()


def test_clip_is_tried_on_crops_of_every_name(comparison) -> None:
    crops = comparison["crops"]
    assert crops["crops_of_each_name"] == 20 and crops["grounds"].keys() == {"stuff", "flat"}
    assert all(0 <= crops[part] <= 100 for part in ("seen", "unseen"))


def test_the_report_ranks_nothing_on_photographs(finished, comparison) -> None:
    page, text = ((finished / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "<strong>These numbers rank nothing on photographs.</strong>" in page
    assert "**These numbers rank nothing on photographs.**" in text
    assert "published" not in text and ">published<" not in page
    for scores in comparison["scores"].values():
        assert f"{scores['unseen']:.2f}" in page and f"{scores['unseen']:.2f}" in text


def test_floors_are_not_decided_on_a_handful_of_scenes(finished) -> None:
    (found,) = read_page(finished)["sets"]
    assert len(found["floors"]) == 11 and {f["holds"] for f in found["floors"]} == {None}
    assert all(floor["reached"] is not None for floor in found["floors"])


def test_figures_are_there_as_svg_and_png(finished) -> None:
    names = {path.stem for path in (finished / "figures").glob("*.svg")}
    assert {"world-accuracy-seconds", "world-accuracy-memory", "world-classes-san-car"} <= names
    for name in names:
        assert (finished / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def chromium(tmp_path, *words: str) -> subprocess.CompletedProcess[str]:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium is installed")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0", *words,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


_PROBE = """<script>addEventListener("load", () => { document.title =
  ["probe", innerWidth, document.documentElement.scrollWidth,
   [...document.images].every(i => i.naturalWidth > 0)].join(" ") })</script></body>"""


@pytest.mark.parametrize("width", [600, 1200])
def test_the_page_fits_a_browser_and_has_no_errors(finished, tmp_path, width) -> None:
    page = tmp_path / "page.html"
    page.write_text((finished / "report.html").read_text().replace("</body>", _PROBE))
    done = chromium(tmp_path, f"--window-size={width},900", "--dump-dom", page.as_uri())
    assert done.returncode == 0 and ":CONSOLE" not in done.stderr
    title = done.stdout.partition("<title>probe ")[2].partition("</title>")[0]
    inner, scroll, loaded = title.split()
    assert int(scroll) <= int(inner) and loaded == "true"


def test_the_page_prints(finished, tmp_path) -> None:
    pdf = tmp_path / "report.pdf"
    done = chromium(
        tmp_path, f"--print-to-pdf={pdf}", (finished / "report.html").resolve().as_uri()
    )
    assert done.returncode == 0 and ":CONSOLE" not in done.stderr
    assert pdf.read_bytes().startswith(b"%PDF") and pdf.read_bytes().count(b"/Type /Page\n") >= 2
