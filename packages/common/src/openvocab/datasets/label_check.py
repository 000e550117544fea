"""The check of all label maps before any work, which finds values that cannot be meant."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openvocab.datasets.preparation import default_workers, run_parallel
from openvocab.datasets.samples import FolderDataset, Sample, SampleSet
from openvocab.errors import InputError
from openvocab.files import default_cache_dir, write_text
from openvocab.image import stored_size_and_turn
from openvocab.metrics.counting import check_truth, void_values
from openvocab.reading.files import DAMAGE
from openvocab.reading.json_files import read_json_file

_OFTEN = 0.3  # a value in more of the label maps than this is a rule, not an accident
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width


@dataclass(frozen=True)
class LabelSurvey:
    """The values in all label maps of a set.

    Args:
        classes: K; class labels are `0..K-1`.
        void: the values that are void.
        maps: number of label maps.
        pixels: number of pixels of every value that occurs, void included.
        files: the number of label maps that hold the value.
        wrong: sentence about the first label map with a value that is no class, or "".
        mismatch: sentence about the first label map and its image that differ in size, or "".
        turned: images that EXIF turns without a trace in the size of their label map.
    """

    classes: int
    void: tuple[int, ...]
    maps: int = 0
    pixels: dict[int, int] = field(default_factory=dict)
    files: dict[int, int] = field(default_factory=dict)
    wrong: str = ""
    mismatch: str = ""
    turned: tuple[str, ...] = ()

    @property
    def hint(self) -> str:
        """What wrong values most likely mean, as the end of an error's sentence, or ""."""
        known = [value for value in self.pixels if value not in self.void]
        if known and min(known) >= 0 and max(known) == self.classes and self._zero_is_a_rule:
            return (
                "; all values fit after 1 is subtracted, so that these label maps probably count "
                "from 1, with 0 for void: give --label-offset -1"
            )
        if len(known) == 2 and 0 in known and max(known) >= self.classes > 1:
            return f"; if the label maps are masks of one class, write its pixels as 1{_AS_ONE}"
        return ""

    @property
    def like_masks(self) -> bool:
        """Return whether only 0 and 255 occur, as in masks of one class."""
        return set(self.pixels) == {0, 255}

    @property
    def nothing(self) -> str:
        """Return that all pixels are void, in a sentence, or ""."""
        if not self.pixels or not set(self.pixels) <= set(self.void):
            return ""
        return (
            f"every pixel of the {self.maps} label maps is void "
            f"({', '.join(map(str, sorted(self.pixels)))}), so that there is nothing to learn "
            "or to score; check the label maps and the ignore value"
        )

    @property
    def nonsense(self) -> str:
        """Return why masks of one class cannot be meant, in a sentence, or ""."""
        if self.like_masks and self.classes > 1:
            meaning = "void" if 255 in self.void else "the label of another class"
            return (
                f"the {self.maps} label maps hold only 0 and 255, like masks of one class, but 255 "
                f"is {meaning}: write the pixels of that class as 1{_AS_ONE}"
            )
        return ""

    @property
    def _zero_is_a_rule(self) -> bool:
        return self.files.get(0, 0) > _OFTEN * self.maps or 0 not in self.files


_MANY = 1000  # label maps for which starting processes takes less time than it saves
_AS_ONE = " and all others as 0 (in NumPy: labels // labels.max()), and name both labels"


def check_labels(
    data: SampleSet,
    *,
    samples: Sequence[Sample] | None = None,
    classes: int | None = None,
    ignore: Collection[int] | None = None,
    values: bool = True,
    progress: bool = False,
) -> LabelSurvey:
    """Check all label maps of a set, and refuse those that cannot fit the set's description.

    The result is stored in the user's cache for as long as no file changes.

    Args:
        data: the set.
        samples: samples to check; None for all.
        classes: K; None: the number of names of the set.
        ignore: the void values; None: the set's.
        values: refuse values that are no class too; else the caller does so image by image.
        progress: show a bar.

    Raises:
        InputError: a label map cannot be read, holds a value that is no class, or differs in size
            from its image; or all label maps are void, or masks of 0 and 255.
    """
    declared = ignore is not None or (
        isinstance(data, FolderDataset) and data.ignore_index is not None
    )
    classes = len(data.vocabulary) if classes is None else classes
    void = tuple(sorted(void_values(classes, data.ignore_index if ignore is None else ignore)))
    seen = survey_labels(
        data, data.samples if samples is None else samples, classes, void, progress
    )
    # In a known set 255 is void, and a few images may show nothing but its first class.
    few_classes = seen.like_masks and not isinstance(data, FolderDataset)
    for problem in (
        seen.wrong and values and seen.wrong + seen.hint,
        not declared and not few_classes and seen.nonsense,
        seen.nothing,
        seen.mismatch,
    ):
        if problem:
            raise InputError(problem)
    if seen.like_masks and not declared and not few_classes:  # one class
        warnings.warn(
            f"{data.name}: the label maps hold only 0 and 255, and 255 is void: only pixels of 0 "
            "count; if 255 is meant to be the class, write it as 0 and void as 255",
            stacklevel=2,
        )
    if seen.turned:
        warnings.warn(
            f"{data.name}: EXIF turns {len(seen.turned)} images, such as {seen.turned[0]}, and the "
            "size of their label maps does not tell whether these are turned too; they are taken "
            "to be",
            stacklevel=2,
        )
    return seen


