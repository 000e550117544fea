"""The interface of all methods, `segment(image, vocabulary)`, and the result that it returns."""

from __future__ import annotations

import io
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast, overload, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from openvocab.computation import Turn, plain_arithmetic
from openvocab.drawing.overlay import draw_overlay, label_shares, palette
from openvocab.errors import InputError
from openvocab.files import atomic_path
from openvocab.formats.run_length import Mask, encode_labels
from openvocab.image import ImageArray, ImageSource, images_in, read_image
from openvocab.vocabulary import (
    NOTHING,
    NOTHING_8BIT,
    NOTHING_16BIT,
    Augmentation,
    Vocabulary,
)

if TYPE_CHECKING:
    from torch import Tensor

    from openvocab.formats.objects import Table
    from openvocab.inference.confidence import Evidence
    from openvocab.metrics.calibration import Calibration

_ALPHA = 0.55  # how much of a region's color covers the image
_SHOWN_SIDE = 1024  # longest side of the picture in a notebook

Names: TypeAlias = Vocabulary | Sequence[str] | str


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The segmentation of one image, at the size of that image.

    Attributes:
        labels: Label map (H, W) int32. Each value is an index into `vocabulary.names`, or -1 for a
            pixel without a name.
        vocabulary: The names that were searched for.
        scores: Scores (K, H, W) float32, one map for each name. A higher score is more certain.
            None unless scores were requested.
        confidence: Probability (H, W) float32 in 0..1 that the label of a pixel is correct. None if
            the scores of the method are not calibrated.
        named: Probability (H, W) float32 in 0..1 that a pixel shows any of the names. None if the
            scores of the method are not calibrated.
        extra: Further results of a method, such as its masks. The entry "pictures" is a dict of
            images (H, W, 3) by name, which the prediction command writes to files.
        image: The image (H, W, 3) uint8 that was segmented, for pictures. None if a method does not
            keep it.
    """

    labels: npt.NDArray[np.int32]
    vocabulary: Vocabulary
    scores: npt.NDArray[np.float32] | None = None
    confidence: npt.NDArray[np.float32] | None = None
    named: npt.NDArray[np.float32] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    image: ImageArray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.labels.ndim != 2 or self.labels.dtype != np.int32:
            raise ValueError(
                f"labels are {self.labels.dtype} {self.labels.shape}, expected int32 (H, W)"
            )
        low, high = int(self.labels.min(initial=0)), int(self.labels.max(initial=0))
        if low < NOTHING or high >= len(self.vocabulary):
            raise ValueError(f"labels span {low}..{high}, expected -1..{len(self.vocabulary) - 1}")
        shape = (len(self.vocabulary), *self.labels.shape)
        if self.scores is not None and self.scores.shape != shape:
            raise ValueError(f"scores have shape {self.scores.shape}, expected {shape}")
        for what, values in (("confidence", self.confidence), ("named", self.named)):
            if values is not None and values.shape != self.labels.shape:
                raise ValueError(
                    f"the {what} has shape {values.shape}, expected {self.labels.shape}"
                )

    def areas(self) -> dict[str, float]:
        """Return the share of the image that each name covers, with the largest share first.

        Names that were not found are left out. The shares sum to 1 if every pixel has a name.
        """
        shares: dict[str, float] = {}
        for index, share in label_shares(self.labels):
            name = self.vocabulary.names[index]
            shares[name] = shares.get(name, 0.0) + share
        return shares

    def mask(self, name: str) -> Mask:
        """Return the (H, W) mask of one name.

        Raises:
            InputError: the name was not asked for.
        """
        if name not in self.vocabulary.names:
            raise InputError(
                f"{name!r} is not in the vocabulary of this segmentation; use one of its names"
            )
        wanted = [i for i, known in enumerate(self.vocabulary.names) if known == name]
        return np.isin(self.labels, wanted)

    def certainty(self) -> npt.NDArray[np.float32]:
        """Return how certain the label of each pixel is: (H, W) float32, 0 without a label.

        For a calibrated method this is the confidence in 0..1. Otherwise it is the score of the
        label, and each method has its own score scale: SAN's scores reach about 3, OVSeg's 6, and
        CaR's 1.

        Raises:
            InputError: the result holds neither confidence nor scores.
        """
        if self.confidence is not None:
            return np.where(self.labels < 0, np.float32(0), self.confidence)
        if self.scores is None:
            raise InputError(
                "this result holds no scores to compare with a threshold; segment with "
                "return_scores=True"
            )
        own = np.take_along_axis(self.scores, np.maximum(self.labels, 0)[None], axis=0)[0]
        return np.where(self.labels < 0, np.float32(0), own)

    def mean_certainty(self) -> dict[str, float]:
        """Return the mean of `certainty` over the pixels of each name that was found.

        Raises:
            InputError: see `certainty`.
        """
        names = self.vocabulary.names
        scores = self._means(self.certainty())
        shares = dict(label_shares(self.labels))
        sums: dict[str, float] = {}
        for index, share in shares.items():
            sums[names[index]] = sums.get(names[index], 0.0) + share * scores[index]
        return {name: sums[name] / area for name, area in self.areas().items()}

    def label_scores(self) -> dict[int, float]:
        """Return the mean of `certainty` for each label that occurs; empty if it is unknown."""
        if self.confidence is None and self.scores is None:
            return {}
        return self._means(self.certainty())

    def _means(self, values: npt.NDArray[np.float32]) -> dict[int, float]:
        """Return the mean of (H, W) values over the pixels of each label, in one pass."""
        labels = self.labels.ravel() + 1
        counts, sums = np.bincount(labels), np.bincount(labels, weights=values.ravel())
        found = counts[1:].nonzero()[0]
        return {int(index): float(sums[index + 1] / counts[index + 1]) for index in found}

    def with_threshold(
        self,
        *,
        none_of_these: float | None = None,
        min_score: float | None = None,
        min_area: float | None = None,
    ) -> Segmentation:
        """Return a copy without uncertain pixels, uncertain names and small names.

        Pixels that lose their name get the label -1. The threshold on pixels is applied first, and
        those on names to the result.

        Args:
            none_of_these: Lowest value of `named`, or of `certainty` if the result has no `named`,
                of a pixel that keeps its name.
            min_score: Lowest mean `certainty` in this image of a name that is kept.
            min_area: Smallest share of the image, in 0..1, of a name that is kept.

        Raises:
            InputError: The result has no scores for a threshold on scores, or the share is
                outside 0..1.
        """
        check_thresholds(none_of_these=none_of_these, min_score=min_score, min_area=min_area)
        found = self
        if none_of_these is not None:
            certainty = found.certainty() if found.named is None else found.named
            found = found._without(certainty < none_of_these)
        if min_score is not None:
            means = found.mean_certainty()
            found = found._without_names({name for name in means if means[name] < min_score})
        if min_area is not None:
            areas = found.areas()
            found = found._without_names({name for name in areas if areas[name] < min_area})
        return found

    def _without(self, pixels: Mask) -> Segmentation:
        labels = np.where(pixels, np.int32(NOTHING), self.labels)
        return replace(self, labels=labels)

    def _without_names(self, names: set[str]) -> Segmentation:
        gone = [i for i, name in enumerate(self.vocabulary.names) if name in names]
        return self._without(np.isin(self.labels, gone)) if gone else self

    def overlay(self, image: ImageSource | None = None, *, legend: bool = True) -> ImageArray:
        """Draw the names over the image, pixel on pixel.

        Args:
            image: What to draw on. None takes the image that was segmented.
            legend: Whether to add the legend, to the right of the image or below.

        Returns:
            (H, W, 3) uint8; with a legend (H', W', 3), whose upper left (H, W) show the image.

        Raises:
            InputError: No image is given, and the result has not kept its own.
        """
        pixels = self.image if image is None else read_image(image)
        if pixels is None:
            raise InputError("this result has not kept its image; give it to overlay()")
        names = self.vocabulary.names
        return draw_overlay(pixels, self.labels, names, legend=legend, max_side=None)

    def _repr_png_(self) -> bytes:
        """Return the picture that a notebook shows."""
        image, alpha = self.image, _ALPHA
        if image is None:
            image, alpha = np.full((*self.labels.shape, 3), 255, np.uint8), 1.0
        names = self.vocabulary.names
        picture = draw_overlay(image, self.labels, names, alpha=alpha, max_side=_SHOWN_SIDE)
        content = io.BytesIO()
        Image.fromarray(picture).save(content, "PNG")
        return content.getvalue()

    def show(self) -> None:
        """Show the picture in the notebook, or outside of one in the viewer of the system."""
        if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()) is not None:
            shell.display_pub.publish({"image/png": self._repr_png_(), "text/plain": "picture"})
        else:
            Image.open(io.BytesIO(self._repr_png_())).show()

    def table(self) -> Table:
        """Return a row for each name that was found, see `openvocab.formats.objects.to_table`."""
        from openvocab.formats.objects import to_table  # late: the formats need this module

        return to_table(self)

    def to_supervision(self) -> Any:
        """Return `supervision.Detections`, see `openvocab.formats.objects.to_supervision`."""
        from openvocab.formats.objects import to_supervision

        return to_supervision(self)

    def to_fiftyone(self) -> Any:
        """Return `fiftyone.Detections`, see `openvocab.formats.objects.to_fiftyone`."""
        from openvocab.formats.objects import to_fiftyone

        return to_fiftyone(self)

    def to_torch(self) -> dict[str, Tensor]:
        """Return tensors, see `openvocab.formats.objects.to_torch`."""
        from openvocab.formats.objects import to_torch

        return to_torch(self)

    def to_json(self) -> dict[str, Any]:
        """Describe the labels as plain data: size, names, and for each found name its RLE mask.

        Where the method is calibrated, each name has its mean confidence as "score".
        """
        shares = dict(label_shares(self.labels))
        codes = encode_labels(self.labels)
        found: list[dict[str, Any]] = [
            {"index": i, "name": self.vocabulary.names[i], "area": share, "rle": codes[i]}
            for i, share in shares.items()
        ]
        if self.confidence is not None:
            scores = self._means(self.confidence)
            for one in found:
                one["score"] = round(scores[one["index"]], 4)
        height, width = self.labels.shape
        return {
            "size": [height, width],
            "names": list(self.vocabulary.names),
            "vocabulary": self.vocabulary.key,
            "segments": found,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result to a file, in the format that the suffix of the path selects.

        `.png` stores the label map. With at most 255 names it has 8 bits and a color palette, and
        pixels without a name are 255. With more names it has 16 bits, and pixels without a name are
        65535. `.json` stores COCO run-length masks. `.npy` stores the scores, and `.npz` stores
        scores, labels and names.

        Raises:
            InputError: The suffix is another one, there are no scores to write, or a PNG cannot
                hold so many names.
        """
        target = Path(path)
        self._writer(target)  # before a temporary file is made
        with atomic_path(target) as temporary:
            self.write(temporary)

    def write(self, path: Path) -> None:
        """Write directly to the path, for callers that make temporary files themselves.

        Raises:
            InputError: see `save`.
        """
        self._writer(path)(path)

    def _writer(self, path: Path) -> Callable[[Path], None]:
        suffix = path.suffix.lower()
        writers = {
            ".png": self._write_png,
            ".json": self._write_json,
            ".npy": self._write_npy,
            ".npz": self._write_npz,
        }
        if suffix not in writers:
            raise InputError(
                f"'{path}' ends in {suffix or 'no suffix'}, expected .png (label map), .json "
                "(run-length masks), .npy or .npz (scores)"
            )
        if suffix == ".png" and len(self.vocabulary) > NOTHING_16BIT:
            raise InputError(
                f"a PNG holds at most {NOTHING_16BIT} names, not {len(self.vocabulary)}; use .json"
            )
        if suffix in (".npy", ".npz") and self.scores is None:
            raise InputError(
                f"there are no scores to write to '{path}'; segment with return_scores=True"
            )
        return writers[suffix]

    def _write_png(self, path: Path) -> None:
        names = len(self.vocabulary)
        if names > NOTHING_8BIT:
            image = Image.fromarray(
                np.where(self.labels < 0, NOTHING_16BIT, self.labels).astype(np.uint16)
            )
        else:
            image = Image.fromarray(
                np.where(self.labels < 0, NOTHING_8BIT, self.labels).astype(np.uint8)
            )
            colors = np.zeros((256, 3), np.uint8)  # nothing stays black
            colors[:names] = palette(names)
            image.putpalette(colors.tobytes())
        image.save(path, format="PNG", optimize=False)

    def _write_json(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), ensure_ascii=False), encoding="utf-8")

    def _write_npy(self, path: Path) -> None:
        assert self.scores is not None
        np.save(path, self.scores)

    def _write_npz(self, path: Path) -> None:
        assert self.scores is not None
        names = np.array(self.vocabulary.names)
        np.savez_compressed(path, scores=self.scores, labels=self.labels, names=names)


