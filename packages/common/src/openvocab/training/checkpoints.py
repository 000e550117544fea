"""Checkpoints that are written completely or not at all; the last good one survives any failure.

Files are detectron2's: `model_0004999.pth` holds `{"model": ..., "iteration": 4999, ...}`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from openvocab.errors import InputError
from openvocab.files import atomic_path, write_text
from openvocab.reading.checkpoints import read_whole

State = dict[str, Any]
_NAME = re.compile(r"model_(\d+)\.pth")
BEST, FINAL = "model_best.pth", "model_final.pth"


class Checkpoints:
    """The checkpoints of a run in its output folder.

    Args:
        folder: the output folder.
        keep: number of numbered checkpoints that stay; None for all.
    """

    def __init__(self, folder: Path, keep: int | None = 2) -> None:
        self.folder, self.keep = folder, keep

    def numbered(self) -> list[Path]:
        """Return the numbered checkpoints, oldest first."""
        found = [p for p in self.folder.glob("model_*.pth") if _NAME.fullmatch(p.name)]
        return sorted(found, key=lambda p: int(p.stem.removeprefix("model_")))

    def path(self, steps: int) -> Path:
        """Return the file of the checkpoint after a number of finished steps."""
        return self.folder / f"model_{steps - 1:07d}.pth"

    def save(self, steps: int, state: Mapping[str, Any]) -> Path | None:
        """Write a checkpoint, then delete the oldest beyond `keep`.

        Returns:
            The file; None if it could not be written, which is said in one sentence. The older ones
            are untouched then, and training can go on.

        Raises:
            KeyboardInterrupt: Ctrl-C came while torch wrote, which reports it as a failed write.
        """
        path = self.path(steps)
        try:
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                torch.save({**state, "iteration": steps - 1}, file)
        except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as either
            if any(isinstance(cause, KeyboardInterrupt) for cause in _causes(error)):
                raise KeyboardInterrupt from None
            if not _is_disk_error(error):
                raise
            print(
                f"warning: checkpoint {path} could not be written ({_reason(error)}); "
                "training goes on, so make room before the next one",
                file=sys.stderr,
            )
            return None
        self.point_to(path)
        for old in self.numbered()[: -self.keep] if self.keep else []:
            old.unlink()
        return path

    def mark(self, path: Path, name: str) -> None:
        """Give a checkpoint a second name, `BEST` or `FINAL`, under which it is never deleted."""
        target = self.folder / name
        temporary = self.folder / f".{name}"
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)  # moving a file to another name of itself does nothing

    def latest(self) -> tuple[Path, State] | None:
        """Return the newest checkpoint that can be read, or None if there is none at all.

        Raises:
            InputError: there are checkpoints, but all are damaged.
        """
        files = self.numbered()
        for path in reversed(files):
            try:
                state: State = read_whole(path)
                return path, state
            except InputError as error:
                print(f"warning: {path} is damaged and skipped: {error}", file=sys.stderr)
        if files:
            raise InputError(f"no checkpoint in {self.folder} can be read; start anew elsewhere")
        return None

    def remove_leftovers(self) -> None:
        """Delete the unfinished files of a run that was killed while it wrote."""
        for path in self.folder.glob(".model_*.pth"):
            path.unlink()

    def point_to(self, path: Path) -> None:
        """Write detectron2's `last_checkpoint`."""
        try:
            write_text(self.folder / "last_checkpoint", path.name)
        except OSError as error:
            print(f"warning: last_checkpoint was not updated ({_reason(error)})", file=sys.stderr)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, what it came from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_disk_error(error: BaseException) -> bool:
    """Return whether an error comes from the disk; torch raises such errors as RuntimeError."""
    if any(isinstance(cause, OSError) for cause in _causes(error)):
        return True
    return "PytorchStreamWriter" in str(error) or "inline_container" in str(error)


def _reason(error: BaseException) -> str:
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return next(iter(str(error).splitlines()), type(error).__name__)