def survey_labels(
    data: SampleSet,
    samples: Sequence[Sample],
    classes: int,
    void: tuple[int, ...],
    progress: bool = False,
) -> LabelSurvey:
    """Count the values of all label maps, or read the stored result."""
    sizes = isinstance(data, FolderDataset)  # known sets were inspected by their makers
    memory = _remembered_in(data, samples, classes, void)
    if memory is not None and memory.is_file():
        known = recall(memory)
        if known is not None:
            return known
    look = partial(_look, data=data, classes=classes, void=void, sizes=sizes)
    pixels: Counter[int] = Counter()
    files: Counter[int] = Counter()
    wrong, mismatch, turned = "", "", []
    workers = default_workers() if len(samples) >= _MANY else 1
    for seen in run_parallel(look, samples, workers, "checking labels", progress):
        pixels.update(seen.pixels)
        files.update(seen.pixels.keys())
        wrong, mismatch = wrong or seen.wrong, mismatch or seen.mismatch
        turned += [seen.turned] if seen.turned else []
    found = LabelSurvey(
        classes, void, len(samples), dict(pixels), dict(files), wrong, mismatch, tuple(turned)
    )
    if memory is not None:
        _remember(memory, found)
    return found


def check_same_size(sample: Sample, image: NDArray[Any], label: NDArray[Any]) -> None:
    """Raise `InputError` if a label map and its image differ in size."""
    if image.shape[:2] != label.shape:
        raise InputError(_mismatch(sample, (image.shape[0], image.shape[1]), label.shape))


@dataclass(frozen=True)
class _Look:
    """The values in one label map; see `LabelSurvey`."""

    pixels: dict[int, int]
    wrong: str
    mismatch: str
    turned: str


def _look(
    sample: Sample, data: SampleSet, classes: int, void: tuple[int, ...], sizes: bool
) -> _Look:
    labels = data.read_label(sample)
    low = min(int(labels.min(initial=0)), 0)  # 32-bit files may hold negative values
    if int(labels.max(initial=0)) - low < 1 << 20:
        counts = np.bincount((labels - low).ravel())
        values = np.flatnonzero(counts)
        counts = counts[values]
        values = values + low
    else:
        values, counts = np.unique(labels, return_counts=True)
    wrong = ""
    try:
        check_truth(labels, classes, void)
    except InputError as error:
        wrong = f"{sample.label}: {error}"
    mismatch = turned = ""
    found = stored_size_and_turn(sample.image) if sizes else None
    if found is not None:
        stored, turn = found
        upright = stored[::-1] if turn in _SIDEWAYS else stored
        if upright != labels.shape:
            mismatch = _mismatch(sample, upright, labels.shape)
        elif turn != 1:
            turned = str(sample.image) if turn not in _SIDEWAYS or stored == upright else ""
    return _Look(dict(zip(values.tolist(), counts.tolist(), strict=True)), wrong, mismatch, turned)


def _mismatch(sample: Sample, image: tuple[int, int], label: tuple[int, ...]) -> str:
    sizes = (
        f"the image {sample.image} has {image[0]} x {image[1]} pixels (height x width) and its "
        f"label map {sample.label} {' x '.join(map(str, label))}"
    )
    found = stored_size_and_turn(sample.image)
    if found is not None and found[1] in _SIDEWAYS and found[0] == label:
        return (
            f"{sizes}: EXIF turns the image (orientation {found[1]}) and the label map is not "
            "turned; turn the label map in the same way, or write the image without EXIF's "
            "orientation"
        )
    return f"{sizes}; they must be the same"


def _remembered_in(
    data: SampleSet, samples: Sequence[Sample], classes: int, void: tuple[int, ...]
) -> Path | None:
    """Return the file that stores a survey; its name is a hash of the state of all files."""
    root = default_cache_dir()
    if root is None:
        return None
    offset = data.label_offset if isinstance(data, FolderDataset) else 0
    coding = getattr(getattr(data, "layout", None), "coding", type(data).__name__)
    digest = hashlib.sha256(f"{classes} {void} {offset} {coding}\n".encode())
    for sample in samples:
        try:
            states = [os.stat(path) for path in (sample.label, sample.image)]
        except OSError:
            return None  # whoever reads the file says it better
        state = [(one.st_size, one.st_mtime_ns) for one in states]
        digest.update(f"{sample.id}\n{sample.label.absolute()}\n{state}\n".encode(errors="replace"))
    return root / "labels" / f"{digest.hexdigest()}.json"


def recall(path: Path) -> LabelSurvey | None:
    """Read a stored survey; None if there is none, or it is damaged."""
    try:
        content = read_json_file(path, "survey of label maps")
        for key in ("pixels", "files"):
            content[key] = {int(value): int(count) for value, count in content[key].items()}
        for key in ("void", "turned"):
            content[key] = tuple(content[key])
        return LabelSurvey(**content)
    except (InputError, *DAMAGE):
        return None


def _remember(path: Path, found: LabelSurvey) -> None:
    try:
        write_text(path, json.dumps(asdict(found)))
    except OSError:
        pass  # without a cache everything is only slower
