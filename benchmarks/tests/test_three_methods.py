"""The pages say what the JSON beside them says."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from benchmarks.reporting import figures, three_methods
from benchmarks.reporting.three_methods import DATA, DOCS, PAGES

from openvocab.cli import run


@pytest.fixture
def structures():
    return json.loads((DOCS / DATA).read_text("utf-8"))


@pytest.mark.parametrize("name", PAGES)
def test_text_and_json_agree(structures, name) -> None:
    text = (DOCS / name).read_text("utf-8")
    assert text == three_methods.pages(structures)[name]
    assert f"{structures['san']['parameters']['trained'] / 1e6:.1f}" in text
    for figure in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (DOCS / figure).is_file()


def test_figures_and_json_agree(structures) -> None:
    for method, svg in figures.diagrams(structures).items():
        assert (DOCS / "figures" / f"{method}.svg").read_text("utf-8") == svg
        assert len(ElementTree.fromstring(svg).findall(".//{*}rect")) >= len(
            structures[method]["stages"]
        )


def test_both_languages_quote_the_same_numbers() -> None:
    found = [sorted(re.findall(r"\d[\d,.]*\d", (DOCS / name).read_text())) for name in PAGES]
    assert found[0] == found[1]


def test_a_folder_without_results_is_one_sentence(tmp_path, capsys) -> None:
    assert run(three_methods.main, [str(tmp_path)]) == 2
    assert "run_all.py first" in capsys.readouterr().err
