"""Throws damaged and hostile files at every reader, and counts what is not one sentence.

    python -m benchmarks.experiments.fuzz --inputs 50000 --output benchmarks/measured/fuzz.json

Each input is a valid or a hostile seed that a seeded generator mutates. Readers run in forked
children under limits of time and memory; a planted canary shows whether anything of a file ran or
was written outside. An input may be read or refused with an `InputError` of one printable line;
everything else is counted and listed: a traceback, a crash, a hang, too much memory, a canary.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import openvocab
from benchmarks.experiments.fuzz_seeds import READERS, Reader, Seed, make_seeds
from benchmarks.measuring import peak_memory_gib
from openvocab.cli import CommandParser, run
from openvocab.errors import InputError
from openvocab.files import write_text
from openvocab.reading.json_files import parse_json

SECONDS = 30.0  # of processor time
PATIENCE = 600.0  # seconds on the clock, which say little on a busy machine
BYTES = 4 << 30  # for files below 1 MB, over what the process has before
BATCH = 200
_SHOWN = 20
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1)
_WORDS = (
    *(b"-1", b"0", b"1e999", b"NaN", b"99999999999999999999", b"null", b"true", b"{}", b"[]"),
    *(b"[" * 300, b"\x00", b'"\\ud800"', b"*a", b"&a ", b"<<: *a", b"!!python/name:os.system "),
    *(b"../../", b"\xff\xfe", b"\x1b[2J", b"\n", b'"', b"'", b"~", b"/dev/zero", b"9" * 5000),
)


@dataclass
class Tally:
    """What came of the inputs.

    Attributes:
        outcomes: number of inputs for each kind of input and outcome.
        findings: outcomes that should not occur, up to the number that is shown.
        slowest: seconds of processor time of the slowest input.
        largest: bytes that the largest child grew to, over its beginning.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)
    slowest: float = 0.0
    largest: int = 0

    def add(self, kind: str, outcome: str, number: int, words: str) -> None:
        """Count an input; one that is neither read nor refused is a finding."""
        self.outcomes[kind, outcome] += 1
        if outcome not in ("read", "refused") and len(self.findings) < _SHOWN:
            self.findings.append({"kind": kind, "input": number, "is": outcome, "words": words})

    def bad(self) -> int:
        """Return how many inputs were neither read nor refused."""
        return sum(n for (_, outcome), n in self.outcomes.items() if outcome not in GOOD)


