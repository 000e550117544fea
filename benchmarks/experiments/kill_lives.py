"""Lives of the kill campaign: a target works in a child, which ends at a chosen moment."""

from __future__ import annotations

import mmap
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.experiments.kill_targets import Target
from openvocab.cli import INTERRUPTED
from openvocab.errors import InputError
from openvocab.training.loop import TERMINATED

PATIENCE = 300.0  # seconds that a life may take
INPUTS = "inputs"
MODULES = "modules.txt"  # what the last life that came to its end had imported
_SAID = "said.txt"
_WRITES = (
    "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod",
    "tempfile.mkstemp", "shutil.copyfile",
)  # fmt: skip


@dataclass(frozen=True)
class Moment:
    """When a life is ended.

    Attributes:
        number: of the signal.
        operation: the file operation before which, or shortly after which; None: by the clock.
        delay: seconds from there, or from the beginning.
    """

    number: signal.Signals
    operation: int | None
    delay: float


@dataclass(frozen=True)
class End:
    """How a life ended.

    Attributes:
        child: the number of its process and session.
        code: the exit code, or minus the signal; None: it never did, and was killed.
        signaled: whether the signal was sent before it ended by itself.
        said: what it printed.
        seconds: that it took.
        operations: on files.
    """

    child: int
    code: int | None
    signaled: bool
    said: str
    seconds: float
    operations: int


def live(target: Target, folder: Path, output: Path, moment: Moment | None) -> End:
    """Let a target work in a child, and end that at its moment.

    Args:
        target: what works.
        folder: folder of the campaign, with the inputs in `INPUTS`.
        output: folder for what the target writes; a life before may have begun.
        moment: when the child is ended; None: never.
    """
    output.mkdir(exist_ok=True)
    counter = mmap.mmap(-1, 8)
    reading, writing = os.pipe()
    begin = time.monotonic()
    with _interrupts_held():  # until the child is what they are for
        child = os.fork()
        if child == 0:
            os.close(reading)
            _be(target, folder, output, moment, counter, writing)
    os.close(writing)
    signaled = _end_at(child, moment, reading)
    os.close(reading)
    code = _wait(child)
    return End(
        child,
        code,
        signaled or is_sent_by_itself(moment),
        (folder / _SAID).read_text("utf-8", "replace"),
        time.monotonic() - begin,
        int.from_bytes(counter[:], "little"),
    )


def is_stopped(end: End, moment: Moment) -> bool:
    """Tell whether a life ended as its signal demands: by it, or in order with its exit code."""
    if end.code == INTERRUPTED and moment.number == signal.SIGINT:
        return end.said.splitlines().count("interrupted") == 1
    return end.code in (-moment.number, TERMINATED if moment.number == signal.SIGTERM else None)


def is_sent_by_itself(moment: Moment | None) -> bool:
    """Tell whether the child itself sends the signal, since nobody else can be that exact."""
    return moment is not None and moment.operation is not None and not moment.delay


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let SIGINT wait, as in the moments in which nobody could take it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _be(
    target: Target,
    folder: Path,
    output: Path,
    moment: Moment | None,
    counter: mmap.mmap,
    writing: int,
) -> NoReturn:
    """Be the child: count operations on files, end or report at the chosen one, and work."""
    os.setsid()
    out = os.open(folder / _SAID, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(out, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
    _watch(output, moment, counter, writing)
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        code = target.live(folder / INPUTS, output)
        (folder / MODULES).write_text("\n".join(sys.modules), "utf-8")
    except KeyboardInterrupt:  # before the command takes over, or when it has ended
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(output: Path, moment: Moment | None, counter: mmap.mmap, writing: int) -> None:
    """Count the operations that change something in a folder, and act before the chosen one."""
    below, count = str(output), 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in _WRITES and event != "open":
            return
        if not _is_write(event, arguments, below):
            return
        count += 1
        counter[:] = count.to_bytes(8, "little")
        if moment is not None and count == moment.operation:
            if moment.delay:
                os.write(writing, b"!")
            else:
                _send(os.getpid(), moment.number)

    sys.addaudithook(watch)


def _send(child: int, number: signal.Signals) -> None:
    """Send a signal to a child; Ctrl-C reaches what the child has started, too."""
    if number == signal.SIGINT and os.getpgid(child) == child:
        os.killpg(child, number)
    else:
        os.kill(child, number)


def import_all(names: Path) -> None:
    """Import what a life imported, so that later ones need not."""
    for name in names.read_text("utf-8").split("\n"):
        if name not in sys.modules and name.partition(".")[0] != "__main__":
            with suppress(ImportError):  # a module of a module's own making
                import_module(name)


def _is_write(event: str, arguments: tuple[Any, ...], below: str) -> bool:
    """Tell operations that change something in a folder."""
    path = arguments[0]
    if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(below):
        return False
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    return event != "open" or bool(arguments[2] & writes)


def _end_at(child: int, moment: Moment | None, reading: int) -> bool:
    """Wait until a child ends or its moment has come; return whether it was sent the signal."""
    if moment is None or is_sent_by_itself(moment):
        return False
    life = os.pidfd_open(child)
    try:
        if moment.operation is None:
            ended = bool(select.select([life], [], [], moment.delay)[0])
        else:
            ready = select.select([life, reading], [], [], PATIENCE)[0]
            ended = reading not in ready or not os.read(reading, 1)
            if not ended:
                time.sleep(moment.delay)
        if ended:
            return False
        _send(child, moment.number)
        return True
    finally:
        os.close(life)


def _wait(child: int) -> int | None:
    """Wait for a child's end; return its exit code, or None if it had to be killed."""
    life = os.pidfd_open(child)
    ended = bool(select.select([life], [], [], PATIENCE)[0])
    os.close(life)
    if not ended:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if ended else None


def in_child(work: Callable[[], None]) -> None:
    """Do something that must not leave threads in this process."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise InputError("the inputs of the campaign could not be made; see above")


def living(sessions: set[int]) -> Iterator[int]:
    """Yield the processes of these sessions, and the children of the server that measures."""
    from multiprocessing import forkserver

    server = getattr(forkserver._forkserver, "_forkserver_pid", None)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended since
            continue
        state, parent, session = fields[0], int(fields[1]), int(fields[3])
        if state != "Z" and (session in sessions or (server and parent == server)):
            yield int(entry.name)
