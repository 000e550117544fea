"""Label maps that any program predicted: a folder of files, or a JSON of detectron2 or COCO."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from openvocab.datasets.coco_stuff import COCO_STUFF_171, category_ids
from openvocab.datasets.prediction_files import (
    ARRAY_SUFFIXES,
    is_panoptic,
    panoptic_classes,
    read_panoptic,
    read_prediction,
)
from openvocab.datasets.samples import Sample
from openvocab.datasets.tails import Parts, match_tails, parts_of
from openvocab.errors import InputError, one_line
from openvocab.formats.detectron2 import labels_of_predictions, read_predictions
from openvocab.image import IMAGE_SUFFIXES, stored_size_and_turn
from openvocab.inference.layout import ENDINGS, JOURNAL, NAMES
from openvocab.reading.files import DAMAGE, LIST_BYTES, read_text
from openvocab.reading.json_files import read_json_file

CategoryIds = Literal["auto", "labels", "dataset"]
_SHOWN = 5


_IDS = "use the labels of the data set as category ids"


class Predictions(Protocol):
    """Label maps by sample; `if_shifted` says what to do where a value is no label."""

    if_shifted: str

    @property
    def unused(self) -> Sequence[str]:
        """Return the predictions that belong to no sample."""

    def __contains__(self, sample: Sample) -> bool:
        """Return whether there is a prediction for a sample."""

    def read(self, sample: Sample, num_classes: int) -> NDArray[np.int32]:
        """Return the prediction of a sample, `(H, W)` in `-1..K-1`."""


class FolderPredictions:
    """Label maps or arrays of NumPy, named like the images or label maps of the set, in a folder.

    Args:
        folder: folder of the predictions, which may have folders in it.
        samples: samples for which predictions are looked up.
        ends: endings that may follow a sample's name in front of the suffix, such as
            "_labelTrainIds".
        only: ending of the file names to take; others are ignored.
        offset: number that is added to stored labels; -1 for labels that count from 1.

    Raises:
        InputError: there are none, or two files differ in their suffix only.
    """

    if_shifted = "if they count from 1, add --prediction-offset -1"

    def __init__(
        self,
        folder: Path,
        samples: Sequence[Sample],
        ends: Sequence[str] = (),
        only: str = "",
        offset: int = 0,
    ) -> None:
        self.offset = offset
        files: dict[str, Path] = {}
        for path in sorted(folder.rglob(f"*{only}")):
            if path.suffix.lower() in IMAGE_SUFFIXES | ARRAY_SUFFIXES and not path.name.startswith(
                "."
            ):
                stem = path.relative_to(folder).with_suffix("").as_posix()
                if stem in files:
                    raise InputError(
                        f"{files[stem]} and {path} differ in their suffix only; keep one of them"
                    )
                files[stem] = path
        if not files:
            raise InputError(
                f"{folder} holds no label maps (PNG, TIFF) and no arrays (npy, npz); check the path"
            )
        offered = {stem: parts_of(path.absolute().as_posix()) for stem, path in files.items()}
        pairs = match_tails({one.id: _known_as(one, ("", *ends)) for one in samples}, offered)
        self.files = {sample: files[stem] for sample, stem in pairs.items()}
        self.unused = sorted(set(files) - set(pairs.values()))

    def __contains__(self, sample: Sample) -> bool:
        """Whether there is a file for a sample."""
        return sample.id in self.files

    def read(self, sample: Sample, num_classes: int) -> NDArray[np.int32]:
        """Return the prediction of a sample; see `read_prediction`.

        Raises:
            InputError: there is none, or it cannot be read.
        """
        if sample.id not in self.files:
            raise InputError(f"there is no prediction for {sample.id}; predict this image too")
        return read_prediction(self.files[sample.id], num_classes, self.offset)


class JsonPredictions:
    """A `sem_seg_predictions.json`, detectron2's or ours.

    Args:
        path: the file.
        samples: samples for which predictions are looked up.
        contiguous: the label of each category id, where the file has the data set's own ids.

    Raises:
        InputError: the file holds no predictions.
    """

    if_shifted = _IDS

    def __init__(
        self, path: Path, samples: Sequence[Sample], contiguous: Mapping[int, int] | None = None
    ) -> None:
        self.contiguous = contiguous
        entries = read_predictions(path)
        if not entries:
            raise InputError(f"{path} holds no predictions; check the path")
        offered = {name: parts_of(name) for name in entries}
        pairs = match_tails({one.id: _known_as(one, ("",)) for one in samples}, offered)
        self.images = {sample: entries[name] for sample, name in pairs.items()}
        self.unused = sorted(set(entries) - set(pairs.values()))
        self._seen = {entry.category_id for found in entries.values() for entry in found}

    def __contains__(self, sample: Sample) -> bool:
        """Whether the file has an entry for a sample."""
        return sample.id in self.images

    def read(self, sample: Sample, num_classes: int) -> NDArray[np.int32]:
        """Return the prediction of a sample; pixels in no mask are -1.

        Raises:
            InputError: there is none, or it is damaged.
        """
        if sample.id not in self.images:
            raise InputError(f"there is no prediction for {sample.id}; predict this image too")
        stored = stored_size_and_turn(sample.image)
        # Of an image that EXIF turns, programs disagree on the size; the score will say so.
        size = stored[0] if stored is not None and stored[1] == 1 else None
        return labels_of_predictions(self.images[sample.id], self.contiguous, size)

    def category_ids(self) -> set[int]:
        """Return all category ids in the file."""
        return self._seen


class PanopticPredictions:
    """A JSON of COCO's panoptic format with its PNG files, which lie beside it or in its folder.

    Args:
        path: the JSON; the PNG files are in the folder of its name, else beside it.
        content: contents of the JSON.
        data: the set whose images and class names are meant.

    Raises:
        InputError: a category has no class, the JSON is damaged, or it has an image twice.
    """

    if_shifted = f"{_IDS}, or list its categories with their names"

    def __init__(self, path: Path, content: Mapping[str, Any], data: Any) -> None:
        folder = path.with_suffix("")
        self.folder = folder if folder.is_dir() else path.parent
        try:
            self.classes = panoptic_classes(content, data.vocabulary, path)
            entries = {
                str(one["file_name"]): {
                    int(s["id"]): s["category_id"] for s in one["segments_info"]
                }
                for one in content["annotations"]
            }
        except InputError:
            raise
        except DAMAGE as error:
            raise InputError(
                f"{path} is damaged ({error!r:.80}); each annotation needs a file_name and "
                "segments_info with id and category_id"
            ) from None
        if len(entries) < len(content["annotations"]):
            raise InputError(f"{path} has two annotations of one file_name; keep one of them")
        offered = {name: parts_of(name) for name in entries}
        pairs = match_tails({one.id: _known_as(one, ("",)) for one in data.samples}, offered)
        self.images, self.segments = pairs, entries
        self.unused = sorted(set(entries) - set(pairs.values()))

    def __contains__(self, sample: Sample) -> bool:
        """Whether the file has an entry for a sample."""
        return sample.id in self.images

    def read(self, sample: Sample, num_classes: int) -> NDArray[np.int32]:
        """Return the prediction of a sample; pixels of no segment are -1.

        Raises:
            InputError: there is none, or it is damaged.
        """
        if sample.id not in self.images:
            raise InputError(f"there is no prediction for {sample.id}; predict this image too")
        name = self.images[sample.id]
        labels = {id: self.classes[category] for id, category in self.segments[name].items()}
        return read_panoptic(self.folder / name, labels)


def _known_as(sample: Sample, ends: Sequence[str]) -> set[Parts]:
    """Return the paths, without suffix, with which a sample's prediction may end."""
    known = set()
    for path in (
        PurePosixPath(sample.id + ".png"),
        sample.image.absolute(),
        sample.label.absolute(),
    ):
        folders = parts_of(path.as_posix())[:-1]
        stems = (PurePosixPath(sample.id).name, sample.image.stem, sample.label.stem)
        known |= {(*folders, stem + end) for stem in stems for end in ends}
    return known


