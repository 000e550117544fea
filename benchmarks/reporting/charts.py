"""Charts as SVG, made from numbers alone; colors follow the reader's light or dark scheme."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from types import MappingProxyType
from typing import NamedTuple

from openvocab.methods import colors_of, title_of

_ANOTHER = ("#b45309", "#fbbf24")  # of the second of two methods that share their colors
_INK = ("#1b1f24", "#e6e8eb")
_WIDTH, _HEIGHT = 440, 280  # narrow, so that it can be read on a phone
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 66, 20, 48

Point = tuple[float, float]


def draw_curves(series: Mapping[str, Sequence[Point]], x_title: str, y_title: str) -> str:
    """Draw the points of each method, joined, on two logarithmic axes.

    Args:
        series: The points (x, y) of each method, all greater than 0.
        x_title: The title of the horizontal axis.
        y_title: The title of the vertical axis.
    """
    return _draw(series, x_title, y_title, _LOGARITHMIC, _LOGARITHMIC)


def points(
    series: Mapping[str, Sequence[Point]],
    x_title: str,
    y_title: str,
    intervals: Mapping[str, Sequence[Point]] = MappingProxyType({}),
) -> str:
    """Draw the points (x, y) of each method; the x axis is logarithmic, the y axis begins at 0.

    Args:
        series: The points of each method.
        x_title: The title of the horizontal axis.
        y_title: The title of the vertical axis.
        intervals: The lower and the upper end of the interval of each point, by method.
    """
    return _draw(series, x_title, y_title, _LOGARITHMIC, _FROM_ZERO, intervals=intervals)


def percentages(
    series: Mapping[str, Sequence[Point]],
    x_title: str,
    y_title: str,
    *,
    diagonal: bool = False,
    intervals: Mapping[str, Sequence[Point]] = MappingProxyType({}),
) -> str:
    """Draw the points of each method, joined; x is in percent from 0 to 100.

    Args:
        series: The points (x, y) of each method.
        x_title: The title of the horizontal axis.
        y_title: The title of the vertical axis.
        diagonal: Let y go from 0 to 100, too, and draw where both are equal, dashed.
        intervals: The lower and the upper end of the interval of each point, by method.
    """
    y_axis = _PERCENT if diagonal else _FROM_ZERO
    return _draw(series, x_title, y_title, _PERCENT, y_axis, diagonal, intervals)


class _Axis(NamedTuple):
    """How an axis gets its span from the values, its ticks from the span, and its scale."""

    span: Callable[[Sequence[float]], Point]
    ticks: Callable[[Point], list[float]]
    scale: Callable[[float], float]


def _draw(
    series: Mapping[str, Sequence[Point]],
    x_title: str,
    y_title: str,
    x_axis: _Axis,
    y_axis: _Axis,
    diagonal: bool = False,
    intervals: Mapping[str, Sequence[Point]] = MappingProxyType({}),
) -> str:
    """Draw the points of each method, joined, over two axes."""
    points = [point for values in series.values() for point in values]
    if not points:
        return ""
    highest = [high for ends in intervals.values() for _, high in ends]
    x_range = x_axis.span([x for x, _ in points])
    y_range = y_axis.span([y for _, y in points] + highest)
    right = max(_RIGHT, 14 + max(map(_text_width, map(title_of, series))))
    x = _scale(x_range, _LEFT, _WIDTH - right, x_axis.scale)
    y = _scale(y_range, _HEIGHT - _BOTTOM, _TOP + 14, y_axis.scale)
    body = [_text(_LEFT, _TOP - 4, y_title), _text((_LEFT + _WIDTH - right) / 2, _HEIGHT - 8,
            x_title, "middle")]  # fmt: skip
    body += [
        _grid_line(_LEFT, y(v), _WIDTH - right, y(v), _label(v), "y") for v in y_axis.ticks(y_range)
    ]
    body += [
        _grid_line(x(v), _TOP + 14, x(v), _HEIGHT - _BOTTOM, _label(v), "x")
        for v in x_axis.ticks(x_range)
    ]
    if diagonal:
        body.append(
            f'<line x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(100):.1f}" y2="{y(100):.1f}" '
            'stroke="currentColor" stroke-opacity="0.5" stroke-dasharray="4 3"/>'
        )
    ends = {m: (x(max(values)[0]), y(max(values)[1])) for m, values in series.items() if values}
    labels = _placed(ends)
    for number, (method, values) in enumerate(series.items()):
        placed = [(x(a), y(b)) for a, b in sorted(values)]
        if not placed:
            continue
        beside = 3 * (number - (len(series) - 1) / 2)  # so that no interval hides another
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in placed)
        marks = [
            f'<polyline points="{path}" fill="none" stroke="currentColor" stroke-width="2.5"/>'
        ]
        marks = marks if len(placed) > 1 else []
        marks += [
            f'<line x1="{a + beside:.1f}" x2="{a + beside:.1f}" y1="{y(low):.1f}" '
            f'y2="{y(high):.1f}" stroke="currentColor" stroke-opacity="0.45" stroke-width="2"/>'
            for (a, _), (low, high) in zip(placed, intervals.get(method, ()), strict=False)
        ]
        marks += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4"/>' for a, b in placed]
        left, height = labels[method]
        marks.append(
            f'<text x="{left:.1f}" y="{height:.1f}" font-weight="700">'
            f"{escape(title_of(method))}</text>"
        )
        body.append(f'<g class="{method}" fill="currentColor">{"".join(marks)}</g>')
    return svg("".join(body), _WIDTH, _HEIGHT, f"{y_title} against {x_title}", tuple(series))


def _placed(ends: Mapping[str, Point]) -> dict[str, Point]:
    """Place the title of each method at the right of its last point, as near as others allow."""
    found: dict[str, Point] = {}
    for method, (x, y) in sorted(ends.items(), key=lambda entry: entry[1][1]):
        left, wide = x + 9, _text_width(title_of(method))
        others = [(a, b, _text_width(title_of(m))) for m, (a, b) in found.items()]
        others += [(a - 5, b + 4, 10) for m, (a, b) in ends.items() if m != method]
        heights = sorted(
            (y + 4 + 5 * step for step in range(-30, 31)), key=lambda height: abs(height - y - 4)
        )
        inside = [h for h in heights if _TOP + 12 <= h <= _HEIGHT - _BOTTOM] or heights
        free = (
            height
            for height in inside
            if not any(
                abs(height - b) < 15 and left < a + width and a < left + wide
                for a, b, width in others
            )
        )
        found[method] = (left, next(free, y + 4))
    return found


def pairs(
    rows: Sequence[tuple[str, float, float] | None],
    first: str,
    second: str,
    title: str,
    titles: Mapping[str, str] | None = None,
) -> str:
    """Draw two values of 0 to 100 for each name, joined, and their difference.

    Args:
        rows: Tuples (name, value of the first method, value of the second), from top to bottom;
            None where rows were left out.
        first: The key of the first method.
        second: The key of the second method.
        title: A description of the chart for screen readers.
        titles: The titles of methods that are not installed.
    """
    if not rows:
        return ""
    shown = {m: _shortened((titles or {}).get(m, title_of(m)), 20) for m in (first, second)}
    left, right, top, step = 150, _WIDTH - 54, 44, 20
    x, bottom = _scale((0, 100), left, right, float), top + step * len(rows)
    body = [_text(x(v), bottom + 18, f"{v}", "middle") for v in range(0, 101, 20)]
    widths = [24 + _text_width(shown[method]) for method in (first, second)]
    beside = sum(widths) < right - left - 20  # else one below the other
    heads = ((left + 6, 14 if beside else 10),
             (left + 6 + max(80, widths[0]), 14) if beside else (left + 6, 28))  # fmt: skip
    body += [
        f'<line x1="{x(v):.1f}" x2="{x(v):.1f}" y1="{top - 8}" y2="{bottom}" '
        'stroke="currentColor" stroke-opacity="0.15"/>'
        for v in range(0, 101, 20)
    ]
    body += [
        f'<g class="{method}" fill="currentColor"><circle cx="{place}" cy="{y}" r="5"/>'
        f'<text x="{place + 11}" y="{y + 5}" font-weight="700">{escape(shown[method])}</text></g>'
        for method, (place, y) in zip((first, second), heads, strict=True)
    ]
    body += [_text(_WIDTH - 2, 19, "difference", "end"), _text(right, bottom + 38, "IoU, %", "end")]
    for index, row in enumerate(rows):
        y = top + step * index + 6
        if row is None:
            body.append(_text(left - 10, y + 4, "…", "end"))
            continue
        name, a, b = row
        body.append(_text(left - 10, y + 4, _shortened(name, 17), "end"))
        body.append(_text(_WIDTH - 2, y + 4, f"{b - a:+.1f}", "end"))
        body.append(
            f'<line x1="{x(a):.1f}" x2="{x(b):.1f}" y1="{y}" y2="{y}" stroke="currentColor" '
            'stroke-opacity="0.35" stroke-width="3"/>'
        )
        body += [
            f'<circle class="{method}" cx="{x(v):.1f}" cy="{y}" r="5" fill="currentColor"/>'
            for method, v in ((first, a), (second, b))
        ]
    return svg("".join(body), _WIDTH, bottom + 46, title, (first, second))


def ticks(span: Point) -> list[float]:
    """Return round numbers within a span: 1, 2 and 5 times powers of ten."""
    low, high = span
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**p for p in powers for m in (1, 2, 5)]
    inside = [value for value in found if low <= value * 1.0001 and value <= high * 1.0001]
    while len(inside) > 5:
        inside = inside[::2] if len(inside) < 12 else inside[::3]
    return inside


def even_ticks(span: Point) -> list[float]:
    """Return at most seven round numbers with even gaps within a span that starts at 0."""
    power = 10.0 ** math.floor(math.log10(span[1]))
    step = next(s for s in (power / 5, power / 2, power, 2 * power) if span[1] / s < 7)
    return [step * index for index in range(math.floor(span[1] / step) + 1)]


def _decades(values: Sequence[float]) -> Point:
    low, high = min(values), max(values)
    return low / 1.4, high * 1.4


def _from_zero(values: Sequence[float]) -> Point:
    return 0.0, 1.15 * max(*values, 1.0)


def _hundred(_: Sequence[float] | Point) -> Point:
    return 0.0, 100.0


_LOGARITHMIC = _Axis(_decades, ticks, math.log)
_FROM_ZERO = _Axis(_from_zero, even_ticks, float)
_PERCENT = _Axis(_hundred, lambda _: [0.0, 20.0, 40.0, 60.0, 80.0, 100.0], float)


def _scale(
    span: Point, start: float, end: float, transform: Callable[[float], float]
) -> Callable[[float], float]:
    low, high = transform(span[0]), transform(span[1])
    return lambda value: start + (transform(value) - low) / (high - low) * (end - start)


def _label(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 and value == round(value) else f"{value:g}"


def _text_width(text: str) -> int:
    """Return an upper estimate of the width of a bold text in pixels."""
    return 9 * len(text)


def _shortened(text: str, most: int) -> str:
    """Return a text without control characters, cut to a length at most."""
    clean = "".join(c for c in text if c.isprintable())
    return clean if len(clean) <= most else clean[: most - 1] + "…"


def _grid_line(x1: float, y1: float, x2: float, y2: float, label: str, axis: str) -> str:
    text = (
        _text(x1 - 8, y1 + 4, label, "end") if axis == "y" else _text(x1, y2 + 18, label, "middle")
    )
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="currentColor" '
        f'stroke-opacity="0.15"/>{text}'
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def svg(body: str, width: float, height: float, title: str, methods: Sequence[str] = ()) -> str:
    """Return a whole figure, in ink that suits a light or a dark ground.

    Args:
        body: The elements of the figure; an element takes the color of the method that is its
            class.
        width: The width in pixels.
        height: The height in pixels.
        title: A description of the figure for screen readers.
        methods: The keys of the methods whose colors are used.
    """
    rules, colors = {"svg": _INK}, list(dict.fromkeys(map(colors_of, methods)))
    for place, method in enumerate(methods):  # those that are not installed share their colors
        rules[f".{method}"] = colors[place] if place < len(colors) else _ANOTHER
    light, dark = (
        "".join(f"{name}{{color:{pair[i]}}}" for name, pair in rules.items()) for i in (0, 1)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(title)}" color="{_INK[0]}" fill="currentColor" '
        'font-family="system-ui, sans-serif" font-size="13">'
        f"<title>{escape(title)}</title>"
        f"<style>{light}@media screen and (prefers-color-scheme:dark){{{dark}}}</style>{body}</svg>"
    )
