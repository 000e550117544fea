"""Runs commands in processes that die in the middle: a helper of the tests of training.

`python tests/deaths.py san.train '[["step", ["--run.output", "out", ...]], ...]'` runs the command
with one list of arguments after the other, each in a child of this process, so that libraries are
imported once, and prints as JSON how each child ended: its exit code, or minus its signal.
"""

from __future__ import annotations

import importlib
import io
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from openvocab.cli import run
from openvocab.training.loop import Trainer


def _send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def _before_call(number: int, function: Callable[..., Any], action: Callable[..., None]) -> Any:
    """Wrap a function so that `action` happens before its call `number`, counted from 1."""
    calls: list[None] = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == number:
            action(*args, **kwargs)
        return function(*args, **kwargs)

    return wrapped


def nowhere() -> None:
    """Live to the end."""


def step() -> None:
    """Be killed within the fourth step."""
    Trainer._backward = _before_call(4, Trainer._backward, lambda *_, **__: _send(signal.SIGKILL))


def failure() -> None:
    """Fail within the first step, by a mistake that is nobody's input."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a device has failed")

    Trainer._backward = _before_call(1, Trainer._backward, fail)


def preempted() -> None:
    """Be asked to stop within the first step, with all processes of the job."""

    def ask(*_: Any, **__: Any) -> None:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGTERM)
        _send(signal.SIGTERM)

    Trainer._backward = _before_call(1, Trainer._backward, ask)


def checkpoint() -> None:
    """Be killed when half of the first checkpoint is written."""
    save = torch.save

    def half(state: Any, file: Any) -> None:
        whole = io.BytesIO()
        save(state, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        _send(signal.SIGKILL)

    torch.save = half  # type: ignore[assignment]


def crop() -> None:
    """Be killed when half of the third picture is written."""

    def half(image: Image.Image, path: Path) -> None:
        whole = io.BytesIO()
        save(image, whole, format="PNG")
        path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
        _send(signal.SIGKILL)

    save = Image.Image.save
    Image.Image.save = _before_call(3, save, half)


DEATHS = {death.__name__: death for death in (nowhere, step, failure, preempted, checkpoint, crop)}


def live(module: Any, death: str, arguments: list[str]) -> int:
    """Run a command in a child; return how that ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    DEATHS[death]()
    os.dup2(2, 1)  # this process alone writes to the standard output
    code = run(module.main, arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    command = importlib.import_module(sys.argv[1])
    print(json.dumps([live(command, *life) for life in json.loads(sys.argv[2])]))
