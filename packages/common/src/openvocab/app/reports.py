"""Explanations as HTML: steps of a method, two results compared, and why a name won nothing.

Names come from visitors: everything that is put into a page is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any

import cv2
import jinja2
import numpy as np

from openvocab.app.analysis import (
    NameEvidence,
    Scores,
    difference_of,
    near_duplicates,
    rare_words,
    umbrella_terms,
)
from openvocab.app.asked import Asked
from openvocab.app.engine import Engine, Found
from openvocab.app.viewer import data_url
from openvocab.clip.tokenizer import tokenize
from openvocab.drawing.overlay import draw_overlay
from openvocab.formats.run_length import Mask
from openvocab.image import ImageArray, read_image
from openvocab.methods import Explained, Method
from openvocab.reading.json_files import packaged_json
from openvocab.world.names import world_names

_MOST = 20  # rows of a table that are shown at once
_WIDE = 1.3  # times the photo's ratio of width to height


def examples_html(examples: Sequence[tuple[str, str]]) -> str:
    """Show example pictures, given as files with their names, as buttons."""
    shown = [(read_image(path), names) for path, names in examples]
    return _render("examples.html", examples=shown)


def steps_html(shown: Sequence[tuple[Method, Sequence[Explained]]]) -> str:
    """Show what methods did, grouped, with what is empty folded away."""
    return _render(
        "steps.html",
        shown=[(method.title, method.summary, _groups(steps)) for method, steps in shown],
    )


def compare_html(image: ImageArray, found: Sequence[Found], titles: Sequence[str]) -> str:
    """Show where two results of a picture (H, W, 3) differ, and how sure each was.

    Args:
        image: that was segmented.
        found: two results.
        titles: what to call them.
    """
    first, second = (one.result for one in found)
    difference = difference_of(
        first.labels, first.vocabulary.names, second.labels, second.vocabulary.names
    )
    pictures = [
        Explained(title, _overlay(image, one)) for title, one in zip(titles, found, strict=True)
    ]
    pictures.append(
        Explained("Where they differ", _lit(image, difference.mask), "Bright: different names.")
    )
    pictures += [
        Explained(
            f"Margin of {title}",
            _margin(image, one.margin),
            "Orange: the second best name scored almost as much as the best.",
        )
        for title, one in zip(titles, found, strict=True)
        if one.margin is not None
    ]
    sides = [{"title": title} for title in titles]
    return _render(
        "compare.html", sides=sides, difference=difference, pictures=pictures, most=_MOST
    )


@dataclass(frozen=True)
class Why:
    """What can be said about the names of one result.

    Attributes:
        title: of the method.
        names: that were asked for.
        rows: where each scored best, those that won least first.
        near: (name, name, cosine of their embeddings) of near-duplicates.
        umbrellas: (wider, narrower name).
        rare: words that CLIP reads in many pieces.
    """

    title: str
    names: tuple[str, ...]
    rows: tuple[NameEvidence, ...] = ()
    near: list[tuple[str, str, float]] = field(default_factory=list)
    umbrellas: list[tuple[str, str]] = field(default_factory=list)
    rare: list[str] = field(default_factory=list)


def why(engine: Engine, found: Found, asked: Asked) -> Why:
    """Collect what explains that a name won little."""
    names = found.result.vocabulary.names
    embeddings = engine.embeddings(found.method, asked)
    return Why(
        title=engine.methods[found.method].title,
        names=names,
        rows=tuple(sorted(found.evidence, key=lambda row: row.share)),
        near=[] if embeddings is None else near_duplicates(names, embeddings),
        umbrellas=umbrella_terms(names, _kinds()),
        rare=rare_words(names, _pieces),
    )


def why_html(sides: Sequence[Why]) -> str:
    """Show what explains that names won little, for each result."""
    return _render("why.html", sides=sides, most=_MOST)


_Figure = tuple[Explained, bool]  # with whether it is wide


@dataclass(frozen=True)
class _Group:
    heading: str
    full: list[_Figure]
    empty: list[_Figure]
    open: bool


def _groups(steps: Sequence[Explained]) -> list[_Group]:
    """Put pictures below their headings; of headings that differ behind a number, open the first.

    Pictures that are much wider than the photo, which is the first of them, are strips or charts.
    """
    height, width = steps[0].picture.shape[:2]
    seen: set[str] = set()
    groups = []
    for heading, members in groupby(steps, key=lambda step: step.group):
        shown: tuple[list[_Figure], list[_Figure]] = ([], [])
        for step in members:
            own_height, own_width = step.picture.shape[:2]
            shown[step.empty].append((step, own_width * height > _WIDE * width * own_height))
        kind = re.split(r"\d", heading, maxsplit=1)[0]
        groups.append(_Group(heading, *shown, open=kind not in seen))
        seen.add(kind)
    return groups


def _overlay(image: ImageArray, found: Found) -> ImageArray:
    return draw_overlay(image, found.result.labels, found.result.vocabulary.names, legend=False)


def _lit(image: ImageArray, mask: Mask) -> ImageArray:
    """Darken a picture outside a mask."""
    return np.where(mask[..., None], image, image // 5)


def _margin(image: ImageArray, margin: Scores) -> ImageArray:
    """Lay orange over a grey picture where the margin is small beside the picture's median."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    close = np.clip(1 - margin / max(float(np.median(margin)), 1e-6), 0, 1)[..., None]
    painted = grey * (1 - close) + np.array([245, 130, 30], np.float32) * close
    return np.asarray(np.rint(painted), dtype=np.uint8)


@cache
def _kinds() -> dict[str, str]:
    listed = packaged_json("openvocab.app", "kinds.json")["kinds"]
    kinds = {word: kind for kind, words in listed.items() for word in words}
    return kinds | {name.name: name.category for name in world_names()}


def _pieces(words: Sequence[str]) -> list[int]:
    marks = 2  # of the start and the end of a text
    counts: list[int] = ((tokenize(words, truncate=True) != 0).sum(dim=1) - marks).tolist()
    return counts


def _percent(share: float) -> str:
    words = "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"
    return words.replace(" ", "\N{NO-BREAK SPACE}")


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("openvocab.app"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(url=data_url, percent=_percent)
    figure = environment.get_template("figure.html").make_module().figure  # type: ignore[attr-defined]
    environment.globals.update(figure=figure)
    return environment


def _render(template: str, **values: Any) -> str:
    return _templates().get_template(template).render(**values)
