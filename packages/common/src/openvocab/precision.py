"""Numbers with fewer bits, as an option of every command, and never by accident."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

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


class Turn:
    """A lock that one thread at a time holds, and that a deep copy or a pickle starts anew."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Turn, ()


class _SharedDefault:
    """torch's default type, which all threads share: float32 as long as somebody needs that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = torch.float32

    @contextmanager
    def float32(self) -> Iterator[None]:
        with self._lock:
            if self._users == 0:
                self._before = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    torch.set_default_dtype(self._before)


_default = _SharedDefault()


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """Compute as the weights say, whatever autocast or default type the caller has set."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_default.float32())
        yield
