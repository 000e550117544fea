"""Charts as SVG, made from numbers alone; colours follow the page's light or dark scheme."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

COLOURS = {"san": "#2563eb", "ovseg": "#c2570c", "car": "#0f8a5f"}
TITLES = {"san": "SAN", "ovseg": "OVSeg", "car": "CaR"}
_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 96, 20, 48

Point = tuple[float, float]


def curves(series: Mapping[str, Sequence[Point]], x_title: str, y_title: str) -> str:
    """Draw the points of each method, joined, on two logarithmic axes.

    Args:
        series: (x, y) by method, all greater than 0.
        x_title: below the chart.
        y_title: above it.
    """
    return _draw(series, x_title, y_title, _decades, ticks, math.log)


def points(series: Mapping[str, Sequence[Point]], x_title: str, y_title: str) -> str:
    """Draw points by method: (x, y) on a logarithmic axis and one from 0 on."""
    return _draw(series, x_title, y_title, _from_zero, even_ticks, float)


def _draw(
    series: Mapping[str, Sequence[Point]],
    x_title: str,
    y_title: str,
    y_span: Callable[[Sequence[float]], Point],
    y_ticks: Callable[[Point], list[float]],
    y_scale: Callable[[float], float],
) -> str:
    """Draw the points of each method, joined, over a logarithmic axis."""
    points = [point for values in series.values() for point in values]
    if not points:
        return ""
    x_range, y_range = _decades([x for x, _ in points]), y_span([y for _, y in points])
    x = _scale(x_range, _LEFT, _WIDTH - _RIGHT, math.log)
    y = _scale(y_range, _HEIGHT - _BOTTOM, _TOP + 14, y_scale)
    body = [_text(_LEFT, _TOP - 4, y_title), _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8,
            x_title, "middle")]  # fmt: skip
    body += [
        _grid_line(_LEFT, y(v), _WIDTH - _RIGHT, y(v), _label(v), "y") for v in y_ticks(y_range)
    ]
    body += [
        _grid_line(x(v), _TOP + 14, x(v), _HEIGHT - _BOTTOM, _label(v), "x") for v in ticks(x_range)
    ]
    taken: list[float] = []
    for method, values in series.items():
        colour = COLOURS.get(method, "#666")
        placed = [(x(a), y(b)) for a, b in sorted(values)]
        if not placed:
            continue
        if len(placed) > 1:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in placed)
            body.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
            )
        body += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}"/>' for a, b in placed]
        height = placed[-1][1] + 4
        while any(abs(height - other) < 15 for other in taken):
            height += 15
        taken.append(height)
        body.append(
            f'<text x="{placed[-1][0] + 9:.1f}" y="{height:.1f}" fill="{colour}" '
            f'font-weight="700">{escape(TITLES.get(method, method))}</text>'
        )
    return _svg(body, _HEIGHT, f"{y_title} against {x_title}")


def bars(rows: Sequence[tuple[str, float]], title: str, left: str, right: str) -> str:
    """Draw signed bars from a middle line, one for each (name, value), in the order given."""
    if not rows:
        return ""
    widest = max(abs(value) for _, value in rows) or 1.0
    middle, reach = 400.0, 200.0
    body = [
        _text(middle - reach, 14, f"← {left}", colour=COLOURS.get(left.split()[0].lower())),
        _text(middle + reach, 14, f"{right} →", "end", COLOURS.get(right.split()[0].lower())),
    ]
    for index, (name, value) in enumerate(rows):
        top = 24 + 20 * index
        length = reach * abs(value) / widest
        start = middle if value >= 0 else middle - length
        winner = (right if value >= 0 else left).split()[0].lower()
        colour = COLOURS.get(winner, "#666")
        body.append(
            f'<rect x="{start:.1f}" y="{top}" width="{max(length, 0.5):.1f}" height="14" '
            f'fill="{colour}"/>'
        )
        shown = name if len(name) <= 26 else name[:25] + "…"
        body.append(_text(middle - reach - 8, top + 12, shown, "end"))
        body.append(_text(_WIDTH - 2, top + 12, f"{value:+.1f}", "end"))
    body.append(
        f'<line x1="{middle}" x2="{middle}" y1="20" y2="{24 + 20 * len(rows)}" '
        'stroke="currentColor" stroke-opacity="0.5"/>'
    )
    return _svg(body, 32 + 20 * len(rows), title)


def ticks(span: Point) -> list[float]:
    """Return round numbers within a span: 1, 2 and 5 times powers of ten."""
    low, high = span
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**p for p in powers for m in (1, 2, 5)]
    inside = [value for value in found if low <= value * 1.0001 and value <= high * 1.0001]
    while len(inside) > 7:
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


def _scale(
    span: Point, start: float, end: float, transform: Callable[[float], float]
) -> Callable[[float], float]:
    low, high = transform(span[0]), transform(span[1])
    return lambda value: start + (transform(value) - low) / (high - low) * (end - start)


def _label(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 and value == round(value) else f"{value:g}"


def _grid_line(x1: float, y1: float, x2: float, y2: float, label: str, axis: str) -> str:
    text = (
        _text(x1 - 8, y1 + 4, label, "end") if axis == "y" else _text(x1, y2 + 18, label, "middle")
    )
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="currentColor" '
        f'stroke-opacity="0.15"/>{text}'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str | None = None) -> str:
    fill = colour or "currentColor"
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(text)}</text>'
    )


def _svg(body: Sequence[str], height: float, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="13">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>"
    )
