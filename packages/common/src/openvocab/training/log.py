"""The log of a training run: a JSON line for each logged step, TensorBoard, W&B and a bar.

When a run resumes, the lines after its checkpoint are removed, so that the file is the history of
one run, however often the run was killed. On a full disk lines are lost, but the run goes on.
"""

from __future__ import annotations

import io
import json
import math
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from openvocab.errors import InputError, import_extra
from openvocab.files import write_text
from openvocab.reading.files import read_text
from openvocab.reading.json_files import parse_json
from openvocab.training.curves import plot_losses

LOG_FILE, CURVE_FILE, WANDB_FILE = "metrics.jsonl", "losses.png", "wandb_run.txt"
_MOST_BYTES = 1 << 30  # of the log


class TrainingLog:
    """The log, which the main process writes.

    Args:
        folder: the output folder.
        start: finished steps; later lines are removed.
        steps: number of steps of the whole run.
        wandb: project and name of a W&B run; None for none.
    """

    def __init__(
        self, folder: Path, *, start: int, steps: int, wandb: tuple[str, str] | None = None
    ) -> None:
        for module in ("tensorboard", "matplotlib"):  # the picture is drawn at the very end
            import_extra(module, "train", "training")
        self.path = folder / LOG_FILE
        self._wandb = _start_wandb(folder, wandb) if wandb else None
        _take_back(self.path, start)
        self._lines = _Appended(self.path)
        self._events = _Events(folder, start)
        self._bar = tqdm(total=steps, initial=start, unit="step", disable=None, dynamic_ncols=True)
        self._start, self._steps, self._began = start, steps, time.monotonic()
        self._complained = False

    def step(self, loss: float, images_per_second: float, memory_mb: float) -> None:
        """Move the bar by one step."""
        speed = f"{images_per_second:.3g} images/s, {memory_mb / 1024:.3g} GiB"
        self._bar.set_postfix_str(f"loss {loss:.4g}, {speed}", refresh=False)
        self._bar.update()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of a step, counted from 0; a number that is not finite becomes null."""
        found = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._told_once():
            self._lines.add((json.dumps({"iteration": step, **found}) + "\n").encode())
            self._events.add(step, values)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)
        if self._bar.disable:
            print(f"{_line(step, values)}  eta {self._remaining(step + 1)}", file=sys.stderr)

    def has_scores(self, step: int) -> bool:
        """Return whether the scores of an evaluation after a step were logged."""
        lines = read_log(self.path)
        return any(line["iteration"] == step and "loss" not in line for line in lines)

    def close(self) -> None:
        """Close everything, and draw the curves."""
        self._bar.close()
        self._lines.close()
        self._events.close()
        if self._wandb is not None:
            self._wandb.finish()
        with self._told_once():
            plot_losses(read_log(self.path), self.path.with_name(CURVE_FILE))

    def _remaining(self, done: int) -> str:
        """Return the time for the remaining steps, estimated from the steps of this process."""
        each = (time.monotonic() - self._began) / max(1, done - self._start)
        return str(tqdm.format_interval(each * (self._steps - done)))

    @contextmanager
    def _told_once(self) -> Iterator[None]:
        """Go on without what the full disk refuses, with one message until there is room again."""
        try:
            yield
            self._complained = False
        except OSError as error:
            if not self._complained:
                told = f"warning: {self.path} could not be written ({error.strerror})"
                print(f"{told}; training goes on without these lines", file=sys.stderr)
            self._complained = True


class _Appended:
    """A file to which records are appended completely or, where the disk is full, not at all."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self.close = self._file.close

    def add(self, record: bytes) -> None:
        """Write a record at the end.

        Raises:
            OSError: there is no room.
        """
        end = os.fstat(self._file.fileno()).st_size
        try:
            written = 0
            while written < len(record):  # what does not fit is written in part, then refused
                written += self._file.write(record[written:])
        except OSError:
            with suppress(OSError):
                self._file.truncate(end)
            raise


class _Events:
    """TensorBoard's file of scalars, written here since its own writer fails on a full disk."""

    def __init__(self, folder: Path, start: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = _Appended(folder / name)
        self.close = self._file.close
        self._record(file_version="brain.Event:2")
        # Readers forget what an earlier process said of the steps from here on.
        self._record(step=start, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars.

        Raises:
            OSError: there is no room.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=v) for name, v in values.items()]
        self._record(step=step, summary=Summary(value=scalars))

    def _record(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **content).SerializeToString())
        self._file.add(record.getvalue())


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the logged lines; an incomplete last line is left out.

    Raises:
        InputError: it is another file.
    """
    if not path.is_file():
        return []
    lines = []
    for line in read_text(path, "training log", most_bytes=_MOST_BYTES).splitlines():
        try:
            entry = parse_json(line, str(path), "a line of a log")
        except InputError:
            break
        if not isinstance(entry, dict) or "iteration" not in entry:
            raise InputError(f"{path} is not the log of a training; give another output folder")
        lines.append(entry)
    return lines


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory so far, of the GPU or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _take_back(path: Path, start: int) -> None:
    if path.is_file():
        kept = [json.dumps(line) + "\n" for line in read_log(path) if line["iteration"] < start]
        write_text(path, "".join(kept))


def _line(step: int, values: Mapping[str, float]) -> str:
    return f"iter {step}: " + "  ".join(f"{name} {value:.5g}" for name, value in values.items())


def _start_wandb(folder: Path, names: tuple[str, str]) -> Any:
    """Start a W&B run, or continue the one that belongs to this folder."""
    try:
        import wandb
    except ImportError:
        raise InputError("wandb is not installed; pip install wandb, or leave it out") from None
    project, name = names
    known = folder / WANDB_FILE
    if not known.is_file():
        write_text(known, wandb.util.generate_id())
    run = known.read_text("utf-8")
    return wandb.init(project=project, name=name or None, dir=str(folder), id=run, resume="allow")