@runtime_checkable
class Segmenter(Protocol):
    """A model that finds the regions of an image that names describe."""

    @overload
    def segment(
        self, image: ImageSource, vocabulary: Names, *, return_scores: bool = ..., bgr: bool = ...
    ) -> Segmentation: ...
    @overload
    def segment(
        self,
        image: list[ImageSource],
        vocabulary: Names,
        *,
        return_scores: bool = ...,
        bgr: bool = ...,
    ) -> list[Segmentation]: ...
    def segment(
        self,
        image: ImageSource | list[ImageSource],
        vocabulary: Names,
        *,
        return_scores: bool = False,
        bgr: bool = False,
    ) -> Segmentation | list[Segmentation]:
        """Segment one image, or a list of images of any sizes.

        Args:
            image: One image in a form that `read_image` accepts, or a list of such images.
            vocabulary: A `Vocabulary`, a list of names, or one string of names with commas.
            return_scores: Whether results keep the scores (K, H, W), which need much memory.
            bgr: Whether arrays and tensors have the channel order blue, green, red, as those of
                `cv2.imread`.

        Returns:
            One result for one image, or a list of results for a list. Each image of a list gets the
            same result as alone.

        Raises:
            InputError: An image cannot be read, or there is no name.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return the settings that determine the labels, for the protocol card of a result.

        These are the method, its variant, the SHA-256 of the weights, thresholds, the resize rule,
        post-processing, and precision.
        """
        ...


