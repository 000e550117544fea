"""What a run tells: a line of JSON for every logged step, TensorBoard, W&B if asked, a bar.

The lines behind the checkpoint that a run resumes from are taken back, so that the file is the
history of one run however often it was killed.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm

from openvocab.errors import InputError
from openvocab.files import atomic_path, write_text

LOG_FILE, CURVE_FILE = "metrics.jsonl", "losses.png"


class TrainingLog:
    """Writes the log of the main process.

    Args:
        folder: the output folder.
        start: finished steps; later lines are removed.
        steps: of the whole run.
        wandb: project and name of a W&B run; None for none.
    """

    def __init__(
        self, folder: Path, *, start: int, steps: int, wandb: tuple[str, str] | None = None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / LOG_FILE
        _take_back(self.path, start)
        self._file: TextIO = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder), purge_step=start)
        self._wandb = _start_wandb(folder, wandb) if wandb else None
        self._bar = tqdm(total=steps, initial=start, unit="step", disable=None, dynamic_ncols=True)

    def step(self, loss: float) -> None:
        """Move the bar by one step."""
        self._bar.update()
        self._bar.set_postfix(loss=f"{loss:.4g}", refresh=False)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of a finished step, counted from 0."""
        self._file.write(json.dumps({"iteration": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)
        if self._bar.disable:
            print(_line(step, values), file=sys.stderr)

    def close(self) -> None:
        """Close everything, and draw the curves."""
        self._bar.close()
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
        plot_losses(self.path, self.path.with_name(CURVE_FILE))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the logged lines; a last line that was cut off is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def plot_losses(log: Path, picture: Path) -> None:
    """Draw every loss of a log over the iterations."""
    from matplotlib.figure import Figure

    lines = read_log(log)
    names = [name for name in (lines[-1] if lines else {}) if "loss" in name]
    if not names:
        return
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name in names:
        points = [(line["iteration"], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), label=name, linewidth=2 if name == "loss" else 1)
    if all(line.get(name, 1) > 0 for line in lines for name in names):
        axes.set_yscale("log")
    axes.set(xlabel="iteration", ylabel="weighted loss")
    axes.legend(fontsize="small")
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, dpi=120)


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory used so far, of the GPU or of this process."""
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
    try:
        import wandb
    except ImportError:
        raise InputError("wandb is not installed; pip install wandb, or leave it out") from None
    project, name = names
    return wandb.init(project=project, name=name or None, dir=str(folder), resume="allow")
