"""Kills commands at random moments, lets them go on, and compares what they leave.

    python -m benchmarks.experiments.kill --kills 1000 --output benchmarks/measured/kill.json

Each target first runs undisturbed, which also counts its file operations and its seconds. Then it
is killed again and again in folders of its own: at a random time, exactly before a random file
operation, or a moment after one, while bytes are on their way. After a few kills it may end. What
it leaves has to be equal to the undisturbed run's. What was finished before a kill has to be
finished after it, and no unfinished file and no process may stay behind. Needs Linux.
"""

from __future__ import annotations

import json
import mmap
import os
import platform
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch

import openvocab
from benchmarks.experiments.kill_targets import TARGETS, Target
from benchmarks.measuring import start_server
from openvocab.cli import CommandParser, run
from openvocab.errors import InputError
from openvocab.files import write_text
from openvocab.inference.layout import JOURNAL

PATIENCE = 60.0  # seconds that a life may take, and processes may outlive it
LONGEST = 5  # kills in one folder before the work may end
MODULES = "modules.txt"  # what the last life that came to its end had imported
BAD = ("lost", "leftovers", "orphans", "differences", "complaints")
_SHOWN = 20
_SIGNALS = (*[signal.SIGKILL] * 8, signal.SIGTERM, signal.SIGINT)
# How a life may end that was asked to stop: by the signal, or with the exit code that says so.
_STOPPED = {signal.SIGTERM: (-signal.SIGTERM, 143), signal.SIGINT: (-signal.SIGINT, 130)}
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


@dataclass
class Toll:
    """What became of one target.

    Attributes:
        kills: lives that a signal ended.
        by: these by signal.
        before_operations: kills exactly before a file operation; the others were by the clock or a
            moment after one.
        resumed: lives that went on after a kill.
        ended: folders in which the work came to its end.
        lost: kills after which finished work was gone, or that the work could not go on from.
        leftovers: unfinished files that were there at the end.
        orphans: processes that outlived their life.
        differences: ends that are not equal to the undisturbed run's.
        complaints: lives that said more than a sentence.
        seconds, operations: of the undisturbed run.
    """

    kills: int = 0
    by: dict[str, int] = field(default_factory=dict)
    before_operations: int = 0
    resumed: int = 0
    ended: int = 0
    lost: int = 0
    leftovers: int = 0
    orphans: int = 0
    differences: int = 0
    complaints: int = 0
    seconds: float = 0.0
    operations: int = 0


@dataclass(frozen=True)
class End:
    """How a life ended.

    Attributes:
        code: the exit code, or minus the signal; None: it never did, and was killed.
        signaled: whether the signal was sent before it ended by itself.
        said: what it printed.
        seconds: that it took.
        operations: on files.
    """

    code: int | None
    signaled: bool
    said: str
    seconds: float
    operations: int


