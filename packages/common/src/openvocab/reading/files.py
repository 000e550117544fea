"""Reading regular files up to a size, and no others."""

from __future__ import annotations

import lzma
import os
import pickle
import stat
import struct
import tarfile
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from openvocab.errors import InputError

LIST_BYTES = 1 << 24  # lists of names and similar small files stay below
# What the parsers of Python, PyYAML, NumPy and torch raise on damaged or made-up bytes. Each door
# turns them into one sentence; nothing but parsing happens where they are caught.
DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, ImportError),
    *(LookupError, MemoryError, NameError, OSError, RuntimeError, TypeError, ValueError),
    *(struct.error, zlib.error, lzma.LZMAError, pickle.UnpicklingError, tarfile.TarError),
    *(zipfile.BadZipFile, zipfile.LargeZipFile, tokenize.TokenError),  # NumPy reads old headers
)


def open_regular(path: str | os.PathLike[str], what: str, *, most_bytes: int) -> BinaryIO:
    """Open a file for reading, if it is a regular one of a reasonable size.

    Pipes, devices such as `/dev/zero` and folders are refused before anything is read of them.

    Args:
        path: the file.
        what: name of the kind of file for the error, such as "config".
        most_bytes: larger files are refused.

    Raises:
        InputError: the file is missing, not regular, not readable, or too large.
    """
    if "\0" in os.fspath(path):
        raise InputError(f"{os.fspath(path)!r} cannot be the name of a {what}; give a path")
    try:
        found = Path(path).stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"the {what} {path} is {_kind(found.st_mode)}; give a file")
        if found.st_size > most_bytes:
            raise InputError(
                f"the {what} {path} has {found.st_size} bytes, but at most {most_bytes} are read; "
                f"check that it is the right file"
            )
        return Path(path).open("rb")
    except OSError as error:
        raise InputError(
            f"cannot read the {what} {path}: {error.strerror}; check the path and its permissions"
        ) from None


def read_bytes(path: str | os.PathLike[str], what: str, *, most_bytes: int) -> bytes:
    """Read a whole regular file; see `open_regular`."""
    with open_regular(path, what, most_bytes=most_bytes) as file:
        try:
            data = file.read(most_bytes + 1)  # it may have grown since
        except OSError as error:
            raise InputError(
                f"cannot read the {what} {path}: {error.strerror}; "
                "check the path and its permissions"
            ) from None
    if len(data) > most_bytes:
        raise InputError(f"the {what} {path} has more than {most_bytes} bytes; give another file")
    return data


def read_text(path: str | os.PathLike[str], what: str, *, most_bytes: int) -> str:
    """Read a whole regular file as UTF-8; a byte order mark in front is taken off.

    Raises:
        InputError: the file cannot be read, or is no text.
    """
    data = read_bytes(path, what, most_bytes=most_bytes)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"the {what} {path} is no UTF-8 text (byte {error.start} does not fit); save it as "
            f"UTF-8"
        ) from None


def reason(error: BaseException) -> str:
    """Return the first line of a parser's message without a period, or the name of the error."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def resolved(path: str | Path, what: str) -> Path:
    """Return the absolute path that a name stands for, with `~` and links followed.

    Raises:
        InputError: the name cannot be a path: a zero byte, an unknown user, links that lead in a
            circle.
    """
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{os.fspath(path)!r} cannot be the name of a {what} ({reason(error)}); give a path"
        ) from None


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for test, name in kinds if test(mode)), "no regular file")
