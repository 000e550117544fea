"""How every command of the project ends: an exit code, and one sentence instead of a traceback."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from openvocab.errors import InputError

USAGE_ERROR = 2
INTERRUPTED = 130


def run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main` and turn what a user can cause into an exit code.

    Args:
        main: takes the arguments behind the program's name (None: `sys.argv`), returns the code.
        argv: the arguments to hand over.

    Returns:
        What `main` returns; 2 after an `InputError` (printed to stderr); 130 after Ctrl-C.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = print_warning  # type: ignore[assignment]  # takes any place
            return main(argv)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def print_warning(message: Warning | str, *place: Any) -> None:
    """Print what a warning says, without the line of code it came from."""
    print(f"warning: {message}", file=sys.stderr)