class Campaign:
    """Kills one target.

    Args:
        target: what to kill.
        folder: for everything that is written; not there yet.
        rng: decides when.

    Raises:
        InputError: the target does not even come to an end undisturbed.
    """

    def __init__(self, target: Target, folder: Path, rng: random.Random) -> None:
        self.target, self.folder, self.rng = target, folder, rng
        self.toll, self.findings = Toll(), list[dict[str, Any]]()
        self.inputs, self.number = folder / "inputs", 0
        self.inputs.mkdir(parents=True)
        os.environ["OPENVOCAB_CACHE"] = str(folder / "cache")
        self.sessions: list[int] = []
        _in_child(lambda: target.make(self.inputs))
        whole = folder / "undisturbed"
        for _ in range(2):  # the first run says what has to be imported, once and here
            shutil.rmtree(whole, ignore_errors=True)
            end = self._live(whole, None)
            if end.code != 0:
                raise InputError(f"{target.name} fails undisturbed: {end.said[-800:]!r}")
            _import_all(self.folder / MODULES)
        self.toll.seconds, self.toll.operations = round(end.seconds, 2), end.operations
        self.wanted = target.outcome(whole)

    def kill(self, times: int) -> None:
        """Kill so many times."""
        while self.toll.kills < times:
            self.number += 1
            output = self.folder / f"{self.number:04d}"
            self._kill_in(output, min(LONGEST, times - self.toll.kills))
            shutil.rmtree(output, ignore_errors=True)
        self._count_orphans()

    def _kill_in(self, output: Path, longest: int) -> None:
        """Kill and go on in one folder, until the work ends."""
        killed, done = 0, 0
        while True:
            moment = self._draw() if killed < longest else None
            end = self._live(output, moment)
            self.toll.resumed += killed > 0
            if "Traceback" in end.said:
                self._find("complaints", moment, end.said[-1500:])
            if end.code == 0:
                break
            if moment is None or not end.signaled or not _is_stopped(end.code, moment):
                self._find("lost", moment, f"ended with {end.code}: {end.said[-1500:]}")
                return
            killed += 1
            self._count(moment)
            now = self.target.finished(output)
            if now < done:
                self._find("lost", moment, f"{done} parts were finished, now {now}")
            done = now
        self.toll.ended += 1
        self._compare(output, moment)

    def _compare(self, output: Path, moment: Moment | None) -> None:
        hidden = [*output.rglob(".*"), *(self.folder / "cache").rglob(".*")]
        left = [path for path in hidden if path.name != JOURNAL]
        if left:
            self._find(
                "leftovers", moment, ", ".join(str(p.relative_to(self.folder)) for p in left)
            )
        try:
            found = self.target.outcome(output)
        except Exception:  # what is not there or damaged is a difference, too
            self._find("differences", moment, traceback.format_exc()[-800:])
            return
        if found != self.wanted:
            self._find("differences", moment, "; ".join(_differences(self.wanted, found))[:1500])

    def _draw(self) -> Moment:
        """Draw when to kill: by the clock, exactly at a file operation, or shortly after one."""
        number = self.rng.choice(_SIGNALS)
        way = self.rng.randrange(3)
        if way == 0:
            return Moment(number, None, self.rng.uniform(0, self.toll.seconds))
        operation = self.rng.randrange(1, max(2, self.toll.operations + 1))
        return Moment(number, operation, 0.0 if way == 1 else self.rng.uniform(0, 0.004))

    def _count(self, moment: Moment) -> None:
        self.toll.kills += 1
        name = moment.number.name
        self.toll.by[name] = self.toll.by.get(name, 0) + 1
        self.toll.before_operations += _is_sent_by_itself(moment)

    def _find(self, what: str, moment: Moment | None, words: str) -> None:
        setattr(self.toll, what, getattr(self.toll, what) + 1)
        when = asdict(moment) | {"number": moment.number.name} if moment else None
        entry = {"target": self.target.name, "folder": self.number, "is": what, "words": words}
        self.findings.append(entry | {"moment": when})
        print(json.dumps(self.findings[-1]), file=sys.stderr, flush=True)

    def _live(self, output: Path, moment: Moment | None) -> End:
        """Do the work in a child, and end it at its moment."""
        output.mkdir(exist_ok=True)
        counter, said = mmap.mmap(-1, 8), self.folder / "said.txt"
        reading, writing = os.pipe()
        begin = time.monotonic()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _be(self.target, self.inputs, output, moment, counter, writing, said)
        os.close(writing)
        self.sessions.append(child)
        signaled = _end_at(child, moment, reading)
        os.close(reading)
        ended = _wait(child)
        return End(
            ended,
            signaled or _is_sent_by_itself(moment),
            said.read_text("utf-8", "replace"),
            time.monotonic() - begin,
            int.from_bytes(counter[:], "little"),
        )

    def _count_orphans(self) -> None:
        """Wait a while for the children's children, and count those that stay."""
        deadline = time.monotonic() + PATIENCE
        while left := list(_living(set(self.sessions))):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        for pid in left:
            self._find("orphans", None, f"process {pid}")
            os.kill(pid, signal.SIGKILL)


def _is_stopped(code: int | None, moment: Moment) -> bool:
    return code in _STOPPED.get(moment.number, (-moment.number,))


def _is_sent_by_itself(moment: Moment | None) -> bool:
    """Tell whether the child itself sends the signal, since nobody else can be that exact."""
    return moment is not None and moment.operation is not None and not moment.delay


