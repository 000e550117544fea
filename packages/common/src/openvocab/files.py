"""Files that are written completely or not at all, and fingerprints of files."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

_CHUNK = 1 << 20
_PREFIX = 40  # characters of a name that its temporary file repeats, so that it is never too long
_MACHINE = Path("/etc/machine-id")
_TEMPORARY = re.compile(r"\..*-(?P<host>[0-9a-f]{8})-(?P<pid>\d{1,10})-[a-z0-9_]{8}(?:\.[^.]*)?")
_MANY_ENTRIES = 1000
_A_DAY = 86_400  # seconds
_HOST = hashlib.sha256(
    platform.node().encode() + (_MACHINE.read_bytes() if _MACHINE.is_file() else b"")
).hexdigest()[:8]
_ours: set[str] = set()  # names of the files that this process is writing
_entries: dict[Path, int] = {}  # how many files were in a folder when it was last looked through


def _umask() -> int:
    """Return the permissions that new files do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()  # asked once: asking changes it for a moment, for all threads


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and move it there only when the block succeeds.

    Readers see the old file or the new one, never half of one. The name keeps the suffix of `path`,
    since image and array writers choose the format by it. What killed writers left in the folder is
    removed.
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
            sweep(target.parent)
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
            _ours.discard(temporary.name)


def _temporary_beside(target: Path) -> Path:
    prefix = f".{target.stem[:_PREFIX]}-{_HOST}-{os.getpid()}-"
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=target.suffix, dir=target.parent)
    os.close(handle)
    _ours.add(Path(name).name)
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


def sweep(folder: Path) -> None:
    """Remove the temporary files of writers that were killed.

    The name of a temporary file says on which machine and by which process it is written. Files of
    running processes are kept, and those of other machines until they are a day old. A folder with
    very many files is searched only once for each process.
    """
    if _entries.get(folder, 0) > _MANY_ENTRIES:
        return
    count = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for count, entry in enumerate(entries, start=1):  # noqa: B007
            match = _TEMPORARY.fullmatch(entry.name)
            if match and _is_left_over(entry, match["host"], int(match["pid"])):
                with suppress(OSError):
                    os.unlink(entry.path)
    _entries[folder] = count


def is_temporary(name: str) -> bool:
    """Tell whether a file has the name of one that `atomic_path` is still writing."""
    return _TEMPORARY.fullmatch(name) is not None


def _is_left_over(entry: os.DirEntry[str], host: str, pid: int) -> bool:
    if host != _HOST:
        with suppress(OSError):
            return time.time() - entry.stat(follow_symlinks=False).st_mtime > _A_DAY
        return False
    if pid == os.getpid():
        return entry.name not in _ours  # of an earlier process with our number
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


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
