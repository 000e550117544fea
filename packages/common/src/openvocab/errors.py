"""The one exception that means: what you gave cannot be used, and this is what to do."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used; its message is one sentence that says what to do.

    The commands print the sentence and exit with code 2; libraries may catch it as `ValueError`.
    """
