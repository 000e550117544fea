"""The device and the number format of a method, chosen alike in all loaders and commands."""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

from openvocab.errors import InputError

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def add_computation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for the device and the precision of a method."""
    run = parser.add_argument_group("computation")
    add_device_argument(run)
    run.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of the image towers (default: %(default)s)",
    )
    run.add_argument(
        "--compile",
        action="store_true",
        help="compile the networks: slow at the first image, then faster; needs a C++ compiler on "
        "a CPU",
    )


def add_device_argument(parser: argparse._ActionsContainer) -> None:
    """Add the option `--device`, whose value `choose_device` understands."""
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1, mps ..., or auto: cuda if there is one, else mps, else cpu "
        "(default: %(default)s)",
    )


def computation_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the parsed options of `add_computation_arguments` as a loader's arguments."""
    return {"device": args.device, "precision": args.precision, "compile": args.compile}


def choose_device(name: str | None = "auto") -> str:
    """Return the device to compute on, after checking that it is available.

    Args:
        name: a device such as "cuda:1"; "auto" or None takes the first of cuda, mps and cpu that
            this machine has. Of several GPUs each process of torchrun takes its own.

    Raises:
        InputError: there is no device of this name, here or anywhere.
    """
    import torch

    if name is None or name == "auto":
        if torch.cuda.is_available():
            return _own_gpu()
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = "unknown"
    if kind in ("unknown", "meta"):
        raise InputError(f"the device {name!r} is unknown; use auto, cpu, cuda, cuda:1 or mps")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"the device {name!r} is not available here; use auto, or cpu, which always is"
        ) from error
    return _own_gpu() if name == "cuda" else name


def _own_gpu() -> str:
    """Return "cuda", or the GPU of this process where torchrun has started several processes."""
    import torch

    local = os.environ.get("LOCAL_RANK", "0")
    own = local.isdecimal() and 0 < int(local) < torch.cuda.device_count()
    return f"cuda:{local}" if own else "cuda"


def check_precision(precision: str) -> None:
    """Refuse a precision other than "fp32", "bf16" or "fp16".

    Raises:
        InputError: another word.
    """
    if precision not in _NAMES:
        raise InputError(f"the precision {precision!r} is unknown; use {', '.join(_NAMES)}")


def dtype_of(precision: str) -> torch.dtype:
    """Return the type of "fp32", "bf16" or "fp16".

    Raises:
        InputError: another word.
    """
    import torch

    check_precision(precision)
    dtype: torch.dtype = getattr(torch, _NAMES[precision])
    return dtype


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copy a tensor to a device, without letting the CPU wait for a GPU.

    An ordinary copy to a GPU waits until the GPU has finished all that it was given before; one
    from pinned memory takes its turn behind that, while the CPU goes on.
    """
    import torch

    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Turn:
    """A lock for one thread at a time, of which a deep copy or a pickle is a new one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Turn, ()


class _SharedDefault:
    """torch's default type, which all threads share; it is float32 while somebody needs that."""

    _before: torch.dtype

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0

    @contextmanager
    def float32(self) -> Iterator[None]:
        import torch

        with self._lock:
            if self._users == 0:
                self._before = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    torch.set_default_dtype(self._before)


_default = _SharedDefault()


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """Compute in the type of the weights, even under autocast or another default type."""
    import torch

    with ExitStack() as stack:
        for device in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_default.float32())
        yield
