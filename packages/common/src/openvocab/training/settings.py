"""The settings of training runs; reading them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from openvocab.computation import Precision, check_precision
from openvocab.datasets.transforms import TransformConfig
from openvocab.errors import InputError
from openvocab.training.schedule import PolySchedule


@dataclass(frozen=True)
class RunConfig:
    """The settings of a run, for any task.

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
        keep: number of checkpoints that stay besides the best; None for all.
        seed: seed of all random numbers.
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
        check_precision(self.precision)


@dataclass(frozen=True)
class DataConfig:
    """The source of the training images: a known data set, or three paths of the user's own.

    Attributes:
        dataset: name of a data set.
        root: folder of the data sets; None for $DETECTRON2_DATASETS, else ./datasets.
        images: folder of images, instead of `dataset`.
        labels: folder of their label maps.
        names: file with the name of each label, one a line.
        evaluate: data sets to evaluate on; with folders, none.
        label_offset: added to the values of label maps in a folder: -1 where they count from 1.
    """

    dataset: str | None = "coco_2017_train_stuff_sem_seg"
    root: Path | None = None
    images: Path | None = None
    labels: Path | None = None
    names: Path | None = None
    evaluate: tuple[str, ...] = ()
    label_offset: int = 0


@dataclass(frozen=True)
class SegmentationTrainConfig:
    """The training settings of any segmenter, to which a method adds its losses and its optimizer.

    Attributes:
        variant: the architecture, where neither weights nor an original configuration tell it.
        clip: CLIP beside which the method is trained, "name:tag" or a file.
        weights: a checkpoint of the method to start from, its CLIP included; None starts from
            `clip` alone.
        data: data to train and evaluate on.
        transform: settings of the random transforms.
        schedule: schedule of the learning rate.
        run: settings of the run.
    """

    variant: str = ""
    clip: str = ""
    weights: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    transform: TransformConfig = field(default_factory=TransformConfig)
    schedule: PolySchedule = field(default_factory=lambda: PolySchedule(60000))
    run: RunConfig = field(default_factory=RunConfig)