def check_thresholds(
    *,
    none_of_these: float | None = None,
    min_score: float | None = None,
    min_area: float | None = None,
) -> bool:
    """Check thresholds, and return whether applying them needs scores.

    Raises:
        InputError: A threshold is not a number, or `min_area` is not in 0..1.
    """
    for name, value in (
        ("none_of_these", none_of_these),
        ("min_score", min_score),
        ("min_area", min_area),
    ):
        if value is not None and not (
            isinstance(value, int | float | np.number) and np.isfinite(value)
        ):
            raise InputError(f"{name} is {value!r}, expected a number")
    if min_area is not None and not 0 <= min_area <= 1:
        raise InputError(f"min_area is {min_area:g}, expected a share of the image in 0..1")
    return none_of_these is not None or min_score is not None


class BaseSegmenter(ABC):
    """Base class of segmenters, which reads images and names for them.

    A method implements `segment_arrays` and `describe`.

    Attributes:
        templates: Prompt template set for names that are not given as a `Vocabulary`.
        batch_size: Largest number of images that the method processes together. Larger batches
            would only need more memory.
        calibrated: Whether every result has a `confidence`, so that thresholds need no scores.
        calibration: the calibration of the confidences; see `openvocab.inference.confidence`.
        calibration_file: path for a calibration of these weights; None where there is no such
            place.
        confidence_features: names of the features of the confidence, of
            `openvocab.metrics.calibration`.
        on_evidence: function that is called with a method's evidence for each image, for fitting a
            calibration.
    """

    templates: str = "vild"
    batch_size: int = 1
    calibrated: bool = False
    calibration: Calibration | None = None
    calibration_file: Path | None = None
    confidence_features: tuple[str, ...] = ("log_best", "logit_share", "log_total")
    on_evidence: Callable[[Evidence], None] | None = None
    _turn: Turn

    def __new__(cls, *_args: Any, **_options: Any) -> Any:
        """Make a segmenter that threads use in turns, also through copies with its networks."""
        made = super().__new__(cls)
        made._turn = Turn()
        return made

    @overload  # strings and open files are iterable too
    def segment(  # type: ignore[overload-overlap]
        self,
        image: ImageSource,
        vocabulary: Names,
        *,
        return_scores: bool = ...,
        bgr: bool = ...,
        augment_vocabulary: Augmentation | None = ...,
        none_of_these: float | None = ...,
        min_score: float | None = ...,
        min_area: float | None = ...,
    ) -> Segmentation: ...
    @overload
    def segment(
        self,
        image: Iterable[ImageSource],
        vocabulary: Names,
        *,
        return_scores: bool = ...,
        bgr: bool = ...,
        augment_vocabulary: Augmentation | None = ...,
        none_of_these: float | None = ...,
        min_score: float | None = ...,
        min_area: float | None = ...,
    ) -> list[Segmentation]: ...
    def segment(
        self,
        image: ImageSource | Iterable[ImageSource],
        vocabulary: Names,
        *,
        return_scores: bool = False,
        bgr: bool = False,
        augment_vocabulary: Augmentation | None = None,
        none_of_these: float | None = None,
        min_score: float | None = None,
        min_area: float | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment one image, or several images of any sizes.

        The result does not depend on autocast or on torch's default type in the calling thread.
        Several threads can share a segmenter, which then serves one thread after the other.

        Args:
            image: One image in a form that `read_image` accepts. A list, tuple or generator of such
                images, a folder, or a glob such as "photos/*.jpg" gives a list of results.
            vocabulary: A `Vocabulary`, a list of names, or one string of names with commas.
            return_scores: Whether results keep the scores (K, H, W), which need much memory.
            bgr: Whether arrays and tensors have the channel order blue, green, red, as those of
                `cv2.imread`. Otherwise the order is red, green, blue.
            augment_vocabulary: COCO-Stuff names that compete with the given names, see
                `Vocabulary.augmented`.
            none_of_these: Lowest certainty of a pixel, see `Segmentation.with_threshold`.
            min_score: Lowest mean certainty of a name, see `Segmentation.with_threshold`.
            min_area: Smallest share of a name, see `Segmentation.with_threshold`.

        Returns:
            One result for one image, or a list of results for several. Each image of a list gets
            the same result as alone.

        Raises:
            InputError: An image cannot be read, there is no name, or a threshold is not valid.
        """
        if augment_vocabulary is not None:
            plain = BaseSegmenter.vocabulary(self, vocabulary)
            vocabulary = plain.augmented(augment_vocabulary)
        names = self.vocabulary(vocabulary)
        limits = {"none_of_these": none_of_these, "min_score": min_score, "min_area": min_area}
        need_scores = check_thresholds(**limits) and not self.calibrated
        limited = any(limit is not None for limit in limits.values())
        # Scores that only a threshold needs are dropped image by image.
        at_once = 1 if need_scores and not return_scores else 4 * self.batch_size
        images, several = _as_images(image)
        results: list[Segmentation] = []
        while arrays := [read_image(one, bgr=bgr) for one in islice(images, at_once)]:
            with self._turn, plain_arithmetic():
                found = self.segment_arrays(arrays, names, return_scores or need_scores)
            found = [replace(one, image=own) for one, own in zip(found, arrays, strict=True)]
            if limited:
                found = [one.with_threshold(**limits) for one in found]
            if need_scores and not return_scores:
                found = [replace(one, scores=None) for one in found]
            results += found
        return results if several else results[0]

    def vocabulary(self, names: Names) -> Vocabulary:
        """Return the names as a `Vocabulary`; a new one gets the method's prompt templates."""
        if isinstance(names, Vocabulary):
            return names
        return Vocabulary.from_names(names, templates=self.templates)

    @abstractmethod
    def segment_arrays(
        self, images: list[ImageArray], vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        """Segment images (H, W, 3) uint8 RGB of any sizes, each independently of the others."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the settings that determine the labels, see `Segmenter.describe`."""


def _as_images(source: Any) -> tuple[Iterator[ImageSource], bool]:
    """Return the images that a source stands for, and whether it stands for several."""
    files = images_in(source)
    if files is not None:
        return iter(files), True
    if isinstance(source, list | tuple | Iterator) and not hasattr(source, "read"):
        return _one_by_one(source), True
    return iter([source]), False


def _one_by_one(sources: Iterable[Any]) -> Iterator[ImageSource]:
    """Yield the images of a list, with those of folders and globs in their place."""
    for source in sources:
        yield from cast(Iterable[ImageSource], images_in(source) or [source])