GOOD = ("read", "refused")


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Damage data in one to four ways; archives also inside their records."""
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        if data[:2] == b"PK" and rng.random() < 0.6:
            data = _repacked(data, rng, others)
        else:
            data = _damaged(data, rng, others)
    return data


def _damaged(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    place = rng.randrange(len(data) + 1)
    length = min(rng.choice((1, 2, 4, 8, 64, 1024)), len(data) - place)
    match rng.randrange(8):
        case 0:  # flip one bit
            if not data:
                return data
            place = min(place, len(data) - 1)
            flipped = data[place] ^ (1 << rng.randrange(8))
            return data[:place] + bytes([flipped]) + data[place + 1 :]
        case 1:  # a number in the place of another
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(_NUMBERS) % (1 << (8 * width))
            order: Literal["little", "big"] = rng.choice(("little", "big"))
            return data[:place] + number.to_bytes(width, order) + data[place + width :]
        case 2:  # cut off
            return data[:place]
        case 3:  # leave out
            return data[:place] + data[place + length :]
        case 4:  # repeat
            return (
                data[:place] + data[place : place + length] * rng.choice((2, 3, 50)) + data[place:]
            )
        case 5:  # a hostile word
            return data[:place] + rng.choice(_WORDS) + data[place + rng.choice((0, length)) :]
        case 6:  # the end of another seed
            other = rng.choice(others)
            return data[:place] + other[rng.randrange(len(other) + 1) :]
    return data[:place] + rng.randbytes(length) + data[place + length :]


def _repacked(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Damage one record of a zip archive, so that the archive itself stays whole."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # damaged already: nothing to repack
        return _damaged(data, rng, others)
    if not records:
        return data
    small = [name for name in records if name.endswith(("data.pkl", ".py", ".json"))]
    chosen = rng.choice(small if small and rng.random() < 0.7 else list(records))
    records[chosen] = _damaged(records[chosen], rng, others)
    packed = io.BytesIO()
    packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(packed, "w", packing) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in records.items():
            archive.writestr(name, content)
    return packed.getvalue()


def plan(number: int, seed: int, seeds: Sequence[Seed]) -> tuple[Reader, bytes, str]:
    """Return the reader, the content and the suffix of one input, from its number alone."""
    rng = random.Random(f"{seed} {number}")
    chosen = rng.choice(seeds)
    reader = rng.choice([r for r in READERS if r.kind == chosen.kind])
    others = [other.data for other in seeds if other.kind == chosen.kind]
    return reader, mutate(chosen.data, rng, others), chosen.suffix


def attempt(reader: Reader, file: Path) -> tuple[str, str]:
    """Let a reader read a file; return the outcome and what was said."""
    try:
        reader.read(file)
    except InputError as error:
        words = str(error)
        return ("refused", "") if words.isprintable() and words else ("unprintable", repr(words))
    except BaseException as error:  # the point of it all
        return "traceback", f"{type(error).__name__}: {error}"[:300]
    return "read", ""


def campaign(inputs: int, seed: int, folder: Path) -> Tally:
    """Run so many inputs.

    Args:
        inputs: number of inputs.
        seed: seed of the generator; the same seed gives the same inputs.
        folder: folder for the files and the canary.
    """
    canary = folder / "canary"
    os.environ["OPENVOCAB_FUZZ_CANARY"] = str(canary)
    seeds, tally = make_seeds(canary), Tally()
    start = 0
    while start < inputs:
        start = _batch(start, min(start + BATCH, inputs), seed, seeds, folder, tally)
        for path in (canary, folder.parent / "canary", folder.parent.parent / "canary"):
            if path.exists():
                path.unlink()
                tally.add("canary", "canary", start, "a file ran or wrote outside")
    return tally


def _batch(
    start: int, end: int, seed: int, seeds: Sequence[Seed], folder: Path, tally: Tally
) -> int:
    """Run inputs in one child; return where to go on, behind an input that ended the child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _live(start, end, seed, seeds, folder, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        number, outcome = _listen(pipe, start, tally)
    if outcome:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if number < end:
        reader, _, _ = plan(number, seed, seeds)
        tally.add(reader.kind, outcome or "crash", number, f"status {status}")
        return number + 1
    return end


def _listen(pipe: Any, number: int, tally: Tally) -> tuple[int, str]:
    """Note what the child reports; return the number of the next input, and "hang" if it hung."""
    while True:
        if not select.select([pipe], [], [], PATIENCE)[0]:
            return number, "hang"
        line = pipe.readline()
        if not line:
            return number, ""
        report = parse_json(line.decode(), "the report of a child", "an outcome")
        outcome = report["outcome"]
        if report["seconds"] > SECONDS:
            outcome = "hang"
        if report["grown"] > BYTES:
            outcome = "memory"
        tally.slowest = max(tally.slowest, report["seconds"])
        tally.largest = max(tally.largest, report["grown"])
        tally.add(report["kind"], outcome, number, report["words"])
        number += 1


def _live(
    start: int, end: int, seed: int, seeds: Sequence[Seed], folder: Path, writing: int
) -> None:
    """Be the child: read each input, and report."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    warnings.simplefilter("ignore")
    base = _peak()
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tempfile.TemporaryDirectory(dir=folder) as below:
        for number in range(start, end):
            reader, data, suffix = plan(number, seed, seeds)
            file = Path(below, f"{number}{suffix}")
            file.write_bytes(data)
            begin = time.process_time()
            outcome, words = attempt(reader, file)
            report = {
                "kind": reader.kind,
                "outcome": outcome,
                "words": f"{reader.name}: {words}",
                "seconds": time.process_time() - begin,
                "grown": _peak() - base,
            }
            os.write(writing, json.dumps(report).encode() + b"\n")
            if file.is_file():
                file.unlink()
    os._exit(0)


def _peak() -> int:
    return round(peak_memory_gib() * 2**30)


def report(tally: Tally, inputs: int, seed: int, seconds: float) -> dict[str, Any]:
    """Return the record of a campaign as plain data."""
    kinds: dict[str, dict[str, int]] = {}
    for (kind, outcome), count in sorted(tally.outcomes.items()):
        kinds.setdefault(kind, {})[outcome] = count
    totals = Counter[str]()
    for (_, outcome), count in tally.outcomes.items():
        totals[outcome] += count
    bad = ("traceback", "crash", "hang", "memory", "canary", "unprintable")
    return {
        "version": openvocab.__version__,
        "inputs": inputs,
        "seed": seed,
        "limits": {"seconds": SECONDS, "bytes": BYTES},
        "totals": {outcome: totals[outcome] for outcome in (*GOOD, *bad)},
        "kinds": kinds,
        "slowest_seconds": round(tally.slowest, 2),
        "largest_growth_mib": round(tally.largest / 2**20),
        "minutes": round(seconds / 60, 1),
        "findings": tally.findings,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    parser = CommandParser(
        prog="python -m benchmarks.experiments.fuzz", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--inputs", type=int, default=50_000, help="how many (default: 50000)")
    parser.add_argument("--seed", type=int, default=0, help="of the generator (default: 0)")
    parser.add_argument("--output", type=Path, help="JSON file for the record")
    args = parser.parse_args(argv)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        below = Path(folder, "a", "b")
        below.mkdir(parents=True)
        tally = campaign(args.inputs, args.seed, below)
    found = report(tally, args.inputs, args.seed, time.monotonic() - begin)
    if args.output:
        write_text(args.output, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 1 if tally.bad() else 0


if __name__ == "__main__":
    sys.exit(run(main))
