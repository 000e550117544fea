"""One training run, from its settings to its exit code."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from openvocab.config import dump_config
from openvocab.errors import InputError
from openvocab.training.distributed import Processes, join_processes
from openvocab.training.loop import Trainer, check_fresh
from openvocab.training.settings import RunConfig
from openvocab.training.task import Task

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TrainConfig(Protocol):
    """The settings of any training."""

    @property
    def run(self) -> RunConfig:
        """Return the settings of the run."""


@contextmanager
def begin_run(config: RunConfig, *, resume: bool) -> Iterator[Processes]:
    """Join the processes that were started for a run; all start from the same random numbers.

    Args:
        config: settings of the run.
        resume: whether it may go on in a folder that holds a run.

    Raises:
        InputError: the folder holds another run, or the disk is full where training cannot go on.
    """
    check_fresh(config.output, resume=resume)
    with join_processes(config.device) as processes:
        torch.manual_seed(config.seed)
        try:
            yield processes
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise InputError(
                f"{config.output} has no room ({error.strerror}); make some, and go on with "
                "--resume"
            ) from None


def train_task(task: Task[Any], config: TrainConfig, processes: Processes, *, resume: bool) -> int:
    """Train.

    Args:
        task: task to train.
        config: the settings, written beside the results.
        processes: processes, from `begin_run`.
        resume: go on from the last checkpoint, if there is one.

    Returns:
        The exit code.
    """
    trainer = Trainer(task, config.run, steps=task.steps, samples=task.samples, processes=processes)
    if resume:
        trainer.resume()
    if processes.is_main:
        dump_config(config, config.run.output / "config.yaml")
    return trainer.run()
