"""The training engine that all methods share."""

from openvocab.training.checkpoints import Checkpoints
from openvocab.training.distributed import World, gather_with_gradient, join_world, launch
from openvocab.training.loop import NotFiniteError, Trainer
from openvocab.training.order import EndlessShuffle, StepBatches, generator_of, seed_of
from openvocab.training.schedule import (
    CosineSchedule,
    PolySchedule,
    Schedule,
    decay_rule,
    names_of_embeddings,
    names_of_norms,
    parameter_groups,
    set_rates,
)
from openvocab.training.task import RunConfig, Task

__all__ = [
    "Checkpoints",
    "CosineSchedule",
    "EndlessShuffle",
    "NotFiniteError",
    "PolySchedule",
    "RunConfig",
    "Schedule",
    "StepBatches",
    "Task",
    "Trainer",
    "World",
    "decay_rule",
    "gather_with_gradient",
    "generator_of",
    "join_world",
    "launch",
    "names_of_embeddings",
    "names_of_norms",
    "parameter_groups",
    "seed_of",
    "set_rates",
]
