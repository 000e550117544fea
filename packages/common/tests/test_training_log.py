"""What a run tells of itself: lines, TensorBoard, W&B, the picture; also where the disk is full."""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from openvocab.errors import InputError
from openvocab.training.curves import plot_losses
from openvocab.training.log import TrainingLog, read_log


def _scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a folder."""
    board = EventAccumulator(str(folder))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(name)]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to write more than so many bytes into a file."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_log_is_the_history_of_one_run(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path, start=0, steps=10)
    for step in range(4):
        log.write(step, {"loss": 1.0 / (step + 1)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 4, "lo')
    log = TrainingLog(tmp_path, start=2, steps=10)
    log.write(2, {"loss": 0.25})
    log.close()
    assert [line["loss"] for line in read_log(tmp_path / "metrics.jsonl")] == [1.0, 0.5, 0.25]
    assert _scalars(tmp_path, "loss") == [(0, 1.0), (1, 0.5), (2, 0.25)]


def test_a_full_disk_costs_lines_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = TrainingLog(tmp_path, start=0, steps=900)
    with largest_file(20_000):
        for step in range(600):
            log.write(step, {"loss": float(step), "loss_class": 0.5})
    for step in range(600, 603):
        log.write(step, {"loss": float(step), "loss_class": 0.5})
    log.close()
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("iter")]
    assert len(told) == 1 and "metrics.jsonl could not be written" in told[0]
    lines = [line["iteration"] for line in read_log(tmp_path / "metrics.jsonl")]
    assert lines[-3:] == [600, 601, 602] and lines[:-3] == list(range(len(lines) - 3))
    assert 100 < len(lines) < 500  # it was full for a while
    assert [step for step, _ in _scalars(tmp_path, "loss_class")][-3:] == [600, 601, 602]


def test_a_line_tells_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = TrainingLog(tmp_path, start=4, steps=10)
    log._began -= 60  # two steps took a minute, so four take two
    log.write(5, {"loss": 0.125, "memory_mb": 100.0})
    log.close()
    assert "iter 5: loss 0.125  memory_mb 100  eta 02:0" in capsys.readouterr().err


def test_a_bar_tells_loss_speed_and_memory(tmp_path: Path, monkeypatch) -> None:
    log = TrainingLog(tmp_path, start=0, steps=10)
    log.step(0.5, 31.5, 2048.0)
    log.close()
    assert log._bar.postfix == "loss 0.5, 31.5 images/s, 2 GiB"


def test_wandb_is_asked_for_only_when_it_is_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="pip install wandb"):
        TrainingLog(tmp_path, start=0, steps=1, wandb=("project", "name"))


def test_wandb_goes_on_with_the_run_of_the_folder(tmp_path: Path, monkeypatch) -> None:
    started, logged = [], []
    run = SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=list)
    wandb = SimpleNamespace(
        init=lambda **given: started.append(given) or run,
        util=SimpleNamespace(generate_id=lambda: f"id{len(started)}"),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for start in (0, 1):
        log = TrainingLog(tmp_path, start=start, steps=2, wandb=("segmentation", ""))
        log.write(start, {"loss": 1.5})
        log.close()
    assert [(given["project"], given["id"]) for given in started] == [("segmentation", "id0")] * 2
    assert started[0]["name"] is None and started[0]["resume"] == "allow"
    assert logged == [(0, {"loss": 1.5}), (1, {"loss": 1.5})]


def test_the_curves_show_losses_and_scores(tmp_path: Path) -> None:
    def size(lines: list[dict[str, float | None]]) -> tuple[int, int]:
        plot_losses(lines, tmp_path / "curves.png")
        pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
        assert (pixels != 255).any(-1).mean() > 0.01
        return pixels.shape[:2]

    rng = np.random.default_rng(0)
    lines: list[dict[str, float | None]] = [
        {"iteration": step, "loss": 3 / (step + 1), "loss_ce_0": float(rng.random())}
        for step in range(300)
    ]
    lines.append({"iteration": 300, "loss": None, "loss_ce_0": 0.5})  # was no number
    height, width = size(lines)
    assert size([*lines, {"iteration": 299, "mIoU": 40.0}])[0] > height and width > 900
    (tmp_path / "curves.png").unlink()
    plot_losses([{"iteration": 3, "mIoU": 1.0}], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
    assert json.loads(json.dumps(lines)) == lines
