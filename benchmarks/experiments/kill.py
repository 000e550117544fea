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
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import openvocab
from benchmarks.experiments import kill_lives
from benchmarks.experiments.kill_lives import INPUTS, MODULES, End, Moment
from benchmarks.experiments.kill_targets import TARGETS, Target
from benchmarks.measuring import start_server
from openvocab.cli import CommandParser, run
from openvocab.errors import InputError
from openvocab.files import write_text
from openvocab.inference.layout import JOURNAL

STAY = 60.0  # seconds that processes may outlive their life
LONGEST = 5  # kills in one folder before the work may end
BAD = ("lost", "leftovers", "orphans", "differences", "complaints")
_SHOWN = 20
_SIGNALS = (*[signal.SIGKILL] * 6, *[signal.SIGTERM] * 2, *[signal.SIGINT] * 2)


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
        self.number = 0
        (folder / INPUTS).mkdir(parents=True)
        os.environ["OPENVOCAB_CACHE"] = str(folder / "cache")
        self.sessions: list[int] = []
        kill_lives.in_child(lambda: target.make(folder / INPUTS))
        whole = folder / "undisturbed"
        for _ in range(2):  # the first run says what has to be imported, once and here
            shutil.rmtree(whole, ignore_errors=True)
            end = self._live(whole, None)
            if end.code != 0:
                raise InputError(f"{target.name} fails undisturbed: {end.said[-800:]!r}")
            kill_lives.import_all(self.folder / MODULES)
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
            if moment is None or not end.signaled or not kill_lives.is_stopped(end, moment):
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
        self.toll.before_operations += kill_lives.is_sent_by_itself(moment)

    def _find(self, what: str, moment: Moment | None, words: str) -> None:
        setattr(self.toll, what, getattr(self.toll, what) + 1)
        when = asdict(moment) | {"number": moment.number.name} if moment else None
        entry = {"target": self.target.name, "folder": self.number, "is": what, "words": words}
        self.findings.append(entry | {"moment": when})
        print(json.dumps(self.findings[-1]), file=sys.stderr, flush=True)

    def _live(self, output: Path, moment: Moment | None) -> End:
        end = kill_lives.live(self.target, self.folder, output, moment)
        self.sessions.append(end.child)
        return end

    def _count_orphans(self) -> None:
        """Wait a while for the children's children, and count those that stay."""
        deadline = time.monotonic() + STAY
        while left := list(kill_lives.living(set(self.sessions))):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        for pid in left:
            self._find("orphans", None, f"process {pid}")
            os.kill(pid, signal.SIGKILL)


def _differences(wanted: Any, found: Any, at: str = "") -> Iterator[str]:
    """Say where two plain values differ."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in sorted({*map(str, wanted), *map(str, found)}):
            yield from _differences(wanted.get(key), found.get(key), f"{at}/{key}")
    elif wanted != found:
        yield f"{at}: {str(wanted)[:200]} is {str(found)[:200]}"


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
