"""Measuring time, relative to a plain matrix product in the same run, and peak memory."""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from openvocab.cli import print_warning
from openvocab.files import write_text
from openvocab.reading.json_files import parse_json

SIDE = 4096
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
# Importing takes seconds: a server does it once, and processes that measure are its forks.
_PRELOADED = "benchmarks.preloaded"


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


def processor_name() -> str:
    """Return the processor's name, its instructions for bfloat16 and how many cores there are."""
    info, fields = Path("/proc/cpuinfo"), {}
    if info.is_file():
        pairs = (line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in pairs}
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = fields.get("flags", "").split()
    known = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX"}
    return ", ".join([name, *(known[f] for f in known if f in flags), f"{os.cpu_count()} cores"])


def conditions(device: str) -> dict[str, Any]:
    """Return what a record of speed says about how it was measured."""
    return {
        "torch": torch.__version__,
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "device": device,
    }


def synchronize(device: str) -> None:
    """Wait until a device has done all that it was given, as a clock must."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def timed(work: Callable[[], Any], repeats: int = 1, device: str = "cpu") -> tuple[float, Any]:
    """Return the shortest of several runs in seconds, and the last result."""
    best, result = float("inf"), None
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        result = work()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best, result


def best_time(work: Callable[[], object], repeats: int = 3, device: str = "cpu") -> float:
    """Return the shortest of several runs in seconds, after one that does not count."""
    work()
    return timed(work, repeats, device)[0]


def best_times(
    works: dict[str, Callable[[], object]], repeats: int = 3, device: str = "cpu"
) -> dict[str, float]:
    """Time several things in turn, so that other work on the machine meets all of them."""
    for work in works.values():
        work()
    best = dict.fromkeys(works, float("inf"))
    for _ in range(repeats):
        for name, work in works.items():
            best[name] = min(best[name], timed(work, 1, device)[0])
    return best


def matrix_product(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Callable[[], object]:
    """Return the plain 4096 x 4096 x 4096 product that everything is measured against."""
    a, b = (torch.randn(SIDE, SIDE).to(device, dtype) for _ in range(2))
    return lambda: a @ b


def matrix_throughput(seconds: float) -> float:
    """Return the operations per second of a `matrix_product` that took this long."""
    return 2 * SIDE**3 / seconds


def attention_flops(query: Any, key: Any, value: Any, *_args: Any, **_kwargs: Any) -> int:
    """Return the operations of the two products of an attention, which is (B, heads, T, d)."""
    flops: int = sdpa_flop_count(query.shape, key.shape, value.shape)  # type: ignore[no-untyped-call]
    return flops


# What is counted. Some versions of torch have no formula for the attention of CPUs.
FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    **flop_registry,
}


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the floating-point operations of matrix products and convolutions.

    By the formulas of torch's own FlopCounterMode, which also keeps books about modules, imports
    torch's compiler and resizes images in Python: that takes longer than the models do.

    Attributes:
        total: so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; composed ones are split, since they may contain matrix products."""
        kwargs = kwargs or {}
        formula = FORMULAS.get(func.overloadpacket)
        if formula is None and not func.overloadpacket.__name__.startswith("upsample"):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


@torch.inference_mode()
def count_flops(work: Callable[[], object]) -> int:
    """Count the floating-point operations of matrix products and convolutions."""
    counter = FlopCounter()
    with counter:
        work()
    return counter.total


def peak_memory_gib() -> float:
    """Return this process's largest resident memory so far.

    Not `ru_maxrss`, which on Linux a process inherits from the one that started it.
    """
    if (found := _memory_of_status("VmHWM")) is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def resident_memory_gib() -> float:
    """Return this process's resident memory now; where the system does not tell, the largest."""
    found = _memory_of_status("VmRSS")
    return peak_memory_gib() if found is None else found


def _memory_of_status(key: str) -> float | None:
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    line = next(x for x in status.read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) / 2**20


def start_server() -> None:
    """Let the server of `in_fresh_process` import its modules while this process goes on."""
    if _METHOD == "forkserver":
        from multiprocessing.forkserver import ensure_running  # cannot be imported on Windows

        multiprocessing.get_context(_METHOD).set_forkserver_preload([_PRELOADED])
        ensure_running()


def in_fresh_process(
    module: str, arguments: Sequence[str], *, show: bool = False
) -> dict[str, Any]:
    """Run a module's `main`, which prints JSON as its last line; add the peak resident memory.

    The new process ends when this one does, in whatever way that ends.

    Args:
        module: dotted name of the module, such as "benchmarks.structure.latency".
        arguments: arguments of the module.
        show: let its messages and bars through while it runs.

    Raises:
        RuntimeError: the module failed; the message contains its output.
    """
    start_server()
    context: Any = multiprocessing.get_context(_METHOD)  # the stubs know no `Process` of it
    ours, theirs = context.Pipe()
    given = (module, arguments, show, dict(os.environ), theirs)
    process = context.Process(target=_run_module, args=given)
    process.start()
    theirs.close()
    try:
        printed, peak, failure = ours.recv()
    except EOFError:
        printed, peak, failure = "", 0.0, "it was killed"
    process.join()
    ours.close()
    if failure:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed: {failure}")
    return {
        **parse_json(printed.strip().rpartition("\n")[2], module, "a measurement"),
        "peak_gib": peak,
    }


def _run_module(
    module: str,
    arguments: Sequence[str],
    show: bool,
    environment: Mapping[str, str],
    parent: Connection,
) -> None:
    """Run a module's `main`, and send back its output and the reason of a failure."""
    os.environ.update(environment)  # the server that this is a fork of may have another
    Thread(target=lambda: parent.poll(None) and os._exit(1), daemon=True).start()
    sys.argv, printed, said = [module, *arguments], StringIO(), StringIO()
    failure = ""
    try:
        with redirect_stdout(printed), nullcontext() if show else redirect_stderr(said):
            warnings.showwarning = print_warning  # type: ignore[assignment]  # takes any place
            code = importlib.import_module(module).main(arguments)
            failure = f"exit code {code}" if code else ""
    except BaseException:  # whatever it is, the parent has to hear of it
        failure = traceback.format_exc()
    failure = failure and f"{said.getvalue()[-2000:]}\n{failure}"
    parent.send((printed.getvalue(), peak_memory_gib(), failure))
