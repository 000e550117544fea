"""The common part of SAN's and OVSeg's trainings: data, divisors of the losses, and the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from openvocab.clip.model import CLIP
from openvocab.clip.prompts import TextEncoder
from openvocab.datasets.label_check import check_labels
from openvocab.datasets.samples import SampleSet
from openvocab.errors import InputError
from openvocab.segmenter import Segmenter
from openvocab.training.checkpoints import Checkpoints
from openvocab.training.distributed import Processes, join_processes
from openvocab.training.evaluation import evaluate_in_processes, mean_ious
from openvocab.training.losses import Targets, Totals, targets_of, totals_of
from openvocab.training.run import begin_run, train_task
from openvocab.training.segmentation_data import (
    SegmentationBatch,
    SegmentationData,
    SegmentationItem,
    collate_segmentation,
    counts_of,
    open_named_set,
    open_training_set,
)
from openvocab.training.settings import DataConfig, SegmentationTrainConfig
from openvocab.training.task import Task
from openvocab.weights.state_dict import TRAINED_ON


class SegmentationStep(nn.Module):
    """The step from a micro-batch to weighted losses, which the processes run in parallel.

    A method's own step has `forward(batch, totals)`, which returns the losses of all its layers.
    """

    text: Tensor  # (K, E): the training vocabulary

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("text", torch.empty(0), persistent=False)

    def targets(self, batch: SegmentationBatch) -> list[Targets]:
        """Return the classes and masks of each image."""
        return [targets_of(label, len(self.text)) for label in batch["labels"]]


class SegmentationTask(Task[SegmentationBatch]):
    """A task whose losses compare Q queries with the classes of label maps.

    Args:
        config: the settings.
        data: the training set.
        num_queries: Q.
        no_object_weight: class weight of unmatched queries.

    Attributes:
        clip: CLIP whose frozen text tower embeds the training vocabulary.
        templates: templates of the prompts.
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

    @classmethod
    def build(
        cls, config: Any, original: Mapping[str, Any], data: SampleSet, *, resumed: bool
    ) -> Self:
        """Make the task.

        Args:
            config: the settings.
            original: a configuration of the original release, or nothing.
            data: the training set.
            resumed: all weights will come from a checkpoint of this run, so no pretrained ones are
                needed.
        """
        raise NotImplementedError

    @classmethod
    def load_segmenter(
        cls, config: Any, original: Mapping[str, Any], device: torch.device
    ) -> Segmenter:
        """Return the segmenter of `config.weights`, which `--eval-only` evaluates."""
        raise NotImplementedError

    def segmenter(self, processes: Processes) -> Segmenter:
        """Return a segmenter with a copy of the current weights."""
        raise NotImplementedError

    def trained_on(self) -> dict[str, list[str]]:
        """Return the names of the training set, which are stored in checkpoints."""
        return {TRAINED_ON: self.names}

    def begin(self, device: torch.device) -> None:
        """Embed the training vocabulary, once."""
        text = TextEncoder(self.clip).encode_names(self.names, self.templates)
        self.module.text = text.clone()

    def collate(self, items: list[SegmentationItem]) -> SegmentationBatch:
        """Stack items."""
        return collate_segmentation(items)

    def prepare(self, batches: Sequence[SegmentationBatch], processes: Processes) -> Totals:
        """Count the targets of the whole batch, over all processes and accumulated parts."""
        return totals_of(
            [count for batch in batches for count in counts_of(batch["labels"])],
            self.num_queries,
            self.no_object_weight,
            shares=processes.size * len(batches),
            add=processes.sum,
        )

    def evaluate(self, folder: Path, processes: Processes) -> dict[str, float]:
        """Return the mean IoU on every evaluation set."""
        sets = evaluation_sets(self._evaluation)
        if not sets:
            return {}
        return mean_ious(
            sets, evaluate_in_processes(self.segmenter(processes), sets, folder, processes)
        )


def evaluation_sets(config: DataConfig) -> list[SampleSet]:
    """Open the data sets that a configuration evaluates on."""
    return [open_named_set(name, config.root) for name in config.evaluate]


def train_segmenter(
    task: type[SegmentationTask],
    config: SegmentationTrainConfig,
    original: Mapping[str, Any],
    *,
    resume: bool,
) -> int:
    """Train a segmenter.

    Args:
        task: task to train.
        config: the settings.
        original: a configuration of the original release, or nothing.
        resume: go on from the last checkpoint, if there is one.

    Returns:
        The exit code.
    """
    with begin_run(config.run, resume=resume) as processes:
        resumed = resume and bool(Checkpoints(config.run.output).numbered())
        data = open_training_set(config.data)
        share = data.samples[processes.rank :: processes.size]
        check_labels(data, samples=share, progress=processes.is_main)
        built = task.build(config, original, data, resumed=resumed)
        return train_task(built, config, processes, resume=resume)


def evaluate_segmenter(
    task: type[SegmentationTask], config: SegmentationTrainConfig, original: Mapping[str, Any]
) -> int:
    """Evaluate given weights on every evaluation set and print the scores.

    Returns:
        The exit code.

    Raises:
        InputError: there are no weights, or nothing to evaluate on.
    """
    if config.weights is None:
        raise InputError("--eval-only needs weights; give MODEL.WEIGHTS FILE, or --weights FILE")
    sets = evaluation_sets(config.data)
    if not sets:
        raise InputError("there is nothing to evaluate on; give DATASETS.TEST \"('name',)\"")
    with join_processes(config.run.device) as processes:
        segmenter = task.load_segmenter(config, original, processes.device)
        folder = config.run.output / "inference"
        results = evaluate_in_processes(segmenter, sets, folder, processes)
        for data, result in zip(sets, results, strict=True):
            if processes.is_main:
                print(data.name, result.table(), sep="\n")
    return 0
