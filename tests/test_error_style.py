"""Every sentence of an `InputError` follows the style that CONTRIBUTING.md describes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ERRORS = {"InputError", "NamesError", "NotFiniteError"}
SOURCES = ("packages/*/src", "examples/*/src", "benchmarks")
# Reasons that another error's sentence takes in: "'1 +' is not arithmetic: the list is too long".
REASONS = ("arithmetic.py", "trees.py")
# What follows says what to do, or what was expected.
REMEDY = re.compile(r"; |\b(expected|needs?|must|takes?|known are|so that|use|give|choose)\b")


def text_of(node: ast.AST) -> str | None:
    """Return the text of a literal, with `{}` for each inserted value; None for other nodes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (text_of(node.left) or "{}") + (text_of(node.right) or "{}")
    return None


def errors_of(source: str) -> Iterator[tuple[int, str]]:
    """Return the line and the text of every error that is written out in a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            text = text_of(node.args[0])
            if called in ERRORS and text is not None:
                yield node.lineno, text


def fault_of(text: str, *, is_reason: bool = False) -> str | None:
    """Return what is wrong with the sentence of an error, or None."""
    if re.match(r"[A-Z][a-z]*['’]?[a-z]*( |$)", text) and not re.match(r"[A-Z]+('s)? ", text):
        return "begins with a capital letter that is no name's"
    if re.match(r"(A|I) ", text):
        return "begins with a capital letter that is no name's"
    if text.endswith((".", "!", ",", ";", ":", " ")) and not text.endswith(" ..."):
        return "ends with a mark other than a question mark"
    if "\n" in text or "  " in text or text != text.strip():
        return "has line breaks or spaces that do not belong there"
    if re.search(r"[.?!] +[A-Z]", text):
        return "is more than one sentence"
    if re.search(r"\b([Ee]rror:|[Ii]nvalid|[Pp]lease|[Ff]ailed to|[Ii]llegal|[Uu]nable)", text):
        return "uses a word that says nothing"
    if not is_reason and not text.endswith(("{}", "{})")) and not REMEDY.search(text):
        return "does not say what to do or what was expected"
    return None


@pytest.mark.parametrize("pattern", SOURCES)
def test_errors_are_written_in_one_style(pattern: str) -> None:
    files = [path for folder in ROOT.glob(pattern) for path in sorted(folder.rglob("*.py"))]
    found = [
        (path, line, text)
        for path in files
        if "tests" not in path.parts
        for line, text in errors_of(path.read_text(encoding="utf-8"))
    ]
    assert len(found) > 5, "the errors were not found"
    faults = [
        f"{path.relative_to(ROOT)}:{line} {fault}: {text}"
        for path, line, text in found
        if (fault := fault_of(text, is_reason=path.name in REASONS)) is not None
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("the limit is {}; give at least 1", None),
        ("--limit is {}, expected at least 1", None),
        ("CaR has no learned background; use another policy", None),
        ("ENC_LAYERS must be 0", None),
        ("{} cannot be read: {}", None),
        ("The limit is {}; give at least 1", "capital"),
        ("A mask is empty; give another", "capital"),
        ("the limit is {}; give at least 1.", "mark"),
        ("the limit is {}. Give at least 1", "more than one sentence"),
        ("the limit is {};\ngive at least 1", "line breaks"),
        ("invalid limit {}; give at least 1", "says nothing"),
        ("the limit {} is too small", "what to do"),
    ],
)
def test_deviations_are_found(text: str, fault: str | None) -> None:
    found = fault_of(text)
    assert found is None if fault is None else fault in (found or "")
