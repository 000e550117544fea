"""Label maps that some program predicted: a folder of files, or a `sem_seg_predictions.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from openvocab.datasets.coco_stuff import COCO_STUFF_171, category_ids
from openvocab.datasets.samples import Sample
from openvocab.errors import InputError
from openvocab.formats.detectron2 import Prediction, labels_of_predictions, read_predictions
from openvocab.image import IMAGE_SUFFIXES, read_label_map

CategoryIds = Literal["auto", "labels", "dataset"]
_SHOWN = 5


class Predictions(Protocol):
    """Label maps by sample."""

    def __contains__(self, sample: Sample) -> bool:
        """Whether there is a prediction for a sample."""

    def read(self, sample: Sample, num_classes: int) -> NDArray[np.int32]:
        """Return the prediction of a sample, `(H, W)` in `-1..K-1`."""


class FolderPredictions:
    """PNG or TIFF label maps named like the images or label maps of the set, below a folder.

    Args:
        folder: may have folders in it.
        ends: what may follow a sample's name in front of the suffix, such as "_labelTrainIds".
    """

    def __init__(self, folder: Path, ends: Sequence[str] = ()) -> None:
        self.ends = ("", *ends)
        self.files: dict[str, Path] = {}
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                relative = path.relative_to(folder).with_suffix("").as_posix()
                self.files[relative] = path
                self.files.setdefault(path.stem, path)
        if not self.files:
            raise InputError(f"{folder} holds no label maps (PNG or TIFF).")

    def __contains__(self, sample: Sample) -> bool:
        """Whether there is a file for a sample."""
        return self._find(sample) is not None

    def read(self, sample: Sample, num_classes: int) -> NDArray[np.int32]:
        """Return the prediction of a sample; 255 (from 256 classes on 65535) is nothing.

        Raises:
            InputError: there is none, or it cannot be read.
        """
        path = self._find(sample)
        if path is None:
            raise InputError(f"There is no prediction for {sample.id}.")
        labels = read_label_map(path)
        nothing = 255 if num_classes <= 255 else 65535
        return np.where((labels == nothing) | (labels == 65535), -1, labels).astype(np.int32)

    def _find(self, sample: Sample) -> Path | None:
        short = Path(sample.id).name
        for name in (sample.id, short, sample.image.stem, sample.label.stem):
            for end in self.ends:
                if name + end in self.files:
                    return self.files[name + end]
        return None


class JsonPredictions:
    """A `sem_seg_predictions.json`, detectron2's or ours.

    Args:
        path: the file.
        contiguous: the label of each category id, where the file has the data set's own ids.
    """

    def __init__(self, path: Path, contiguous: Mapping[int, int] | None = None) -> None:
        self.contiguous = contiguous
        self.images: dict[str, list[Prediction]] = {}
        for name, entries in read_predictions(path).items():
            self.images[Path(name).with_suffix("").as_posix()] = entries
            self.images.setdefault(Path(name).stem, entries)
        if not self.images:
            raise InputError(f"{path} holds no predictions.")

    def __contains__(self, sample: Sample) -> bool:
        """Whether the file has an entry for a sample."""
        return self._find(sample) is not None

    def read(self, sample: Sample, num_classes: int) -> NDArray[np.int32]:
        """Return the prediction of a sample; pixels in no mask are -1.

        Raises:
            InputError: there is none, or it is damaged.
        """
        entries = self._find(sample)
        if entries is None:
            raise InputError(f"There is no prediction for {sample.id}.")
        return labels_of_predictions(entries, self.contiguous)

    def category_ids(self) -> set[int]:
        """Return all category ids in the file."""
        return {entry.category_id for entries in self.images.values() for entry in entries}

    def _find(self, sample: Sample) -> list[Prediction] | None:
        names = (sample.image.with_suffix("").as_posix(), sample.image.stem, Path(sample.id).name)
        return next((self.images[name] for name in names if name in self.images), None)


def open_predictions(
    path: Path, data: Any, ids: CategoryIds = "auto"
) -> FolderPredictions | JsonPredictions:
    """Open predictions for a data set.

    Args:
        path: a folder, or a JSON file.
        data: the set.
        ids: what the category ids in a JSON are: labels, the data set's own ids (COCO's 1..182),
            or whichever of the two the ids themselves prove.

    Raises:
        InputError: there are none, or nothing proves what the ids are.
    """
    if path.is_dir():
        layout = getattr(data, "layout", None)
        ends = [] if layout is None else [layout.image_end, layout.label_end]
        return FolderPredictions(path, [Path(end).stem for end in ends if end.startswith("_")])
    if path.suffix != ".json" or not path.is_file():
        raise InputError(f"{path} is neither a folder of label maps nor a JSON file.")
    found = JsonPredictions(path)
    if data.name == COCO_STUFF_171.name and _are_coco_ids(found.category_ids(), ids, path):
        found.contiguous = {official: label for label, official in enumerate(category_ids())}
    elif ids == "dataset" and data.name != COCO_STUFF_171.name:
        raise InputError(f"{data.name} has no category ids but its labels; use 'labels'.")
    return found


def _are_coco_ids(seen: set[int], ids: CategoryIds, path: Path) -> bool:
    if ids != "auto":
        return ids == "dataset"
    official = set(category_ids())
    as_ids, as_labels = seen <= official, seen <= set(range(len(official)))
    if as_ids == as_labels:
        what = "both COCO's ids and labels" if as_ids else "neither COCO's ids nor labels"
        raise InputError(
            f"The category ids in {path} could be {what}; say which with --category-ids dataset "
            f"(1 to 182, as detectron2 writes for COCO) or labels (0 to 170, as we write)."
        )
    return as_ids


def check_complete(
    predictions: Predictions, samples: Sequence[Sample], *, partial: bool
) -> list[Sample]:
    """Return the samples that have a prediction.

    Raises:
        InputError: some have none and that is not allowed, or none has.
    """
    there = [sample for sample in samples if sample in predictions]
    if not there:
        raise InputError(
            f"No prediction has the name of an image of the set, such as {samples[0].id}."
        )
    missing = [sample.id for sample in samples if sample not in predictions]
    if missing and not partial:
        raise InputError(
            f"{len(missing)} of {len(samples)} images have no prediction, such as "
            f"{', '.join(missing[:_SHOWN])}; use --partial to score the others alone."
        )
    return there
