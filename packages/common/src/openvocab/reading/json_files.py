"""JSON from outside, with limits on its bytes and its depth and a check of its contents."""

from __future__ import annotations

import json
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
