"""What only its user can state about a foreign method, read from a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from openvocab.config import near_matches
from openvocab.errors import InputError
from openvocab.reading.yaml_files import read_yaml_file

LINES = ("weights", "training_data", "resize_rule", "vocabulary", "templates", "tta", "note")
STATED = "stated by the user: "
NOT_STATED = "not stated"
_LONGEST = 500


def read_stated(path: Path) -> dict[str, str]:
    """Read what a user states about a method: some of `LINES`, each with a text or a number.

    Raises:
        InputError: it is no such file, or has other keys.
    """
    stated = {}
    for key, value in read_yaml_file(path, "card of predictions").items():
        if key not in LINES:
            raise InputError(f"{path} has an unknown line {key!r}; {near_matches(key, LINES)}")
        if not isinstance(value, str | int | float) or len(str(value)) > _LONGEST:
            raise InputError(
                f"{path}: {key} is no text of at most {_LONGEST} characters; shorten it"
            )
        stated[key] = str(value)
    return stated


def stated_settings(stated: Mapping[str, str]) -> dict[str, str]:
    """Return the lines for a card's settings that hold what was stated and what was not."""
    lines = {f"{STATED}{line}": stated.get(line, NOT_STATED) for line in LINES if line != "note"}
    note = {f"{STATED}note": stated["note"]} if "note" in stated else {}
    return {"scored": "predictions of another program", "prompts": "unknown", **lines, **note}
