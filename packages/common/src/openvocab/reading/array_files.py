"""NumPy's files of arrays: as many bytes as their headers promise, and numbers only."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from openvocab.errors import InputError
from openvocab.reading.files import DAMAGE, open_regular, read_bytes

MOST_BYTES = 1 << 31
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def parse_array(data: bytes, kinds: str = "fiu") -> NDArray[Any]:
    """Make an array whose header promises exactly the bytes that are there.

    Args:
        data: the bytes of an `.npy` file.
        kinds: which kinds of numbers are taken, as NumPy's letters.

    Raises:
        ValueError: it has other values; damaged files raise what `DAMAGE` lists.
    """
    file = io.BytesIO(data)
    shape, fortran, dtype = _HEADERS[npy.read_magic(file)](file)
    if dtype.kind not in kinds:
        raise ValueError(f"values of type {dtype}")
    flat = np.frombuffer(data, dtype=dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if fortran else "C")


def read_array(
    path: Path,
    what: str,
    choose: Callable[[Sequence[str]], str] | None = None,
    *,
    most_bytes: int = MOST_BYTES,
) -> NDArray[Any]:
    """Read an array of numbers from an `.npy` file, or one of the arrays of an `.npz` file.

    Args:
        path: a regular file.
        what: names its kind in the sentence.
        choose: which of the members' names of an `.npz` file is read; None: the file is an `.npy`.
        most_bytes: of the file and of the array.

    Raises:
        InputError: it cannot be read, is damaged, or is larger.
    """
    try:
        if choose is None:
            return parse_array(read_bytes(path, what, most_bytes=most_bytes))
        with open_regular(path, what, most_bytes=most_bytes) as file:
            with zipfile.ZipFile(file) as archive:
                name = choose(archive.namelist())
                if archive.getinfo(name).file_size > most_bytes:
                    raise InputError(
                        f"{path} would unpack to more than {most_bytes} bytes; "
                        "store labels instead of scores"
                    )
                return parse_array(archive.read(name))
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(
            f"{path} is no array of NumPy ({error!r:.80}); write it with numpy.save"
        ) from None


def read_arrays(path: Path, what: str) -> dict[str, NDArray[Any]]:
    """Read all arrays of an `.npz` file, of numbers or truth values, by name.

    Args:
        path: a regular file.
        what: names its kind in the sentence.

    Raises:
        InputError: it cannot be read, is damaged, or would unpack to more than `MOST_BYTES`.
    """
    try:
        with open_regular(path, what, most_bytes=MOST_BYTES) as file:
            with zipfile.ZipFile(file) as archive:
                if sum(one.file_size for one in archive.infolist()) > MOST_BYTES:
                    raise InputError(
                        f"{path} would unpack to more than {MOST_BYTES} bytes; delete it, so that "
                        "it is made anew"
                    )
                return {
                    name.removesuffix(".npy"): parse_array(archive.read(name), "fiub").copy()
                    for name in archive.namelist()
                }
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(
            f"the {what} {path} is damaged ({error!r:.80}); delete it, so that it is made anew"
        ) from None
