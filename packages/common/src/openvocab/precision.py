"""Numbers with fewer bits, as an option of every command."""

from __future__ import annotations

from typing import Literal

import torch

from openvocab.errors import InputError

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(precision: str) -> torch.dtype:
    """Return the type of "fp32", "bf16" or "fp16".

    Raises:
        InputError: another word.
    """
    if precision not in _DTYPES:
        raise InputError(f"precision {precision!r} is unknown; use {', '.join(_DTYPES)}")
    return _DTYPES[precision]
