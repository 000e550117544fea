"""Lettering for figures: DejaVu Sans, and the fonts of the system for other scripts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from fontTools.ttLib import TTFont, TTLibError
from PIL import ImageFont

MISSING = "□"  # stands for a character that no font here can draw
_ELLIPSIS = "…"
FOLDER = Path(__file__).parent / "dejavu"  # DejaVu Sans, with its licence
_REGULAR, _BOLD = str(FOLDER / "DejaVuSans.ttf"), str(FOLDER / "DejaVuSans-Bold.ttf")
_SUFFIXES = {".ttf", ".otf", ".ttc"}
# Where Linux, macOS and Windows keep their fonts; "~" is the home of the user.
_SYSTEM_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    r"C:\Windows\Fonts",
    r"~\AppData\Local\Microsoft\Windows\Fonts",
)


def font_for(text: str, size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return a font that can draw the text: DejaVu Sans, or the first system font with its signs.

    If there is none it is DejaVu Sans, for the text that `drawable` returns.
    """
    ours = _BOLD if bold else _REGULAR
    path = ours if _covers(ours, text) else _system_font(_signs(text)) or ours
    return _load(path, size)


def drawable(text: str) -> str:
    """Return the text as one line, with a box for each character that no font here can draw."""
    line = " ".join(text.split())
    if _covers(_REGULAR, line) or _system_font(_signs(line)) is not None:
        return line
    known = _characters(_REGULAR)
    return "".join(sign if ord(sign) in known else MISSING for sign in line)


def shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Cut a line at its end, with an ellipsis, until it is at most `width` pixels long."""
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)  # the longest prefix that fits, by bisection
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle].rstrip() + _ELLIPSIS) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + _ELLIPSIS


@cache
def _load(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _signs(text: Iterable[str]) -> frozenset[int]:
    return frozenset(ord(sign) for sign in text if not sign.isspace())


def _covers(path: str, text: str) -> bool:
    return _signs(text) <= _characters(path)


@cache
def _characters(path: str) -> frozenset[int]:
    with TTFont(path, fontNumber=0, lazy=True) as font:
        return frozenset(font.getBestCmap() or ())


@cache
def _system_font(signs: frozenset[int]) -> str | None:
    """Look through the fonts of the system for one with all the signs."""
    for path in _system_fonts():
        if signs <= _characters(path):
            return path
    return None


@cache
def _system_fonts() -> tuple[str, ...]:
    """Return the scalable fonts of the system, upright regular sans serifs first."""
    found = {
        str(path)
        for folder in map(os.path.expanduser, _SYSTEM_FOLDERS)
        for path in Path(folder).rglob("*")
        if path.suffix.lower() in _SUFFIXES
    }
    usable = []
    for path in found:
        try:
            _characters(path)
        except (TTLibError, OSError, AssertionError, KeyError, ValueError):  # a damaged file
            continue
        usable.append(path)
    return tuple(sorted(usable, key=_plainness))


def _plainness(path: str) -> tuple[bool, bool, str]:
    name = Path(path).stem.lower()
    special = any(word in name for word in ("bold", "italic", "oblique", "mono", "light", "black"))
    return special, "sans" not in name, name
