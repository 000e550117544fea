"""One diagram for each method on a common canvas, drawn from what `structure.py` measured."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

FROZEN, TRAINED, PLAIN = "#3f7fbf", "#d9822b", "#8a8f98"
_KINDS = {"frozen": FROZEN, "trained": TRAINED, "none": PLAIN}
WIDTH = 720
_ROW, _TOP = 66, 84
_MIDDLE = 250
_NARROW, _WIDE = 40.0, 300.0


def draw(structure: Mapping[str, Any], widest: float) -> str:
    """Draw the way from image to label map, one box for a stage, as wide as its share of cost.

    Args:
        structure: of one method.
        widest: GFLOP of the costliest stage of all methods; its box is the widest.
    """
    stages = [stage for stage in structure["stages"] if stage["key"] not in ("text", "rest")]
    text = next(stage for stage in structure["stages"] if stage["key"] == "text")
    height = _TOP + _ROW * len(stages) + 36
    body = [
        f'<text x="12" y="24" font-size="18" font-weight="700">{escape(structure["title"])}</text>',
        _key(12, 44),
        _terminal(_TOP - 14, f"image, {structure['image'][0]} × {structure['image'][1]}"),
    ]
    for index, stage in enumerate(stages):
        body.append(_stage(_TOP + 14 + _ROW * index, stage, widest))
    bottom = _TOP + 14 + _ROW * len(stages)
    body.append(_arrow(bottom - 20, bottom - 4))
    body.append(_terminal(bottom + 8, "label map"))
    body.append(_names(text, structure, stages, widest))
    body.append(_repeats(structure, stages))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(structure["title"])}" fill="currentColor" color="#1b1f24" '
        'font-family="system-ui, sans-serif" font-size="13">'
        "<style>@media (prefers-color-scheme: dark) {svg {color: #e6e8eb}}</style>"
        f"{''.join(body)}</svg>"
    )


def box_width(gflop: float, widest: float) -> float:
    """Return the width of a box: the square root of its cost, within limits, so small ones show."""
    return max(_NARROW, _WIDE * (gflop / widest) ** 0.5) if widest else _NARROW


def cost(stage: Mapping[str, Any]) -> str:
    """Say what a stage costs."""
    operations = stage["gflop"]
    seconds = f"{stage['seconds']:.2f} s"
    return f"{operations:,.1f} GFLOP, {seconds}" if operations >= 0.05 else seconds


def _stage(top: float, stage: Mapping[str, Any], widest: float) -> str:
    width = box_width(stage["gflop"], widest)
    colour = _KINDS[stage["weights"]]
    left = _MIDDLE - width / 2
    lines = textwrap.wrap(stage["detail"], 44)
    more = "".join(
        f'<text x="424" y="{top + 28 + 14 * i:.0f}" font-size="11.5" fill-opacity="0.75">'
        f"{escape(line)}</text>"
        for i, line in enumerate(lines)
    )
    # The title stands beside a box that is too narrow for it.
    return (
        _arrow(top - 20, top - 4)
        + f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="40" rx="6" fill="{colour}"/>'
        + f'<text x="{_MIDDLE}" y="{top + 25}" text-anchor="middle" font-size="12" fill="#fff">'
        + f"{_short(stage, width)}</text>"
        + f'<text x="424" y="{top - 3}" font-weight="600">{escape(stage["title"])}</text>'
        + f'<text x="424" y="{top + 13}" font-size="12">{cost(stage)}</text>'
        + more
    )


def _short(stage: Mapping[str, Any], width: float) -> str:
    return escape(stage["title"]) if width > 7.2 * len(stage["title"]) else ""


def _arrow(y1: float, y2: float) -> str:
    return (
        f'<path d="M{_MIDDLE} {y1} V{y2} m-4 -6 l4 6 l4 -6" fill="none" stroke="currentColor" '
        'stroke-width="1.5"/>'
    )


def _terminal(y: float, text: str) -> str:
    return f'<text x="{_MIDDLE}" y="{y + 4}" text-anchor="middle" font-weight="600">{text}</text>'


def _names(
    text: Mapping[str, Any], structure: Mapping[str, Any], stages: Sequence[Any], widest: float
) -> str:
    """Draw where the names come from, at the left, and to which stages they go."""
    keys = [stage["key"] for stage in stages]
    places = [keys.index(key) for key in structure["names_enter"]]
    y = _TOP + 34 + _ROW * places[0]
    lines = [
        f'<rect x="12" y="{y - 24}" width="76" height="48" rx="6" fill="{FROZEN}"/>'
        f'<text x="50" y="{y - 4}" text-anchor="middle" font-size="12" fill="#fff">names,</text>'
        f'<text x="50" y="{y + 11}" text-anchor="middle" font-size="12" fill="#fff">CLIP text'
        "</text>"
        f'<text x="12" y="{y - 32}" font-size="11" fill-opacity="0.75">'
        f"{text['gflop']:,.0f} GFLOP once</text>"
    ]
    for place in places:
        end = _MIDDLE - box_width(stages[place]["gflop"], widest) / 2 - 2
        target = _TOP + 34 + _ROW * place
        # Down the corridor between the names and the widest box.
        lines.append(
            f'<path d="M88 {y} H94 V{target} H{max(end, 96):.1f} m-5 -4 l5 4 l-5 4" fill="none" '
            'stroke="currentColor" stroke-width="1.5"/>'
        )
    return "".join(lines)


def _repeats(structure: Mapping[str, Any], stages: list[Mapping[str, Any]]) -> str:
    """Draw the way back of a method whose stages run again until no name leaves."""
    keys = [stage["key"] for stage in stages]
    if structure["method"] != "car":
        return ""
    low = _TOP + 34 + _ROW * keys.index("classifier")
    high = _TOP + 34 + _ROW * keys.index("maps")
    return (
        f'<path d="M404 {low} h8 V{high} h-8 m5 -4 l-5 4 l5 4" fill="none" stroke="currentColor" '
        'stroke-width="1.5" stroke-dasharray="4 3"/>'
    )


def _key(x: float, y: float) -> str:
    entries = ((FROZEN, "frozen"), (TRAINED, "trained by the method"), (PLAIN, "no weights"))
    parts, left = [], x
    for colour, label in entries:
        parts.append(
            f'<rect x="{left}" y="{y - 9}" width="12" height="12" rx="2" fill="{colour}"/>'
            f'<text x="{left + 17}" y="{y + 2}" font-size="12">{label}</text>'
        )
        left += 40 + 7 * len(label)
    return "".join(parts)
