"""What was downloaded: folders, or zip and tar files that are unpacked once, in safety."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from pathlib import Path

from openvocab.errors import InputError
from openvocab.files import write_text

UNPACKED = ".unpacked"
_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError)


class Source:
    """A folder with what was downloaded, searched as if its archives were unpacked in it.

    Args:
        folder: what the user gave; archives in it are unpacked below `output`, only once.
        output: where the prepared data goes.
        wanted: names of the archives to unpack, without their endings; others are left alone.

    Raises:
        InputError: the folder is missing, or an archive is damaged or would write elsewhere.
    """

    def __init__(self, folder: Path, output: Path, wanted: tuple[str, ...] = ()) -> None:
        if not folder.is_dir():
            raise InputError(f"The source {folder} is no folder; give where the downloads are.")
        self.folder = folder
        self.roots = [folder]
        for archive in sorted(folder.iterdir()):
            ending = next((e for e in reversed(_ENDINGS) if archive.name.endswith(e)), None)
            if ending and archive.name.removesuffix(ending) in wanted:
                self.roots.append(_unpacked(archive, output / UNPACKED))

    def optional(self, *names: str) -> Path | None:
        """Return the first path of these names that is there, or None."""
        for name in names:
            for root in self.roots:
                if (root / name).exists():
                    return root / name
        return None

    def path(self, *names: str) -> Path:
        """Return the first path of these names that is there.

        Raises:
            InputError: none is.
        """
        found = self.optional(*names)
        if found is None:
            raise InputError(
                f"{self.folder} has no {' or '.join(names)}; run 'python -m openvocab.prepare' "
                f"with the name of the set alone to see what to get."
            )
        return found


def _unpacked(archive: Path, below: Path) -> Path:
    target = below / archive.name
    stat = archive.stat()
    version = f"{stat.st_size} {stat.st_mtime_ns}"
    marker = below / f"{archive.name}.complete"
    if marker.is_file() and marker.read_text(encoding="utf-8") == version:
        return target
    target.mkdir(parents=True, exist_ok=True)
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as file:
                _refuse_escapes(archive, file.namelist())
                file.extractall(target)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(target, filter="data")  # refuses links and paths that lead outside
    except tarfile.FilterError as error:
        raise InputError(f"{archive} was refused: {error}; fetch it from its authors.") from None
    except _DAMAGE as error:
        raise InputError(f"{archive} cannot be unpacked ({error}); fetch it again.") from None
    write_text(marker, version)
    return target


def _refuse_escapes(archive: Path, names: list[str]) -> None:
    for name in names:
        if name.startswith(("/", "\\")) or ".." in Path(name).parts or ":" in name[:3]:
            raise InputError(f"{archive} was refused: its member {name!r} leads outside.")
