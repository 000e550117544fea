"""The one exception that means: what you gave cannot be used, and this is what to do."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class InputError(ValueError):
    """Input that cannot be used; its message is one sentence that says what to do.

    The commands print the sentence and exit with code 2; libraries may catch it as `ValueError`.
    """


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
