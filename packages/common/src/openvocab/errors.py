"""The one exception that means: what you gave cannot be used, and this is what to do."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any


class InputError(ValueError):
    """Input that cannot be used; its message is one sentence that says what to do.

    The commands print the sentence and exit with code 2; libraries may catch it as `ValueError`.
    """


class NamesError(InputError):
    """Names that cannot be used, with whatever image."""


def import_extra(module: str, extra: str, task: str) -> Any:
    """Import a library that only some tasks need, and return the module.

    Args:
        module: dotted name, such as "tensorboard".
        extra: the extra of our packages that installs the library.
        task: what the library is needed for, such as "training".

    Raises:
        InputError: the library is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{task} needs the package {module.partition('.')[0]!r}, which is not installed; "
            f'install it with pip install "openvocab-seg[{extra}]", or from a checkout with '
            f'pip install ".[{extra}]".'
        ) from error


def one_line(text: str) -> str:
    """Return text that is safe to print: one line, without what a terminal would obey.

    Line breaks become spaces. Other characters that cannot be printed, and bytes of file names that
    are no text, become escapes such as that of ESC: a backslash and "x1b".
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in " ".join(text.splitlines())
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that the memory of the machine or of a device is full."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError):
        return True
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