def open_predictions(
    path: Path, data: Any, ids: CategoryIds = "auto", offset: int = 0
) -> FolderPredictions | JsonPredictions | PanopticPredictions:
    """Open predictions for a data set.

    Args:
        path: a folder, or a JSON file of detectron2 or of COCO's panoptic format.
        data: the set.
        ids: meaning of the category ids in a JSON: labels, the data set's own ids (COCO's 1..182),
            or whichever of the two the ids themselves prove.
        offset: number that is added to the labels in the files of a folder; -1 where they count
            from 1.

    Raises:
        InputError: there are none, or nothing proves what the ids are.
    """
    if (path / JOURNAL).is_file():
        return _own_predictions(path, data)
    if path.is_dir():
        layout = getattr(data, "layout", None)
        ends = [] if layout is None else [layout.image_end, layout.label_end]
        stems = [Path(end).stem for end in (*ends, ENDINGS["label"]) if end.startswith("_")]
        return FolderPredictions(path, data.samples, stems, offset=offset)
    if path.suffix != ".json" or not path.is_file():
        raise InputError(
            f"{path} is neither a folder of label maps nor a JSON file; give one of these"
        )
    if offset:
        raise InputError(f"labels in {path} are ids; only those in a folder can be shifted")
    content = read_json_file(path, "predictions")
    if is_panoptic(content):
        return PanopticPredictions(path, content, data)
    found = JsonPredictions(path, data.samples)
    if data.name == COCO_STUFF_171.name and _are_coco_ids(found.category_ids(), ids, path):
        found.contiguous = {official: label for label, official in enumerate(category_ids())}
    elif ids == "dataset" and data.name != COCO_STUFF_171.name:
        raise InputError(f"{data.name} has no category ids but its labels; use 'labels'")
    return found


