"""NumPy's arrays in pickles, made only from a checked type, a checked shape and enough bytes."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openvocab.errors import shorten_value


class Refused(Exception):
    """The pickle asks for something that plain data does not need."""


_SIMPLE = re.compile(r"[|<>=]?(?:b1|[iu][1248]|f[248]|c(?:8|16)|[SU][1-9]\d{0,5})")
_MOST_AXES = 32


class ArrayType:
    """A stand-in for `numpy.dtype`, whose own state could turn bytes into pointers.

    Args:
        code: "f4", "|u1", "U12": numbers, truth values and text; nothing with fields or objects.
    """

    def __init__(self, code: Any, *_: Any) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _SIMPLE.fullmatch(code):
            raise Refused(f"arrays of type {shorten_value(code)}")
        self.code = code.lstrip("|<>=")
        self.order = code[0] if code[0] in "<>" else "<"

    def check_state(self, state: Any) -> None:
        """Take the byte order from a state that contains nothing else."""
        if not isinstance(state, tuple) or len(state) not in (8, 9) or state[0] not in (3, 4):
            raise ValueError("the state of an array type is damaged")
        _, order, inner, names, fields, *_ = state
        order = order.decode("latin1") if isinstance(order, bytes) else order
        if inner is not None or names is not None or fields is not None or order not in "<>|=":
            raise Refused("an array type with fields or inner arrays")
        self.order = ">" if order == ">" else "<"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The real type."""
        return np.dtype(self.order + self.code)


def empty_array(kind: Any, shape: Any, code: Any) -> NDArray[Any]:
    """Make the array that NumPy's pickles make before they fill it."""
    if kind != "ndarray" or shape != (0,):
        raise Refused("an array of an unknown kind")
    return np.ndarray((0,), dtype="b")


def fill_array(array: NDArray[Any], state: Any) -> None:
    """Fill an array from its state, when type, shape and bytes fit each other."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise ValueError("the state of an array is damaged")
    _, shape, kind, fortran, data = state
    dtype, content = _dtype(kind), _bytes(data)
    _check(dtype, shape, content)
    array.__setstate__((1, shape, dtype, bool(fortran), content))  # type: ignore[arg-type]


def scalar_of(kind: Any, data: Any = b"") -> Any:
    """Make one number."""
    dtype, content = _dtype(kind), _bytes(data)
    _check(dtype, (), content)
    return np.frombuffer(content, dtype=dtype, count=1)[0]


def array_from_buffer(
    data: Any, kind: Any, shape: Any, order: Any = "C", axes: Any = None
) -> NDArray[Any]:
    """Make an array from a buffer, as pickle protocol 5 describes it.

    Args:
        data: bytes of the array.
        kind: `ArrayType`.
        shape: shape of the array.
        order: "C", "F", or "K" with `axes`.
        axes: order of the axes, from the slowest to the fastest in memory.
    """
    dtype, content = _dtype(kind), _bytes(data)
    _check(dtype, shape, content)
    array = np.frombuffer(content, dtype=dtype)
    if order == "K":
        stored = tuple(shape[axis] for axis in axes)
        return array.reshape(stored).transpose(np.argsort(axes))
    return array.reshape(shape, order="F" if order == "F" else "C")


def _dtype(kind: Any) -> np.dtype[Any]:
    if not isinstance(kind, ArrayType):
        raise ValueError("the type of an array is missing")
    return kind.dtype


def _bytes(data: Any) -> bytes:
    if isinstance(data, str):  # of Python 2
        return data.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise ValueError("the values of an array are no bytes")
    return bytes(data)


def _check(dtype: np.dtype[Any], shape: Any, data: bytes) -> None:
    sides = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not sides or len(shape) > _MOST_AXES:
        raise ValueError("the shape of an array is damaged")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(
            f"an array of {math.prod(shape)} times {dtype.itemsize} bytes has {len(data)}"
        )
