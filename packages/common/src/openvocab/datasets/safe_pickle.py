"""Pickles of plain data, as data sets come with; whatever else is in one is refused, not run."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from openvocab.errors import InputError

_PLAIN: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
}
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError),
    *(TypeError, ValueError, OverflowError, MemoryError),
)


class _Refused(Exception):
    """The pickle names something that is not data."""


def read_plain_pickle(path: Path) -> Any:
    """Read a pickle of dicts, lists, text, numbers and arrays, of Python 2 or 3.

    Raises:
        InputError: it is missing, damaged, or asks for anything else; nothing of it was run.
    """
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from None
    except _Refused as error:
        raise InputError(
            f"{path} was refused: it asks for {error}, and an index holds data only; fetch it from "
            f"its authors again."
        ) from None
    except _DAMAGE as error:
        raise InputError(f"{path} is not a readable pickle ({error}); fetch it again.") from None


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if module in _NUMPY and name == "_reconstruct":
            return _reconstruct
        if module in _NUMPY and name == "scalar":
            return _scalar
        if module in _NUMERIC and name == "_frombuffer":
            return _from_buffer
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if name in ("set", "frozenset", "bytearray", "complex") and module in (
            "builtins",
            "__builtin__",
        ):
            return {"set": set, "frozenset": frozenset, "bytearray": bytearray}.get(name, complex)
        raise _Refused(f"{module}.{name}")


def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes | str) -> Any:
    if kind is not np.ndarray:
        raise _Refused("an array of an unknown kind")
    return np.ndarray((0,), dtype="b")  # NumPy fills it afterwards


def _scalar(dtype: np.dtype[Any], value: bytes | str) -> Any:
    data = value.encode("latin1") if isinstance(value, str) else value
    return np.frombuffer(data, dtype=dtype, count=1)[0]


def _from_buffer(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...], order: str) -> Any:
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise _Refused(f"the codec {encoding!r}")
    return text.encode("latin1")
