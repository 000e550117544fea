"""One diagram for each method on a common canvas, drawn from what `structure` measured."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape

from benchmarks.forms import StageCost, Structure
from benchmarks.reporting import charts
from benchmarks.reporting.structure_table import at_most, total_gflop

FROZEN, TRAINED, PLAIN = (47, 108, 171), (168, 90, 10), (91, 98, 112)  # white is read on each
_KINDS = {"frozen": FROZEN, "trained": TRAINED, "none": PLAIN}
WIDTH = 760
_ROW, _TOP = 74, 88
_MIDDLE = 250
_NARROW, _WIDE = 46.0, 300.0
_LANES, _LANE = 410, 12  # where the ways past boxes begin, and how far they are apart
_WORDS = 472


def draw_diagram(structure: Structure, widest: float) -> str:
    """Draw the stages from the image to the label map; a box is the wider the more its stage costs.

    Args:
        structure: The measured structure of one method.
        widest: GFLOP of the costliest stage of all methods, which gets the widest box.

    Returns:
        The diagram as SVG.
    """
    stages = [stage for stage in structure["stages"] if stage["key"] not in ("text", "rest")]
    text = next((stage for stage in structure["stages"] if stage["key"] == "text"), None)
    body = [
        f'<text x="12" y="24" font-size="18" font-weight="700">{escape(structure["title"])}</text>',
        _key(12, 46),
        _terminal(_TOP - 14, f"image, {structure['image'][0]} × {structure['image'][1]}"),
    ]
    body += [_stage(index, stage, structure, widest) for index, stage in enumerate(stages)]
    bottom = _TOP + 14 + _ROW * len(stages)
    body.append(_arrow(bottom - 28, bottom - 6))
    body.append(_terminal(bottom + 8, "label map"))
    if text is not None and structure["names_enter"]:
        body.append(_names(text, structure, stages, widest))
    body.append(_ways(structure, stages, widest))
    return charts.svg("".join(body), WIDTH, bottom + 22, structure["title"])


def box_width(gflop: float, widest: float) -> float:
    """Return the width of a box, proportional to the square root of its cost, but never tiny."""
    return max(_NARROW, _WIDE * (gflop / widest) ** 0.5) if widest else _NARROW


def cost_sentence(stage: StageCost) -> str:
    """Say what a stage costs."""
    operations = stage["gflop"]
    seconds = f"{stage['seconds']:.2f} s"
    return f"{operations:,.1f} GFLOP, {seconds}" if operations >= 0.05 else seconds


def share_sentence(stage: StageCost, structure: Structure) -> str:
    """Say how much of an image's operations a stage takes."""
    percent = 100 * stage["gflop"] / max(total_gflop(structure), 1e-9)
    return "–" if stage["gflop"] < 0.05 else "< 1 %" if percent < 1 else f"{percent:.0f} %"


def _top(index: int) -> float:
    return _TOP + 14 + _ROW * index


def _stage(index: int, stage: StageCost, structure: Structure, widest: float) -> str:
    width, top = box_width(stage["gflop"], widest), _top(index)
    ground = f"rgb{_KINDS[stage['weights']]}"
    lines = textwrap.wrap(stage["detail"], 44)
    if (most := at_most(structure, stage)) is not None:
        lines.append(f"{structure['pictures_at_most']} crops: {most:,.0f} GFLOP")
    more = "".join(
        f'<text x="{_WORDS}" y="{top + 29 + 14 * i:.0f}" font-size="11.5" fill-opacity="0.8">'
        f"{escape(line)}</text>"
        for i, line in enumerate(lines)
    )
    return (
        _arrow(top - (28 if index else 10), top - 4)
        + f'<g data-on="{ground}"><rect x="{_MIDDLE - width / 2:.1f}" y="{top}" '
        f'width="{width:.1f}" height="40" rx="6" fill="{ground}"/>'
        f'<text x="{_MIDDLE}" y="{top + 25}" text-anchor="middle" font-size="12" fill="#fff">'
        f"{escape(share_sentence(stage, structure))}</text></g>"
        f'<text x="{_WORDS}" y="{top - 2}" font-weight="600">{escape(stage["title"])}</text>'
        f'<text x="{_WORDS}" y="{top + 14}" font-size="12">{cost_sentence(stage)}</text>' + more
    )


