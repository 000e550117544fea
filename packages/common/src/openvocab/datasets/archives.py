"""Downloads: folders, or zip and tar files that are unpacked once and safely."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

from openvocab.errors import InputError
from openvocab.files import write_text
from openvocab.reading.files import DAMAGE, reason

UNPACKED = ".unpacked"
_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
_MOST_UNPACKED = 200  # times the size of an archive; label maps in few colors reach 50
_SMALL = 1 << 28


class Source:
    """A folder of downloads, in which archives are searched as if they were unpacked.

    Args:
        folder: folder that the user gave; archives in it are unpacked below `output`, only once.
        output: folder for the prepared data.
        wanted: names of the archives to unpack, without their endings; others are not unpacked.

    Raises:
        InputError: the folder is missing, or an archive is damaged or would write elsewhere.
    """

    def __init__(self, folder: Path, output: Path, wanted: tuple[str, ...] = ()) -> None:
        if not folder.is_dir():
            raise InputError(f"the source {folder} is no folder; give where the downloads are")
        self.folder = folder
        self.roots = [folder]
        for archive in sorted(folder.iterdir()):
            ending = next((e for e in reversed(_ENDINGS) if archive.name.endswith(e)), None)
            if ending and archive.name.removesuffix(ending) in wanted:
                self.roots.append(_unpacked(archive, output / UNPACKED))

    def optional(self, *names: str) -> Path | None:
        """Return the first path of these names that exists, or None."""
        for name in names:
            for root in self.roots:
                if (root / name).exists():
                    return root / name
        return None

    def path(self, *names: str) -> Path:
        """Return the first path of these names that exists.

        Raises:
            InputError: none is.
        """
        found = self.optional(*names)
        if found is None:
            raise InputError(
                f"{self.folder} has no {' or '.join(names)}; run 'python -m openvocab.prepare' "
                f"with the name of the set alone to see what to get"
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
                _refuse_bombs(archive, sum(info.file_size for info in file.infolist()))
                file.extractall(target)
        else:
            # The suffix decides, since other packings unpack to a million times their size.
            with tarfile.open(archive, "r:" if archive.suffix == ".tar" else "r:gz") as tar:
                tar.extractall(target, filter=_Careful(archive))
    except tarfile.FilterError as error:
        raise InputError(f"{archive} was refused: {error}; fetch it from its authors") from None
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(
            f"{archive} cannot be unpacked ({reason(error)}); fetch it again"
        ) from None
    write_text(marker, version)
    return target


def _refuse_escapes(archive: Path, names: list[str]) -> None:
    for name in names:
        if name.startswith(("/", "\\")) or ".." in Path(name).parts or ":" in name[:3]:
            raise InputError(
                f"{archive} was refused: its member {name!r} leads outside; "
                "fetch it from its authors"
            )


def _refuse_bombs(archive: Path, unpacked: int) -> None:
    size = archive.stat().st_size
    if unpacked > _MOST_UNPACKED * size + _SMALL:
        raise InputError(
            f"{archive} was refused: its {size} bytes unpack to over {unpacked}, as no data set "
            f"does; fetch it from its authors"
        )


class _Careful:
    """Python's filter for data, which refuses paths that lead outside, with a size limit."""

    def __init__(self, archive: Path) -> None:
        self.archive, self.unpacked = archive, 0

    def __call__(self, member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        self.unpacked += member.size
        _refuse_bombs(self.archive, self.unpacked)
        return tarfile.data_filter(member, path)