def _own_predictions(folder: Path, data: Any) -> FolderPredictions:
    """Open a folder that the prediction command wrote, if its names are those of the set.

    Raises:
        InputError: the run used other names, or wrote no label maps.
    """
    names = read_text(folder / NAMES, "list of names", most_bytes=LIST_BYTES).splitlines()
    if names != [one_line(name) for name in data.vocabulary.names]:
        raise InputError(
            f"the predictions in {folder} are of the names {_first(names)}, but {data.name} has "
            f"the classes {_first(data.vocabulary.names)}; predict with --vocabulary "
            f"{data.vocabulary.key or 'FILE'}"
        )
    end = ENDINGS["label"]
    return FolderPredictions(folder, data.samples, [Path(end).stem], end)


def _first(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''} ({len(names)})"


def _are_coco_ids(seen: set[int], ids: CategoryIds, path: Path) -> bool:
    if ids != "auto":
        return ids == "dataset"
    official = set(category_ids())
    as_ids, as_labels = seen <= official, seen <= set(range(len(official)))
    if as_ids == as_labels:
        what = "both COCO's ids and labels" if as_ids else "neither COCO's ids nor labels"
        raise InputError(
            f"the category ids in {path} could be {what}; say which with --category-ids dataset "
            f"(1 to 182, as detectron2 writes for COCO) or labels (0 to 170, as we write)"
        )
    return as_ids


def check_complete(
    predictions: Predictions, samples: Sequence[Sample], *, partial: bool
) -> list[Sample]:
    """Return the samples that have a prediction of their own, and list those without one.

    Raises:
        InputError: some have none and that is not allowed, or none has.
    """
    there = [sample for sample in samples if sample in predictions]
    if not there:
        raise InputError(
            f"no prediction has the name of an image of the set, such as {samples[0].id}"
            f"{_not_used(predictions)}"
        )
    missing = [sample.id for sample in samples if sample not in predictions]
    some = f"{len(missing)} of {len(samples)} images have no prediction, such as "
    some += ", ".join(missing[:_SHOWN]) + _not_used(predictions)
    if missing and not partial:
        raise InputError(f"{some}; use --partial to score the others alone")
    if missing:
        warnings.warn(f"{some}; they are left out", stacklevel=2)
    elif predictions.unused:
        warnings.warn(
            f"{len(predictions.unused)} predictions belong to no image of the set, such as "
            f"{predictions.unused[0]}",
            stacklevel=2,
        )
    return there


def _not_used(predictions: Predictions) -> str:
    unused = predictions.unused
    if not unused:
        return ""
    return (
        f" ({len(unused)} predictions, such as {unused[0]}, fit no image better than others, or "
        "none)"
    )
