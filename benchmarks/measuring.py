"""How the benchmarks measure: times beside plain matrix multiply, and peak memory, in one run."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from openvocab.files import write_text

SIDE = 4096


def add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every measuring script has."""
    parser.add_argument("--output", type=Path, help="JSON file for the measurements")
    parser.add_argument("--threads", type=int, help="threads of torch; default: all cores")


def report(result: Mapping[str, Any], output: Path | None) -> None:
    """Print measurements as JSON, and write them if a file was named."""
    text = json.dumps(result, indent=2)
    print(text)
    if output:
        write_text(output, text + "\n")


def best_time(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the shortest of several runs in seconds, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def best_times(works: dict[str, Callable[[], object]], repeats: int = 3) -> dict[str, float]:
    """Time several things in turn, so that other work on the machine meets all of them."""
    for work in works.values():
        work()
    best = dict.fromkeys(works, float("inf"))
    for _ in range(repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def matrix_product(dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """Return the plain 4096 x 4096 x 4096 product that everything is measured against."""
    a, b = torch.randn(SIDE, SIDE).to(dtype), torch.randn(SIDE, SIDE).to(dtype)
    return lambda: a @ b


def matrix_throughput(seconds: float) -> float:
    """Return the operations per second of a `matrix_product` that took this long."""
    return 2 * SIDE**3 / seconds


@torch.inference_mode()
def count_flops(work: Callable[[], object]) -> int:
    """Count the floating-point operations of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def peak_memory_gib() -> float:
    """Return this process's largest resident memory so far.

    Not `ru_maxrss`, which on Linux a process inherits from the one that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def in_fresh_process(
    script: str | Path, arguments: Sequence[str], *, show: bool = False
) -> dict[str, Any]:
    """Run a script that prints JSON as its last line; add the process's peak resident memory.

    The script ends when this process does, however that ends: its standard input is a pipe that
    then closes.

    Args:
        script: file of the script.
        arguments: its arguments.
        show: let its messages and bars through while it runs.
    """
    folders = [str(Path(script).parent), str(Path(__file__).parent)]
    code = (
        "import json, os, runpy, sys, threading\n"
        "gone = lambda: (os.read(0, 1), os._exit(1))\n"
        "threading.Thread(target=gone, daemon=True).start()\n"
        f"sys.argv = {[str(script), *arguments]!r}\n"
        f"sys.path[:0] = {folders!r}\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "from measuring import peak_memory_gib\n"
        "print(json.dumps({'peak_gib': peak_memory_gib()}))\n"
    )
    reading, writing = os.pipe()  # nobody writes
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=reading,
            stdout=subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(reading)
        os.close(writing)
    if done.returncode:
        said = "see above" if show else f"\n{done.stderr[-2000:]}"
        raise RuntimeError(f"{script} {' '.join(arguments)} failed: {said}")
    *_, result, peak = done.stdout.strip().splitlines()
    return {**json.loads(result), **json.loads(peak)}
