"""What SAN and OVSeg have in common when they train: data, loss divisors, evaluation, the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from openvocab.config import dump_config
from openvocab.datasets.transforms import TransformConfig
from openvocab.errors import InputError
from openvocab.losses import Totals, totals_of
from openvocab.samples import SampleSet
from openvocab.segmenter import Segmenter
from openvocab.training.checkpoints import Checkpoints
from openvocab.training.distributed import World, join_world
from openvocab.training.evaluation import evaluate_in_world, mean_ious
from openvocab.training.loop import RunConfig, Task, Trainer, check_fresh
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


class SegmentationTrainConfig(Protocol):
    """The settings that every segmentation training has."""

    @property
    def data(self) -> DataConfig:
        """What to train and evaluate on."""

    @property
    def transform(self) -> TransformConfig:
        """How images are varied."""

    @property
    def schedule(self) -> PolySchedule:
        """Of the learning rate."""

    @property
    def run(self) -> RunConfig:
        """How it is carried out."""


class SegmentationTask(Task[SegmentationBatch]):
    """A task whose losses compare Q queries with the classes of label maps.

    Args:
        config: the settings.
        data: the training set.
        num_queries: Q.
        no_object_weight: class weight of unmatched queries.
    """

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
        self.schedule = config.schedule
        self.data = SegmentationData(data, config.transform, config.run.seed)
        self._evaluation = config.data

    def segmenter(self, world: World) -> Segmenter:
        """Return a segmenter with a copy of the current weights."""
        raise NotImplementedError

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


def train_segmentation(
    config: SegmentationTrainConfig,
    make_task: Callable[[SampleSet, bool], SegmentationTask],
    *,
    resume: bool,
) -> int:
    """Run a training.

    Args:
        config: the settings.
        make_task: gets the training set, and whether all weights will come from a checkpoint of
            this run, so that no pretrained ones are needed.
        resume: go on from the last checkpoint, if there is one.

    Returns:
        The exit code.
    """
    output = config.run.output
    check_fresh(output, resume=resume)
    with join_world(config.run.device) as world:
        torch.manual_seed(config.run.seed)  # every process starts from the same weights
        data = open_training_set(config.data)
        task = make_task(data, resume and bool(Checkpoints(output).numbered()))
        if world.is_main:
            dump_config(config, output / "config.yaml")
        trainer = Trainer(
            task, config.run, steps=config.schedule.steps, samples=len(data.samples), world=world
        )
        if resume:
            trainer.resume()
        return trainer.run()


def evaluate_segmentation(
    config: SegmentationTrainConfig, make_segmenter: Callable[[World], Segmenter]
) -> int:
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