def _arrow(y1: float, y2: float) -> str:
    return _path(f"M{_MIDDLE} {y1} V{y2} m-4 -6 l4 6 l4 -6")


def _path(commands: str, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<path d="{commands}" fill="none" stroke="currentColor" stroke-width="1.5"{dashes}/>'


def _terminal(y: float, text: str) -> str:
    return f'<text x="{_MIDDLE}" y="{y + 4}" text-anchor="middle" font-weight="600">{text}</text>'


def _names(
    text: StageCost, structure: Structure, stages: Sequence[StageCost], widest: float
) -> str:
    """Draw the names at the left, with arrows to the stages that use them."""
    keys = [stage["key"] for stage in stages]
    places = [keys.index(key) for key in structure["names_enter"]]
    y, ground = _top(places[0]) + 20, f"rgb{FROZEN}"
    lines = [
        f'<g data-on="{ground}"><rect x="12" y="{y - 24}" width="76" height="48" rx="6" '
        f'fill="{ground}"/>'
        f'<text x="50" y="{y - 4}" text-anchor="middle" font-size="12" fill="#fff">names,</text>'
        f'<text x="50" y="{y + 11}" text-anchor="middle" font-size="12" fill="#fff">CLIP text'
        "</text></g>"
        f'<text x="12" y="{y - 32}" font-size="11.5" fill-opacity="0.8">'
        f"{text['gflop']:,.0f} GFLOP once</text>"
    ]
    for place in places:
        end = _MIDDLE - box_width(stages[place]["gflop"], widest) / 2 - 2
        # Down the corridor between the names and the widest box.
        lines.append(
            _path(f"M88 {y} H94 V{_top(place) + 20} H{max(end, 96):.1f} m-5 -4 l5 4 l-5 4")
        )
    return "".join(lines)


def _ways(structure: Structure, stages: Sequence[StageCost], widest: float) -> str:
    """Draw at the right the outputs that skip the next boxes, and dashed those that go back up."""
    keys = ["image", *(stage["key"] for stage in stages)]
    drawn = []
    for lane, (start, end) in enumerate(structure["ways"]):
        first, last = keys.index(start) - 1, keys.index(end) - 1
        # A line leaves a box near its bottom and enters one near its top, so both ends are visible.
        leave, enter = _TOP - 14 if first < 0 else _top(first) + 30, _top(last) + 10
        edge = _MIDDLE + box_width(stages[last]["gflop"], widest) / 2 + 3
        begin = _MIDDLE + (70 if first < 0 else box_width(stages[first]["gflop"], widest) / 2 + 1)
        right = _LANES + _LANE * lane
        drawn.append(_path(f"M{begin:.1f} {leave} H{right} V{enter} H{edge:.1f}", last < first))
        drawn.append(_path(f"M{edge + 5:.1f} {enter - 4} l-5 4 l5 4"))
    return "".join(drawn)


def _key(x: float, y: float) -> str:
    entries = ((FROZEN, "frozen"), (TRAINED, "trained by the method"), (PLAIN, "no weights"))
    parts, left = [], x
    for color, label in entries:
        parts.append(
            f'<rect x="{left}" y="{y - 9}" width="12" height="12" rx="2" fill="rgb{color}"/>'
            f'<text x="{left + 17}" y="{y + 2}" font-size="12">{label}</text>'
        )
        left += 40 + 7 * len(label)
    parts.append(f'<text x="{left}" y="{y + 2}" font-size="12">%: of the image’s operations</text>')
    return "".join(parts)
