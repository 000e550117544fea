"""What one image shows, as other tools want it: one region for each name that was found.

Every writer of this folder takes `ImageResult`s, which come from a `Segmentation` or from the JSON
files that the prediction command writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openvocab.drawing.overlay import label_shares
from openvocab.errors import InputError
from openvocab.files import is_temporary
from openvocab.formats.run_length import RLE, Labels, Mask, decode_rle, encode_labels
from openvocab.reading.json_files import read_json_file

if TYPE_CHECKING:
    from openvocab.segmenter import Segmentation


@dataclass(frozen=True)
class Region:
    """All pixels of one image that show one name.

    Attributes:
        index: place of the name in the list, which is its value in label maps.
        name: the name.
        rle: the mask as COCO's compressed run-length code.
        score: how certain the name is, in 0..1 where the method is calibrated; None if unknown.
    """

    index: int
    name: str
    rle: RLE
    score: float | None = None

    @property
    def mask(self) -> Mask:
        """The pixels, (H, W) bool."""
        return decode_rle(self.rle)


@dataclass(frozen=True)
class ImageResult:
    """The regions of one image.

    Attributes:
        image: path of the image file.
        size: (height, width) in pixels.
        names: everything that was asked for, in order.
        regions: what was found, by falling area.
        stem: path of the results without a suffix, relative to the folder of the run.
    """

    image: str
    size: tuple[int, int]
    names: tuple[str, ...]
    regions: tuple[Region, ...]
    stem: str

    def labels(self) -> Labels:
        """Return the label map, (H, W) int32, with -1 where no name was found."""
        labels = np.full(self.size, -1, np.int32)
        for region in self.regions:
            labels[region.mask] = region.index
        return labels


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """Return the tight box around a mask that is not empty: left, top, width, height in pixels.

    Examples:
        >>> box_of(np.array([[False, True, True], [False, False, True]]))
        (1, 0, 2, 2)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def result_of(found: Segmentation, image: str, stem: str | None = None) -> ImageResult:
    """Return the regions of a segmentation.

    Args:
        found: the segmentation.
        image: path of the image file.
        stem: names the results; None takes the image's file name without its suffix.
    """
    codes = encode_labels(found.labels)
    scores = found.label_scores()
    names = found.vocabulary.names
    regions = tuple(
        Region(index, names[index], codes[index], scores.get(index))
        for index, _ in label_shares(found.labels)
    )
    height, width = found.labels.shape
    return ImageResult(image, (height, width), names, regions, stem or Path(image).stem)


def read_results(folder: Path) -> Iterator[ImageResult]:
    """Read the JSON files of a prediction, one at a time, in the order of their paths.

    Args:
        folder: the output folder of `predict`.

    Raises:
        InputError: the folder holds no results, or a file is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"'{folder}' is no folder of results; give the --output of predict")
    count = 0
    for path in sorted(folder.rglob("*.json")):
        if is_temporary(path.name):
            continue
        content = read_json_file(path, "results of predict")
        if isinstance(content, Mapping) and {"image", "size", "names", "segments"} <= set(content):
            count += 1
            yield _read_result(path, content, path.relative_to(folder).with_suffix("").as_posix())
    if not count:
        raise InputError(
            f"'{folder}' holds no results as JSON; let predict write them with --save json"
        )


def _read_result(path: Path, content: Mapping[str, Any], stem: str) -> ImageResult:
    try:
        height, width = (int(side) for side in content["size"])
        names = tuple(str(name) for name in content["names"])
        regions = tuple(read_region(one, names, (height, width)) for one in content["segments"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"'{path}' is no result of predict: {error!r}; predict the image again"
        ) from error
    return ImageResult(str(content["image"]), (height, width), names, regions, stem)


def read_region(entry: Mapping[str, Any], names: Sequence[str], size: tuple[int, int]) -> Region:
    """Return the region that an entry with "index", "rle" and perhaps "score" describes.

    Raises:
        ValueError: its mask has another size than its image.
    """
    rle = entry["rle"]
    if tuple(rle["size"]) != size:
        raise ValueError(f"a mask has the size {rle['size']}, its image {size}")
    score = entry.get("score")
    index = int(entry["index"])
    return Region(index, names[index], rle, None if score is None else float(score))
