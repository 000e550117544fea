"""Pickles, read without calling anything in them: one base, and an allow-list for each use.

A pickle is a program. Here its names lead to stand-ins only: a `Maker` is the one thing that it can
call, and what it may fill afterwards (arrays, and objects that forget everything) is checked here.
It gets no class, no function and no array type of any library. Python's own unpickler in C trusts
the indices of its memo (nine bytes can cost gigabytes), so its twin in Python runs.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np

from openvocab.errors import InputError
from openvocab.reading.arrays import (
    ArrayType,
    Refused,
    array_from_buffer,
    empty_array,
    fill_array,
    scalar_of,
)
from openvocab.reading.files import DAMAGE, read_bytes, reason
from openvocab.reading.trees import tree_size

Names = Mapping[tuple[str, str], Any]

MOST_BYTES = 1 << 31  # the index of ADE20K-Full is the largest that is known
MOST_VALUES = 1_000_000  # or as many as the file has bytes, of which each value needs one
DEEPEST = 100
_LONGEST_INTEGER = 8  # bytes; longer ones exist to collide as keys of a dict
_CONTAINERS = (dict, list, tuple, set, frozenset)
_PYTHON_UNPICKLER: Any = pickle._Unpickler


class ForeignName(Refused):
    """The pickle names something that is not on the list."""


class Maker:
    """The only thing that a pickle can call.

    Args:
        make: gets the arguments that the file gives, so it checks them.
    """

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


class Forgotten(dict[Any, Any]):
    """A stand-in for an object that does not matter, which ignores everything set on it."""


class RestrictedUnpickler(_PYTHON_UNPICKLER):  # type: ignore[misc]
    """A reader of one pickle.

    Args:
        data: the pickle.
        names: allowed values by module and name: a `Maker`, or a value that is only handed on.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_PYTHON_UNPICKLER.dispatch)

    def __init__(self, data: Any, names: Names) -> None:
        super().__init__(data, fix_imports=False, encoding="latin1")
        self.names = names

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a name."""
        try:
            return self.names[module, name]
        except KeyError:
            raise ForeignName(f"{module}.{name}") from None

    def fill(self, value: Any, state: Any) -> None:
        """Set the state of a value; derived unpicklers know more kinds of values."""
        if isinstance(value, ArrayType):
            value.check_state(state)
        elif isinstance(value, np.ndarray):
            fill_array(value, state)
        elif not isinstance(value, Forgotten | OrderedDict):
            raise Refused("setting attributes of a value")

    def _make(self, maker: Any, arguments: Any) -> Any:
        if not isinstance(maker, Maker) or not isinstance(arguments, tuple):
            raise Refused("a call of a value")
        return maker.make(*arguments)

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._make(self.stack[-1], arguments)

    def _new_with_keywords(self) -> None:
        keywords, arguments, maker = self.stack.pop(), self.stack.pop(), self.stack.pop()
        if keywords:
            raise Refused("a call with keywords")
        self.append(self._make(maker, arguments))

    def _object(self) -> None:
        maker, *arguments = self.pop_mark()
        self.append(self._make(maker, tuple(arguments)))

    def _instance(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        self.append(self._make(self.find_class(module, name), tuple(self.pop_mark())))

    def _build(self) -> None:
        state = self.stack.pop()
        self.fill(self.stack[-1], state)

    def _byte_array(self) -> None:  # without making room for what the file only claims
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))

    def _long(self, width: int) -> None:
        size = int.from_bytes(self.read(width), "little")
        if size > _LONGEST_INTEGER:
            raise Refused(f"an integer of {size} bytes")
        self.append(int.from_bytes(self.read(size), "little", signed=True))

    def _extension(self) -> NoReturn:
        raise Refused("an extension of pickle")

    def _number(self, load: Callable[[Any], None]) -> None:
        load(self)
        if int(self.stack[-1]).bit_length() > 8 * _LONGEST_INTEGER:
            raise Refused("an integer of too many digits")

    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.NEWOBJ[0]] = _reduce
    dispatch[pickle.NEWOBJ_EX[0]] = _new_with_keywords
    dispatch[pickle.OBJ[0]] = _object
    dispatch[pickle.INST[0]] = _instance
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.BYTEARRAY8[0]] = _byte_array
    dispatch[pickle.INT[0]] = lambda self: self._number(_PYTHON_UNPICKLER.load_int)
    dispatch[pickle.LONG[0]] = lambda self: self._number(_PYTHON_UNPICKLER.load_long)
    dispatch[pickle.LONG1[0]] = lambda self: self._long(1)
    dispatch[pickle.LONG4[0]] = lambda self: self._long(4)
    for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4):
        dispatch[_code[0]] = _extension


def read_plain_pickle(path: str | Path) -> Any:
    """Read a pickle of dicts, lists, text, numbers and arrays, of Python 2 or 3.

    Raises:
        InputError: the file is missing, damaged, or asks for anything else; nothing of it was run.
    """
    data = read_bytes(path, "pickle", most_bytes=MOST_BYTES)
    try:
        content = RestrictedUnpickler(io.BytesIO(data), DATA).load()
    except Refused as error:
        raise InputError(
            f"{path} was refused: it asks for {error}, and an index holds data only; fetch it from "
            f"its authors again"
        ) from None
    except DAMAGE as error:
        raise InputError(
            f"{path} is not a readable pickle ({reason(error)}); fetch it again"
        ) from None
    check_size(content, str(path), len(data))
    return content


def check_size(content: Any, source: str, size: int) -> None:
    """Refuse contents that refer to their own parts so often that a walk would not end.

    Args:
        content: contents of the pickle.
        source: name of the source for the error.
        size: the bytes that it was read from.

    Raises:
        InputError: the contents refer to their own parts too often.
    """
    try:
        nodes, depth = tree_size(content, containers_in)
    except InputError as error:
        raise InputError(f"{source} was refused, because {error}") from None
    if nodes > max(size, MOST_VALUES) or depth > DEEPEST:
        raise InputError(
            f"{source} was refused: its {size} bytes stand for {nodes} values, nested {depth} deep;"
            f" no data set or checkpoint needs that"
        )


def containers_in(value: Any) -> tuple[int, Iterable[Any]]:
    """Return the number of plain values directly inside a container, and the containers in it."""
    if isinstance(value, dict):
        inner = [v for pair in value.items() for v in pair if isinstance(v, _CONTAINERS)]
        return 2 * len(value) - len(inner), inner
    if isinstance(value, list | tuple | set | frozenset):
        inner = [v for v in value if isinstance(v, _CONTAINERS)]
        return len(value) - len(inner), inner
    return 0, ()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):  # how pickles of protocol 2 keep bytes
        raise Refused(f"the codec {encoding!r}")
    return text.encode("latin1")


def _bytes(*content: Any) -> bytes:
    if content:
        raise Refused("bytes made from a value")
    return b""


def _byte_array(content: Any = b"", encoding: str = "latin-1") -> bytearray:
    return bytearray(
        _encode(content, encoding) if isinstance(content, str) else checked_bytes(content)
    )


def checked_bytes(content: Any) -> bytes:
    """Return bytes, and refuse everything that is not bytes already."""
    if not isinstance(content, bytes | bytearray):
        raise Refused("bytes made from a value")
    return bytes(content)


def _set(items: Any = ()) -> set[Any]:
    if not isinstance(items, list | tuple):
        raise Refused("a set made from a value")
    return set(items)


def _complex(real: Any, imaginary: Any) -> complex:
    if not isinstance(real, float) or not isinstance(imaginary, float):
        raise Refused("a complex number made from a value")
    return complex(real, imaginary)


def _ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    if not isinstance(pairs, list | tuple):
        raise Refused("a dictionary made from a value")
    return OrderedDict(pairs)


_BUILTINS: dict[str, Any] = {
    "set": Maker(_set),
    "frozenset": Maker(lambda items=(): frozenset(_set(items))),
    "bytearray": Maker(_byte_array),
    "bytes": Maker(_bytes),
    "complex": Maker(_complex),
}

_NUMPY_CORES = ("numpy.core", "numpy._core")

# Plain data with arrays, as Python 2 and 3 and all versions of NumPy pickle them.
DATA: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): Maker(ArrayType),
    ("numpy", "ndarray"): "ndarray",
    **{(f"{core}.multiarray", "_reconstruct"): Maker(empty_array) for core in _NUMPY_CORES},
    **{(f"{core}.multiarray", "scalar"): Maker(scalar_of) for core in _NUMPY_CORES},
    **{(f"{core}.numeric", "_frombuffer"): Maker(array_from_buffer) for core in _NUMPY_CORES},
    ("_codecs", "encode"): Maker(_encode),
    ("collections", "OrderedDict"): Maker(_ordered),
    **{(m, name): v for name, v in _BUILTINS.items() for m in ("builtins", "__builtin__")},
}
