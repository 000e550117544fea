"""What a training run is made of: how it is carried out, and the task that a method fills in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from openvocab.computation import Precision, dtype_of
from openvocab.errors import InputError
from openvocab.training.distributed import World
from openvocab.training.schedule import Schedule

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class RunConfig:
    """How a run is carried out, whatever it trains.

    Attributes:
        output: folder of checkpoints, logs and the resolved configuration.
        batch: images in a step over all processes, accumulated ones too.
        grad_accum: into how many parts a process splits its share of the batch.
        precision: "fp32", "bf16", or "fp16" with loss scaling.
        clip_norm: longest gradient over all parameters; None for any.
        activation_checkpoints: compute blocks twice instead of keeping what is inside them.
        workers: processes that load data.
        log_period: steps between lines of the log.
        checkpoint_period: steps between checkpoints.
        eval_period: steps between evaluations; 0 for none.
        keep: how many checkpoints stay besides the best; None for all.
        seed: of everything random.
        device: None takes a GPU where there is one.
        wandb_project: log to this Weights & Biases project too.
        wandb_name: name of the run there.
    """

    output: Path = Path("output")
    batch: int = 32
    grad_accum: int = 1
    precision: Precision = "fp32"
    clip_norm: float | None = 0.01
    activation_checkpoints: bool = False
    workers: int = 4
    log_period: int = 20
    checkpoint_period: int = 5000
    eval_period: int = 5000
    keep: int | None = 2
    seed: int = 0
    device: str | None = None
    wandb_project: str | None = None
    wandb_name: str = ""

    def __post_init__(self) -> None:
        smallest = dict.fromkeys(("batch", "grad_accum", "log_period", "checkpoint_period"), 1)
        smallest |= {"workers": 0, "eval_period": 0, "seed": 0}
        smallest |= {} if self.keep is None else {"keep": 1}
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; give at least {least}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(f"clip_norm is {self.clip_norm}; give more than 0, or null for none")
        dtype_of(self.precision)


class Task(Generic[Batch]):
    """What is trained; a method fills in its parts.

    Attributes:
        module: maps a micro-batch and what `prepare` made for it to weighted losses; its trainable
            parameters are those of the optimiser.
        optimizer: with `initial_lr` in its groups.
        schedule: of the learning rate.
        data: items by `openvocab.training.order.Key`.
        samples: how many `data` has.
        steps: of the whole run.
    """

    samples: int
    steps: int
    module: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    data: Dataset[Any]

    def begin(self, device: torch.device) -> None:
        """Compute what stays the same, once the weights are loaded and on their device."""

    def collate(self, items: list[Any]) -> Batch:
        """Make a micro-batch of items."""
        raise NotImplementedError

    def prepare(self, batches: Sequence[Batch], world: World) -> Any:
        """Return what the losses of all micro-batches of a step have in common."""

    def part(self, common: Any, index: int) -> Any:
        """Return what micro-batch `index` needs of it: all of it, unless a task splits it."""
        return common

    def after_step(self) -> None:
        """Constrain parameters after the optimiser's step."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the weights under the names that other programs know."""
        raise NotImplementedError

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `state_dict` returned."""
        raise NotImplementedError

    def metadata(self) -> Mapping[str, Any]:
        """Return what a loader must know of the weights, such as their architecture, for JSON."""
        return {}

    def export(self, folder: Path) -> None:
        """Write the finished weights once more, in the form that the other commands read."""

    def evaluate(self, folder: Path, world: World) -> dict[str, float]:
        """Score the current weights; the first number is what "best" means."""
        return {}

    @property
    def checkpointed(self) -> Sequence[nn.Module]:
        """Blocks whose inside need not be kept for the backward pass."""
        return ()
