"""MATLAB's files of version 5, from which label maps are read.

scipy's reader reads memory that is not its own where such a file is damaged, and can end the
process.

Source: MathWorks, "MAT-File Format", chapter "Level 5 MAT-File Format".
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openvocab.errors import InputError
from openvocab.reading.array_files import MOST_BYTES
from openvocab.reading.files import DAMAGE, read_bytes

_HEADER = 128  # bytes; the last two say the order of bytes
_ORDERS = {b"IM": "<", b"MI": ">"}
_MATRIX, _COMPRESSED = 14, 15
_COMPLEX = 0x0800
_STORED = {
    **{1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4"},
    **{7: "f4", 9: "f8", 12: "i8", 13: "u8"},
}
_CLASSES = {
    **{6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2"},
    **{12: "i4", 13: "u4", 14: "i8", 15: "u8"},
}


def read_mat(path: Path, name: str) -> NDArray[Any]:
    """Read one array of real numbers of a .mat file.

    Args:
        path: a regular file.
        name: of the variable.

    Raises:
        InputError: the file is missing, damaged, or has no such array of a reasonable size.
    """
    data = read_bytes(path, ".mat file", most_bytes=MOST_BYTES)
    try:
        order = _ORDERS[data[_HEADER - 2 : _HEADER]]
        for kind, content in _elements(memoryview(data)[_HEADER:], order):
            if kind == _COMPRESSED:
                ((kind, content),) = _elements(_unpacked(content), order)
            if kind == _MATRIX and (found := _matrix(content, order, name)) is not None:
                return found
        raise ValueError(f"it has no {name}")
    except DAMAGE as error:
        raise InputError(
            f"{path} is no .mat file with a {name} ({error!r:.80}); fetch the archive again"
        ) from None


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield the type and the content of each element."""
    start = 0
    while start < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, start)
        first = start + 8
        if kind >> 16:  # up to four bytes of content stand in the tag itself
            kind, size, first = kind & 0xFFFF, kind >> 16, start + 4
            if size > 4:
                raise ValueError(f"a tag with {size} bytes")
        if size > len(data) - first:
            raise ValueError(f"{size} bytes are promised and {len(data) - first} are there")
        yield kind, data[first : first + size]
        end = first + size
        start = end if kind == _COMPRESSED else end + -end % 8


def _unpacked(content: memoryview) -> memoryview:
    unpacking = zlib.decompressobj()
    found = unpacking.decompress(content, MOST_BYTES)
    if not unpacking.eof:
        raise ValueError(f"it is cut off, or unpacks to more than {MOST_BYTES} bytes")
    return memoryview(found)


def _matrix(content: memoryview, order: str, name: str) -> NDArray[Any] | None:
    """Return a matrix of this name, None if it has another name."""
    parts = _elements(content, order)
    flags, shape, called = (part for _, part in islice(parts, 3))
    if bytes(called) != name.encode():
        return None
    flag = struct.unpack_from(f"{order}I", flags)[0]
    if flag & _COMPLEX:
        raise ValueError("its numbers are complex")
    dtype = _CLASSES[flag & 0xFF]
    ((kind, values),) = islice(parts, 1)
    sizes = [int(size) for size in np.frombuffer(shape, f"{order}i4")]
    if min(sizes, default=0) < 0:
        raise ValueError(f"its shape is {sizes}")
    if math.prod(sizes) * 8 > MOST_BYTES:
        raise ValueError(f"it has {sizes} values")
    return np.frombuffer(values, order + _STORED[kind]).reshape(sizes, order="F").astype(dtype)
