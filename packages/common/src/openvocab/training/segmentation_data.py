"""Labeled images as training data, with random transforms that depend only on their position."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from openvocab.datasets.label_check import check_same_size
from openvocab.datasets.samples import FolderDataset, SampleSet
from openvocab.datasets.transforms import TrainTransform, TransformConfig
from openvocab.errors import InputError
from openvocab.image import read_image
from openvocab.training.order import Key, generator_of, seed_of
from openvocab.training.settings import DataConfig

VOID = -1  # of label maps in a batch, whatever the data set's void values are


class SegmentationItem(TypedDict):
    """A transformed image (3, S, S) uint8, its labels (S, S) with -1 for void, and its id."""

    image: Tensor
    label: Tensor
    id: str
    seed: int


class SegmentationBatch(TypedDict):
    """Images (B, 3, S, S) uint8, labels (B, S, S), ids, and the seed of each image's points."""

    images: Tensor
    labels: Tensor
    ids: list[str]
    seeds: list[int]


class SegmentationData(Dataset[SegmentationItem]):
    """Transformed samples of a data set, by (position, index)."""

    def __init__(self, data: SampleSet, transform: TransformConfig, seed: int) -> None:
        self.data, self.seed = data, seed
        self.transform = TrainTransform(transform, VOID)
        self.classes = len(data.vocabulary)

    def __len__(self) -> int:
        return len(self.data.samples)

    def __getitem__(self, key: Key) -> SegmentationItem:
        position, index = key
        sample = self.data.samples[index]
        image, label = read_image(sample.image), self.data.read_label(sample)
        check_same_size(sample, image, label)
        label = label.astype(np.int32)
        image, label = self.transform(image, label, generator_of(self.seed, position))
        labels = torch.from_numpy(label)
        known = (labels >= 0) & (labels < self.classes)
        return {
            "image": torch.from_numpy(image).permute(2, 0, 1).contiguous(),
            "label": torch.where(known, labels, VOID),
            "id": sample.id,
            "seed": seed_of(self.seed, position),
        }


def collate_segmentation(items: list[SegmentationItem]) -> SegmentationBatch:
    """Stack items of one size."""
    return {
        "images": torch.stack([item["image"] for item in items]),
        "labels": torch.stack([item["label"] for item in items]),
        "ids": [item["id"] for item in items],
        "seeds": [item["seed"] for item in items],
    }


def open_training_set(config: DataConfig) -> SampleSet:
    """Return the data set that a configuration names.

    Raises:
        InputError: the configuration names no data set, or one that is not there.
    """
    folders = {"images": config.images, "labels": config.labels, "names": config.names}
    missing = [name for name, path in folders.items() if path is None]
    if len(missing) < len(folders):
        if config.images is None or config.labels is None or config.names is None:
            raise InputError(f"data.{missing[0]} is missing; give images, labels and names")
        return FolderDataset(
            config.images, config.labels, config.names, label_offset=config.label_offset
        )
    if config.label_offset:
        raise InputError(
            f"data.label_offset is {config.label_offset}, but the label values of {config.dataset} "
            "are known; leave it out"
        )
    if config.dataset is None:
        raise InputError("there is no training data; give data.dataset, or three data folders")
    return open_named_set(config.dataset, config.root)


def open_named_set(name: str, root: Path | None) -> SampleSet:
    """Return a data set of the catalogue."""
    from openvocab.datasets import resolve  # the catalogue is not needed for folders

    found: SampleSet = resolve(name, root)
    return found


def counts_of(labels: Tensor) -> list[int]:
    """Return the number of classes in each of (B, H, W) label maps."""
    return [int((label.unique() >= 0).sum()) for label in labels]
