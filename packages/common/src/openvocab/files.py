"""Files that are either whole or not there, and their fingerprints."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_CHUNK = 1 << 20
_PREFIX = 40  # characters of a name that its temporary file repeats, so that it is never too long


def _umask() -> int:
    """Return which permissions new files are not given."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()  # asked once: asking changes it for a moment, for all threads


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and move it there only when the block succeeds.

    Readers see the old file or the new one, never half of one. The name keeps the suffix of `path`,
    since image and array writers choose the format by it.
    """
    with atomic_paths([path]) as (temporary,):
        yield temporary


@contextmanager
def atomic_paths(paths: Sequence[str | Path]) -> Iterator[list[Path]]:
    """Give temporary paths for files that belong together, and move all of them or none.

    Where one cannot be moved to its place, those that were moved before are removed again.
    """
    targets = [Path(path) for path in paths]
    temporaries: list[Path] = []
    try:
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporaries.append(_temporary_beside(target))
        yield list(temporaries)
        for temporary in temporaries:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_UMASK)  # mkstemp makes files that only the owner can read
        _move_all(temporaries, targets)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _temporary_beside(target: Path) -> Path:
    handle, name = tempfile.mkstemp(
        prefix=f".{target.stem[:_PREFIX]}-", suffix=target.suffix, dir=target.parent
    )
    os.close(handle)
    return Path(name)


def _move_all(temporaries: list[Path], targets: list[Path]) -> None:
    moved: list[Path] = []
    try:
        for temporary, target in zip(temporaries, targets, strict=True):
            os.replace(temporary, target)
            moved.append(target)
    except OSError:
        for target in moved:
            target.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal.

    A checkpoint takes seconds; a file that did not change since is not read again.
    """
    found = Path(path).stat()
    return _sha256(Path(path).resolve(), found.st_ino, found.st_size, found.st_mtime_ns)


@cache
def _sha256(path: Path, *_state: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def default_cache_dir() -> Path | None:
    """Return the user's cache folder, or None where `OPENVOCAB_CACHE` is set to nothing.

    `OPENVOCAB_CACHE` overrides `$XDG_CACHE_HOME/openvocab`, which overrides `~/.cache/openvocab`.
    A user without a home has none.
    """
    chosen = os.environ.get("OPENVOCAB_CACHE")
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        if chosen is not None:
            return Path(chosen).expanduser() if chosen else None
        return (Path(root) if root else Path("~/.cache").expanduser()) / "openvocab"
    except RuntimeError:  # neither HOME nor an entry in the system's list of users
        return None