def _differences(wanted: Any, found: Any, at: str = "") -> Iterator[str]:
    """Say where two plain values differ."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in sorted({*map(str, wanted), *map(str, found)}):
            yield from _differences(wanted.get(key), found.get(key), f"{at}/{key}")
    elif wanted != found:
        yield f"{at}: {str(wanted)[:200]} is {str(found)[:200]}"


def _be(
    target: Target,
    inputs: Path,
    output: Path,
    moment: Moment | None,
    counter: mmap.mmap,
    writing: int,
    said: Path,
) -> NoReturn:
    """Be the child: count operations on files, end or report at the chosen one, and work."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(out, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
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
                os.kill(os.getpid(), moment.number)

    sys.addaudithook(watch)
    code = 1
    try:
        code = target.live(inputs, output)
        said.with_name(MODULES).write_text("\n".join(sys.modules), "utf-8")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _import_all(names: Path) -> None:
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
    if moment is None or _is_sent_by_itself(moment):
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
        os.kill(child, moment.number)
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


def _in_child(work: Callable[[], None]) -> None:
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


def _living(sessions: set[int]) -> Iterator[int]:
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


def campaign(
    kills: int, seed: int, folder: Path, targets: Sequence[Target] = TARGETS, *, say: Any = None
) -> dict[str, Any]:
    """Kill targets, in proportion to their shares; return the record as plain data.

    Args:
        kills: of all of them together.
        seed: of the moments.
        folder: for everything that is written.
        targets: what to kill.
        say: is told one line for each target.

    Raises:
        InputError: a target does not even come to an end undisturbed.
    """
    if any(target.name == "run_all" for target in targets):
        start_server()
    torch.set_num_threads(1)
    begin = time.monotonic()
    tolls, findings = {}, []
    shares, left = sum(target.share for target in targets), kills
    for target in targets:
        times = round(left * target.share / shares)
        shares, left = shares - target.share, left - times
        one = Campaign(target, folder / target.name, random.Random(f"{seed} {target.name}"))
        one.kill(times)
        shutil.rmtree(folder / target.name)
        tolls[target.name] = one.toll
        findings += one.findings
        if say is not None:
            say(f"{target.name}: {json.dumps(asdict(one.toll))}")
    return {
        "version": openvocab.__version__,
        "seed": seed,
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "totals": {
            name: sum(getattr(toll, name) for toll in tolls.values())
            for name in ("kills", "before_operations", "resumed", "ended", *BAD)
        },
        "targets": {name: asdict(toll) for name, toll in tolls.items()},
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "findings": findings[:_SHOWN],
    }


def sentence(record: Mapping[str, Any]) -> str:
    """Say what a record holds, as SECURITY.md quotes it."""
    totals = record["totals"]
    tolls = record["targets"].values()
    counts = {n.name: sum(toll["by"].get(n.name, 0) for toll in tolls) for n in set(_SIGNALS)}
    by = ", ".join(f"{counts[name]} by {name}" for name in sorted(counts) if counts[name])
    return (
        f"{totals['kills']:,} kills of {len(tolls)} commands and writers ({by}), "
        f"{totals['before_operations']} of them exactly before an operation on a file; "
        f"{totals['resumed']:,} went on, with "
        f"{totals['lost']} losses of finished work, {totals['differences']} differences, "
        f"{totals['leftovers']} unfinished files, {totals['orphans']} processes left behind and "
        f"{totals['complaints']} tracebacks."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    parser = CommandParser(
        prog="python -m benchmarks.experiments.kill", description=__doc__.split("\n\n")[0]
    )
    names = [target.name for target in TARGETS]
    parser.add_argument("--kills", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--only", nargs="+", choices=names, help="targets (default: all)")
    parser.add_argument("--output", type=Path, help="JSON file for the record")
    args = parser.parse_args(argv)
    chosen = [target for target in TARGETS if not args.only or target.name in args.only]
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(
            args.kills, args.seed, Path(folder), chosen,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
    if args.output:
        write_text(args.output, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return int(any(found["totals"][name] for name in BAD))


if __name__ == "__main__":
    sys.exit(run(main))
