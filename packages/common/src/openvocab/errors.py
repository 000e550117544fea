"""The one exception that means: what you gave cannot be used, and this is what to do."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Any

_LONGEST_WORD, _LONGEST_SENTENCE = 400, 4000  # characters


class InputError(ValueError):
    """Input that cannot be used; its message is one sentence that says what to do.

    The commands print the sentence and exit with code 2; libraries may catch it as `ValueError`.
    What a foreign file put into the sentence cannot leave it: line breaks become spaces, control
    characters are spelled out, and what is endless is cut.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class NamesError(InputError):
    """Names that cannot be used, with whatever image.

    Attributes:
        names: those names, as far as they are known.
    """

    def __init__(self, message: object = "", names: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.names = tuple(names)


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
            f'pip install ".[{extra}]"'
        ) from error


def one_line(text: str) -> str:
    r"""Return text as one line that any terminal can show.

    >>> print(one_line("two\nlines and a \x1b[31mcolor"))
    two lines and a \x1b[31mcolor
    """
    words = (_shortened(word, _LONGEST_WORD) for word in text.split())
    return _shortened(" ".join(words), _LONGEST_SENTENCE)


def shorten_value(value: object) -> str:
    """Return the `repr` of a foreign value, cut to what a sentence can hold.

    >>> shorten_value([1, "two"])
    "[1, 'two']"
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    short.maxlevel = 3
    return one_line(short.repr(value))


def _shortened(text: str, longest: int) -> str:
    if len(text) > longest:
        text = f"{text[: longest * 2 // 3]} ... {text[-longest // 4 :]}"
    if text.isprintable():
        return text
    # Lone surrogates and marks that turn the direction of writing are not printable either.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that the memory of the machine or of a device is full."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError):
        return True
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
