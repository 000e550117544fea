"""Files of class names, whose line numbers are label values, so no line may shift unnoticed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from openvocab.errors import InputError
from openvocab.reading.files import read_bytes
from openvocab.reading.json_files import parse_json

_MOST_BYTES = 1 << 24
_NUMBERED = re.compile(r"\s*(\d{1,9})\s*[:=;,\t]\s*(.*)")
_NUMBERED_BY_SPACE = re.compile(r"\s*(\d{1,9}) +(.*)")


class NamesFile(NamedTuple):
    """What a file of names says: name i belongs to the label value i."""

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...] | None


class _Line(NamedTuple):
    """A name with its place in the file, such as "line 3"."""

    place: str
    text: str


def read_names(path: str | Path) -> NamesFile:
    """Read class names from a text file with one on each line, or from a JSON list.

    Names are kept to the letter. Blank lines at the end of a text file are no names. A text file
    may number all its lines (`0: name`), or give synonyms on all of them (`name, synonym`); a
    warning says when a file was understood in this way.

    Raises:
        InputError: the file is missing or holds no list of names, a line is blank, two lines have
            the same name, or only some lines are numbered.
    """
    path = Path(path)
    lines = _numbered_out(path, _lines(path))
    _check(path, lines)
    names = [line.text for line in lines]
    if path.suffix == ".json" or not names or not all("," in name for name in names):
        return NamesFile(tuple(names), None)
    if len(names) == 1:
        raise InputError(f"{path} holds one line with commas; write each name on a line of its own")
    return _with_synonyms(path, lines)


def _lines(path: Path) -> list[_Line]:
    data = read_bytes(path, "names file", most_bytes=_MOST_BYTES)
    try:
        text = data.decode("utf-8-sig")
        names = text.rstrip().splitlines()
        if path.suffix == ".json":
            names = parse_json(text, str(path), "a list")
    except UnicodeDecodeError:  # such as UTF-16, or an image
        raise InputError(
            f"{path} is not a list of names: it is no UTF-8 text; save it as UTF-8"
        ) from None
    except ValueError as error:  # no JSON
        raise InputError(f"{path} is not a list of names: {error}") from None
    if not isinstance(names, list):
        raise InputError(f"{path} holds a {type(names).__name__}; expected a list of names")
    what = "entry" if path.suffix == ".json" else "line"
    return [_Line(f"{what} {number}", name) for number, name in enumerate(names, start=1)]


def _numbered_out(path: Path, lines: Sequence[_Line]) -> Sequence[_Line]:
    """Return the lines without their numbers, in the order of these, if the file numbers them."""
    if not lines or path.suffix == ".json":
        return lines
    matches = [_NUMBERED.fullmatch(line.text) for line in lines]
    if all(match is None for match in matches):
        matches = [_NUMBERED_BY_SPACE.fullmatch(line.text) for line in lines]
        counted = [int(match[1]) - number for number, match in enumerate(matches) if match]
        if len(counted) < len(lines) or set(counted) not in ({0}, {1}):
            return lines  # such as "3 stripes": a name that begins with a number
    for line, match in zip(lines, matches, strict=True):
        if match is None:
            raise InputError(
                f"{line.place} of {path} is {line.text!r}, but other lines are numbered like "
                "'0: name'; number all of them, or none"
            )
    numbers = [int(match[1]) for match in matches if match]
    first = min(numbers)
    ordered = sorted(zip(numbers, lines, matches, strict=True), key=lambda one: one[0])
    for value, (number, line, _) in enumerate(ordered, start=first):
        if number != value or first > 1:
            raise InputError(
                f"{line.place} of {path} has the number {number} where {value if first < 2 else 0} "
                "is expected; number the names 0, 1, 2 ... without gaps, as the label maps do"
            )
    more = "" if first == 0 else "; label maps that count from 1 too need --label-offset -1"
    warnings.warn(
        f"the lines of {path} are numbered from {first} to {max(numbers)}, and the numbers are no "
        f"part of the names{more}",
        stacklevel=4,
    )
    return [_Line(line.place, match[2]) for _, line, match in ordered if match]


def _check(path: Path, lines: Sequence[_Line]) -> None:
    seen: dict[str, str] = {}
    for place, name in lines:
        if not isinstance(name, str) or not name.strip():
            raise InputError(
                f"{place} of {path}: class name {name!r} is not a word; the place of a name is its "
                "label value, so write the name that belongs there"
            )
        same = seen.setdefault(same_word(name), place)
        if same != place:
            raise InputError(
                f"{place} of {path}: class name {name!r} is already in {same}; CLIP cannot tell "
                "the two apart, so give each label value a name of its own"
            )


def _with_synonyms(path: Path, lines: Sequence[_Line]) -> NamesFile:
    parts = [[part.strip() for part in line.text.split(",")] for line in lines]
    pairs = zip(lines, parts, strict=True)
    _check(path, [_Line(line.place, word) for line, words in pairs for word in words])
    warnings.warn(
        f"every line of {path} holds commas: the first word is the name and the others are "
        f"synonyms, such as {parts[0][0]!r} with {', '.join(map(repr, parts[0][1:]))}",
        stacklevel=4,
    )
    return NamesFile(tuple(words[0] for words in parts), tuple(tuple(words[1:]) for words in parts))


def same_word(name: str) -> str:
    """Return a name as CLIP's tokenizer sees it, without case and repeated white space."""
    return " ".join(name.lower().split())
