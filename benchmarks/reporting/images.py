"""The images of a run as the report embeds them: all in one page, or in pages of so many each."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from benchmarks.forms import Thumbnail
from benchmarks.reporting.gallery import AGREEMENTS, hex_colors

EACH = 256  # images in one page; more of them follow in pages of their own
SCRIPT = (Path(__file__).parent / "templates" / "report.js").read_text("utf-8")


def script_hash() -> str:
    """Return the name of the report's script in a Content-Security-Policy, which allows no other.

    What a name of a class or of an image smuggles into the page can therefore not run.
    """
    digest = hashlib.sha256(SCRIPT.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def embedded_json(value: Any) -> Markup:
    """Return JSON that cannot end the script element in which it stands."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def groups(images: Sequence[Thumbnail]) -> dict[str, int]:
    """Return how many images are in each group of agreement that occurs."""
    counts = Counter(image["agreement"] for image in images)
    return {group: counts[group] for group in AGREEMENTS if counts[group]}


def parts(
    images: Sequence[Thumbnail], names: Sequence[str], titles: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Divide the images of a data set into what one page holds.

    Args:
        images: All images of a run.
        names: The names of the classes.
        titles: The titles of the methods, by their keys.

    Returns:
        The numbers of the first and the last image of each part, from 1 on, and the part's
        content for the script of the page.
    """
    known = {"truth": "ground truth", **titles}
    shared = {"names": list(names), "colors": hex_colors(len(names)), "titles": known}
    found = []
    for start in range(0, len(images), EACH):
        some = images[start : start + EACH]
        content = {**shared, "agreements": list(groups(some)), "images": some}
        found.append({"first": start + 1, "last": start + len(some), "content": content})
    return found
