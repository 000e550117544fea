"""The sets of prompt templates, into which names are put; they are files in `templates/`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from openvocab.errors import InputError
from openvocab.reading.json_files import packaged_json

Templates = str | Sequence[str]


def available_templates() -> tuple[str, ...]:
    """Return the names of the template sets, sorted."""
    files = resources.files("openvocab.clip").joinpath("templates").iterdir()
    return tuple(sorted(Path(f.name).stem for f in files if f.name.endswith(".json")))


@cache
def load_templates(name: str) -> tuple[str, ...]:
    """Return a template set: "vild" 14, "imagenet" 80, "car" 15, "single" 1 or "origami" 1.

    "vild:3" is the template number 3 of "vild" alone; they count from 0.

    Raises:
        InputError: if there is no set of this name, or no template of this number.
    """
    whole, colon, number = name.partition(":")
    known = available_templates()
    if whole not in known:
        raise InputError(f"template set {whole!r} is not known; use one of {', '.join(known)}")
    templates = tuple(packaged_json("openvocab.clip", "templates", f"{whole}.json"))
    if not colon:
        return templates
    if not (number.isascii() and number.isdigit() and int(number) < len(templates)):
        raise InputError(
            f"template set {whole!r} has no template {number!r}; its templates are 0 to "
            f"{len(templates) - 1}"
        )
    return (templates[int(number)],)


def resolve_templates(templates: Templates) -> tuple[str, ...]:
    """Return the strings of a template set, given by its name or as they are.

    Raises:
        InputError: if the set is unknown or empty, or a template has not exactly one "{}".
    """
    if isinstance(templates, str):
        return load_templates(templates)
    if not templates:
        raise InputError("there are no prompt templates; give at least one, such as '{}'")
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(f"template {template!r} must have one '{{}}' where the name goes")
    return tuple(templates)
