"""Training in one process or many, by PyTorch's own engine (nccl on GPUs, gloo on CPUs)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from openvocab.computation import choose_device
from openvocab.errors import InputError

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class Processes:
    """The processes of a run, and this one among them."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add numbers over all processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_processes(
    device: str | None = None, patience: timedelta | None = None
) -> Iterator[Processes]:
    """Join the processes that torchrun or `launch` has started, or stay alone if there are none.

    Args:
        device: "cpu", "cuda", ...; None or "auto" takes a GPU where there is one.
        patience: time for which processes wait for each other; None: PyTorch's default.

    Raises:
        InputError: a GPU is asked for that is not there, or processes that cannot find each other.
    """
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    rank = int(os.environ.get("RANK", "0"))
    chosen = _device(device, local)
    if size == 1:
        yield Processes(device=chosen)
        return
    if "MASTER_ADDR" not in os.environ:
        raise InputError("WORLD_SIZE is set, but not MASTER_ADDR; start the processes by torchrun")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    engine = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(engine, rank=rank, world_size=size, timeout=patience)
    try:
        yield Processes(rank, size, chosen)
    finally:
        _leave(chosen)


def _leave(device: torch.device) -> None:
    """Leave the other processes.

    With the last reference to its engine PyTorch waits for the engine's threads, and these may have
    to free a tensor, for which they need Python's lock. PyTorch 2.6 holds the lock meanwhile when
    the reference is the group's and waits for ever; it gives the lock away for a reference of ours.
    """
    engine = dist.group.WORLD._get_backend(device) if dist.group.WORLD else None
    dist.destroy_process_group()
    del engine


def launch(
    module: str,
    argv: Sequence[str],
    processes: int,
    *,
    machines: int = 1,
    machine: int = 0,
    address: str = "auto",
) -> int:
    """Run `python -m module argv` in several processes and wait for them.

    SIGTERM is passed on, so that the processes can save. If one fails, the others are ended.

    Args:
        module: module of the command.
        argv: arguments of the command.
        processes: number of processes on this machine.
        machines: number of machines that run this command.
        machine: number of this machine, from 0.
        address: `tcp://host:port` of the first machine; "auto" on a single one.

    Returns:
        The first exit code that is not 0, or 0.

    Raises:
        InputError: several machines without an address.
    """
    host, port = _address(address, machines)
    children = []
    for local in range(processes):
        environment = os.environ | {
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
            "WORLD_SIZE": str(processes * machines),
            "RANK": str(machine * processes + local),
            "LOCAL_RANK": str(local),
        }
        command = [sys.executable, "-m", module, *argv]
        children.append(subprocess.Popen(command, env=environment))
    with _forwarding(children):
        return _wait(children)


def gather_with_gradient(features: Tensor, processes: Processes) -> Tensor:
    """Concatenate (N, E) features of all P processes to (P * N, E); gradients flow to each."""
    if processes.size == 1:
        return features
    gathered: Tensor = _Gather.apply(features, processes)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, features: Tensor, processes: Processes
    ) -> Tensor:
        ctx.processes, ctx.rows = processes, len(features)  # type: ignore[attr-defined]
        parts = [torch.empty_like(features) for _ in range(processes.size)]
        dist.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        rows, processes = ctx.rows, ctx.processes  # type: ignore[attr-defined]
        return total[processes.rank * rows : (processes.rank + 1) * rows], None


def _device(name: str | None, local: int) -> torch.device:
    device = torch.device(choose_device(name))
    if device.type != "cuda" or device.index is not None:
        return device
    if local >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise InputError(f"process {local} has no GPU: there are {found}; start as many processes")
    return torch.device("cuda", local)


def _address(address: str, machines: int) -> tuple[str, str]:
    if address != "auto":
        host, sign, port = address.removeprefix("tcp://").rpartition(":")
        if not sign or not port.isdigit():
            raise InputError(f"--dist-url {address!r} must look like tcp://host:port")
        return host, port
    if machines > 1:
        raise InputError("several machines need --dist-url tcp://host:port of the first one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return "127.0.0.1", str(free.getsockname()[1])


@contextmanager
def _forwarding(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    def forward(number: int, _: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = signal.signal(signal.SIGTERM, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for child in children:
            if child.poll() is None:
                child.kill()
                child.wait()


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until all have ended, or until some time has passed since the first failure.

    Returns:
        The first code that is not 0; for a process that a signal ended, as shells tell it.
    """
    failed = 0
    deadline = float("inf")
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        codes = [child.returncode for child in children if child.returncode]
        if codes and not failed:
            failed, deadline = codes[0], time.monotonic() + _GRACE_SECONDS
        time.sleep(_POLL_SECONDS)
    failed = failed or next((child.returncode for child in children if child.returncode), 0)
    return failed if failed >= 0 else 128 - failed
