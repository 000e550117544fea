"""JSON from outside, with limits on its bytes and its depth and a check of its contents."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from openvocab.errors import InputError
from openvocab.reading.files import DAMAGE, read_text
from openvocab.reading.trees import plain_depth

MOST_BYTES = 1 << 31  # predictions for COCO's training images stay below
DEEPEST = 100


def read_json_file(path: str | Path, what: str, *, most_bytes: int = MOST_BYTES) -> Any:
    """Read a JSON file.

    Args:
        path: a regular file in UTF-8.
        what: name of the kind of file for the error, such as "predictions".
        most_bytes: larger files are refused.

    Raises:
        InputError: the file cannot be read, is no JSON, or is nested deeper than any of ours.
    """
    return parse_json(read_text(path, what, most_bytes=most_bytes), str(path), what)


def parse_json(text: str, source: str, what: str) -> Any:
    """Build the data of a JSON text, with the limits of `read_json_file`.

    Raises:
        InputError: as there.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise InputError(f"{source} is nested too deep for {what}; simplify it") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{source} is not JSON ({error.msg} in line {error.lineno}); expected {what}"
        ) from None
    except DAMAGE as error:  # a number with thousands of digits
        raise InputError(f"{source} is not JSON ({error}); expected {what}") from None
    if plain_depth(content) > DEEPEST:
        raise InputError(f"{source} is nested too deep for {what}; simplify it")
    return content


def packaged_json(package: str, *path: str) -> Any:
    """Return the content of a JSON file that a package of ours brings along.

    Args:
        package: its import name.
        path: the file below its folder, part by part.
    """
    file = resources.files(package).joinpath(*path)
    return parse_json(file.read_text(encoding="utf-8"), path[-1], "data of this package")


def as_json(value: Any, default: Any = None) -> Any:
    """Return plain data as it is read back after it was written: tuples are lists in JSON.

    Args:
        value: the data.
        default: makes something that JSON knows of what it does not know, such as `str`.
    """
    return json.loads(json.dumps(value, default=default))
