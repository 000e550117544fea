"""The progress of a long run: one changing line in a terminal, or a few lines in a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from openvocab.errors import one_line

_IN_TERMINAL, _IN_LOG = 0.1, 10.0  # seconds between two lines


class Progress:
    """Counts images, and prints to stderr.

    In a terminal one line is updated; in a file a line is added every ten seconds.

    Args:
        total: how many images there are; 0 where nobody knows.
        quiet: print failures only.
        clock: gives seconds.
    """

    def __init__(
        self, total: int, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.done, self.failed, self.skipped = total, 0, 0, 0
        self._clock, self._stream = clock, sys.stderr
        self._terminal = _is_terminal(self._stream)
        self._silent = quiet or total == 1
        self._start = self._last = clock()
        self._shown = False

    def advance(self) -> None:
        """Count an image that is done."""
        self.done += 1
        self._show()

    def fail(self, message: str) -> None:
        """Count an image that cannot be used, and print why at once."""
        self.failed += 1
        self._clear()
        self._print(one_line(message) + "\n")
        self._show()

    def skip(self) -> None:
        """Count an image whose results are there already."""
        self.skipped += 1

    def close(self) -> None:
        """Take the line away from a terminal."""
        self._clear()

    def _show(self) -> None:
        now = self._clock()
        if self._silent or now - self._last < (_IN_TERMINAL if self._terminal else _IN_LOG):
            return
        self._last = now
        line = self._line(now - self._start)
        if self._terminal:
            width = shutil.get_terminal_size().columns
            self._clear()
            self._print(line[: width - 1])
            self._shown = True
        else:
            self._print(line + "\n")

    def _line(self, seconds: float) -> str:
        new = self.done + self.failed
        rate = new / seconds if seconds > 0 else 0.0
        of = f" of {self.total}" if self.total else ""
        parts = [f"{new + self.skipped}{of} images"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if rate > 0:
            parts.append(f"{rate:.1f} per second")
        if rate > 0 and self.total:
            parts.append(f"{_duration((self.total - self.skipped - new) / rate)} left")
        return ", ".join(parts)

    def _clear(self) -> None:
        if self._shown:
            self._print("\r\x1b[K")
            self._shown = False

    def _print(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError, AttributeError):  # nobody listens: the results are in files
            self._silent = True


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it was closed
        return False


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
