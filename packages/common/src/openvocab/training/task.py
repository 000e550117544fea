"""The training task, whose parts a method fills in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from openvocab.training.distributed import Processes
from openvocab.training.schedule import Schedule

Batch = TypeVar("Batch")


class Task(Generic[Batch]):
    """A training task, whose parts a method fills in.

    Attributes:
        module: maps a micro-batch and what `prepare` made for it to weighted losses; its trainable
            parameters are those of the optimiser.
        optimizer: optimizer with `initial_lr` in its groups.
        schedule: schedule of the learning rate.
        data: items by `openvocab.training.order.Key`.
        samples: number of samples in `data`.
        steps: number of steps of the whole run.
    """

    samples: int
    steps: int
    module: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    data: Dataset[Any]

    def begin(self, device: torch.device) -> None:
        """Compute what stays constant, once the weights are loaded and on their device."""

    def collate(self, items: list[Any]) -> Batch:
        """Make a micro-batch of items."""
        raise NotImplementedError

    def prepare(self, batches: Sequence[Batch], processes: Processes) -> Any:
        """Return the values that the losses of all micro-batches of a step share."""

    def part(self, common: Any, index: int) -> Any:
        """Return the values for micro-batch `index`: all of them, unless a task splits them."""
        return common

    def after_step(self) -> None:
        """Constrain parameters after the optimiser's step."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the weights under the names that other programs know."""
        raise NotImplementedError

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the weights that `state_dict` returned."""
        raise NotImplementedError

    def metadata(self) -> Mapping[str, Any]:
        """Return what a loader needs beside the weights, such as their architecture, for JSON."""
        return {}

    def export(self, folder: Path) -> None:
        """Write the finished weights again, in the form that the other commands read."""

    def evaluate(self, folder: Path, processes: Processes) -> dict[str, float]:
        """Score the current weights; the first score decides which checkpoint is the best."""
        return {}

    @property
    def checkpointed(self) -> Sequence[nn.Module]:
        """Return the blocks whose inside is computed again in the backward pass, not stored."""
        return ()
