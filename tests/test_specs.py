"""Every `SPEC ...` in the sources names a section of docs/specs that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPECS = {path.stem: path.read_text("utf-8") for path in (ROOT / "docs" / "specs").glob("*.md")}
_NUMBERS = r"\d+b?(?:\.\d+)*(?:-\d+)?"
_REFERENCE = re.compile(
    rf"SPEC (\w+)((?:\s+{_NUMBERS})(?:(?:,\s+|\s+and\s+|,\s+and\s+|\s+to\s+){_NUMBERS})*)?"
)


def sources() -> list[Path]:
    found = [
        path
        for folder in ("packages", "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".json"} and "golden" not in path.parts
    ]
    assert len(found) > 200
    return found


def references() -> list[tuple[str, str, str]]:
    """Return (file, specification, number) for every reference; the number may be empty."""
    found = []
    for path in sources():
        text = re.sub(r"\n\s*#?\s*", " ", path.read_text("utf-8"))
        for name, numbers in _REFERENCE.findall(text):
            if name.isupper() or "SPEC" + name in text:
                continue  # a constant of Python
            for number in re.findall(_NUMBERS, numbers) or [""]:
                found.append((str(path.relative_to(ROOT)), name, number))
    return found


def exists(name: str, number: str) -> bool:
    """Whether a section has this number: a heading, or a numbered item below one."""
    text = SPECS[name]
    if not number:
        return True
    section, _, item = number.partition(".")
    if re.search(rf"^#+ {re.escape(number.split('-')[0])}\.?\s", text, re.MULTILINE):
        return True
    bodies = re.split(r"^## ", text, flags=re.MULTILINE)
    body = next((b for b in bodies if re.match(rf"{section}\.\s", b)), None)
    if body is None or not item:
        return body is not None
    *headings, last = item.partition("-")[0].split(".")
    if headings:  # 16.2.3 is item 3 below the heading 16.2
        body = body.partition(f"### {section}.{'.'.join(headings)} ")[2].partition("\n### ")[0]
    start = rf"(?:^\s*|\s\s)(?:\*\s+)?\**(?:{section}\.)?{last}[.)]?\**\s"  # also within a line
    return bool(re.search(start, body, re.MULTILINE))


def test_there_are_references() -> None:
    assert {name for _, name, _ in references()} >= {"san", "ovseg", "car", "world"}
    assert len(references()) > 90


@pytest.mark.parametrize("name", sorted({name for _, name, _ in references()}))
def test_every_reference_resolves(name: str) -> None:
    assert name in SPECS, [path for path, other, _ in references() if other == name]
    lost = {(path, number) for path, other, number in references() if other == name}
    lost = {(path, number) for path, number in lost if not exists(name, number)}
    assert not lost, sorted(lost)


def test_a_wrong_reference_is_found() -> None:
    assert not exists("san", "99") and not exists("ovseg", "3.9") and exists("ovseg", "3.4")
