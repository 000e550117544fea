"""What SAN and OVSeg have in common when they train: settings, data, losses' divisors, the run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from openvocab.clip.model import CLIP
from openvocab.clip.prompts import TextEncoder
from openvocab.datasets.label_check import check_labels
from openvocab.datasets.samples import SampleSet
from openvocab.datasets.transforms import TransformConfig
from openvocab.errors import InputError
from openvocab.segmenter import Segmenter
from openvocab.training.checkpoints import Checkpoints
from openvocab.training.command import TrainingCommand, train
from openvocab.training.distributed import World, join_world
from openvocab.training.evaluation import evaluate_in_world, mean_ious
from openvocab.training.losses import Targets, Totals, targets_of, totals_of
from openvocab.training.schedule import PolySchedule
from openvocab.training.segmentation_data import (
    DataConfig,
    SegmentationBatch,
    SegmentationData,
    SegmentationItem,
    collate_segmentation,
    counts_of,
    open_named_set,
    open_training_set,
)
from openvocab.training.task import RunConfig, Task

Config = TypeVar("Config", bound="SegmentationTrainConfig")


@dataclass(frozen=True)
class SegmentationTrainConfig:
    """What the training of any segmenter has; a method adds its losses and its optimiser.

    Attributes:
        variant: the architecture, where neither weights nor an original configuration tell it.
        clip: CLIP beside which the method is trained, "name:tag" or a file.
        weights: a checkpoint of the method to start from, its CLIP included; None starts from
            `clip` alone.
        data: what to train and evaluate on.
        transform: how images are varied.
        schedule: of the learning rate.
        run: how it is carried out.
    """

    variant: str = ""
    clip: str = ""
    weights: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    transform: TransformConfig = field(default_factory=TransformConfig)
    schedule: PolySchedule = field(default_factory=lambda: PolySchedule(60000))
    run: RunConfig = field(default_factory=RunConfig)


class SegmentationStep(nn.Module):
    """From a micro-batch to weighted losses: what the processes run in parallel.

    A method's own step has `forward(batch, totals)`, which returns the losses of all its layers.
    """

    text: Tensor  # (K, E): the training vocabulary

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("text", torch.empty(0), persistent=False)

    def targets(self, batch: SegmentationBatch) -> list[Targets]:
        """Return the classes and masks that each image shows."""
        return [targets_of(label, len(self.text)) for label in batch["labels"]]


class SegmentationTask(Task[SegmentationBatch]):
    """A task whose losses compare Q queries with the classes of label maps.

    Args:
        config: the settings.
        data: the training set.
        num_queries: Q.
        no_object_weight: class weight of unmatched queries.

    Attributes:
        clip: its text tower, which is frozen, embeds the training vocabulary.
        templates: of the prompts.
    """

    module: SegmentationStep
    clip: CLIP
    templates: str | Sequence[str]

    def __init__(
        self,
        config: SegmentationTrainConfig,
        data: SampleSet,
        *,
        num_queries: int,
        no_object_weight: float,
    ) -> None:
        self.names = [name.strip() for name in data.vocabulary.names]
        self.num_queries, self.no_object_weight = num_queries, no_object_weight
        self.schedule, self.steps = config.schedule, config.schedule.steps
        self.samples = len(data.samples)
        self.data = SegmentationData(data, config.transform, config.run.seed)
        self._evaluation = config.data

    def segmenter(self, world: World) -> Segmenter:
        """Return a segmenter with a copy of the current weights."""
        raise NotImplementedError

    def begin(self, device: torch.device) -> None:
        """Embed the training vocabulary, once."""
        text = TextEncoder(self.clip).encode_names(self.names, self.templates)
        self.module.text = text.clone()

    def collate(self, items: list[SegmentationItem]) -> SegmentationBatch:
        """Stack items."""
        return collate_segmentation(items)

    def prepare(self, batches: Sequence[SegmentationBatch], world: World) -> Totals:
        """Count the targets of the whole batch, over all processes and accumulated parts."""
        return totals_of(
            [count for batch in batches for count in counts_of(batch["labels"])],
            self.num_queries,
            self.no_object_weight,
            shares=world.size * len(batches),
            add=world.sum,
        )

    def evaluate(self, folder: Path, world: World) -> dict[str, float]:
        """Return the mean IoU on every evaluation set."""
        sets = evaluation_sets(self._evaluation)
        if not sets:
            return {}
        return mean_ious(sets, evaluate_in_world(self.segmenter(world), sets, folder, world))


def evaluation_sets(config: DataConfig) -> list[SampleSet]:
    """Open the data sets that a configuration evaluates on."""
    return [open_named_set(name, config.root) for name in config.evaluate]


def segmentation_command(
    module: str,
    config: type[Config],
    make_task: Callable[[Config, Mapping[str, Any], SampleSet, bool], SegmentationTask],
    make_segmenter: Callable[[Config, Mapping[str, Any], World], Segmenter],
    **more: Any,
) -> TrainingCommand[Config]:
    """Return the command that trains, or evaluates, a segmenter.

    Args:
        module: see `TrainingCommand`.
        config: see `TrainingCommand`.
        make_task: gets the settings, an original configuration, the training set, and whether all
            weights will come from a checkpoint of this run, so that no pretrained ones are needed.
        make_segmenter: gets the settings, whose `weights` are given, and an original configuration.
        more: of `TrainingCommand`.
    """

    def run_training(settings: Config, original: Mapping[str, Any], resume: bool) -> int:
        def make(world: World) -> SegmentationTask:
            resumed = resume and bool(Checkpoints(settings.run.output).numbered())
            data = open_training_set(settings.data)
            share = data.samples[world.rank :: world.size]
            check_labels(data, samples=share, progress=world.is_main)
            return make_task(settings, original, data, resumed)

        return train(settings, make, resume=resume)

    def evaluate(settings: Config, original: Mapping[str, Any]) -> int:
        if settings.weights is None:
            raise InputError(
                "--eval-only needs weights; give MODEL.WEIGHTS FILE, or --weights FILE"
            )
        return _evaluate(settings, lambda world: make_segmenter(settings, original, world))

    return TrainingCommand(
        module, config, train=run_training, evaluate=evaluate, add_flags=_add_data_flags, **more
    )


def _add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flag that commands with data of one's own share, under its short name."""
    parser.add_argument(
        "--label-offset",
        dest="data.label_offset",
        default=argparse.SUPPRESS,
        metavar="N",
        help="the same as --data.label-offset",
    )


def _evaluate(config: SegmentationTrainConfig, make_segmenter: Callable[[World], Segmenter]) -> int:
    """Evaluate on every evaluation set and print the scores; returns the exit code."""
    sets = evaluation_sets(config.data)
    if not sets:
        raise InputError("there is nothing to evaluate on; give DATASETS.TEST \"('name',)\"")
    with join_world(config.run.device) as world:
        folder = config.run.output / "inference"
        results = evaluate_in_world(make_segmenter(world), sets, folder, world)
        for data, result in zip(sets, results, strict=True):
            if world.is_main:
                print(data.name, result.table(), sep="\n")
    return 0
