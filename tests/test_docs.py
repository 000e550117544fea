"""The documentation builds without a warning, its notebook runs, and its examples are true."""

from __future__ import annotations

import doctest
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
WITH_EXAMPLES = sorted(
    path
    for path in (ROOT / "packages").glob("*/src/**/*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    pages = [page.read_text("utf-8") for page in tmp_path.rglob("index.html")]
    assert len(pages) > 10
    assert any("Segment one image" in page for page in pages)  # from a docstring
    assert not any("fonts.googleapis" in page for page in pages)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_notebook_runs(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, 4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    client.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    shown = [
        kind
        for cell in notebook.cells
        for out in cell.get("outputs", ())
        for kind in out.get("data", ())
    ]
    assert "image/png" in shown


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts[3:]
    return ".".join(parts).removesuffix(".__init__")


def test_there_are_examples() -> None:
    assert len(WITH_EXAMPLES) >= 8


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=module_of)
def test_examples_in_docstrings_are_true(path: Path) -> None:
    found = doctest.testmod(
        importlib.import_module(module_of(path)), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert found.attempted > 0 and found.failed == 0
