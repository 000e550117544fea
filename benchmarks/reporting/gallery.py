"""Images on which methods disagree, drawn beside the ground truth in the same colors."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.forms import Disagreement, Panel
from openvocab.datasets.samples import SampleSet
from openvocab.drawing.overlay import color_labels, palette, side_by_side
from openvocab.evaluation.log import ImageRecord
from openvocab.evaluation.oracle import KnownTruth
from openvocab.formats.run_length import decode_labels
from openvocab.image import read_image

_PANEL = 260  # height of the pictures


def gallery(
    data: SampleSet,
    found: Mapping[str, Mapping[str, ImageRecord]],
    limit: int | None,
    count: int = 6,
) -> list[Disagreement]:
    """Return the images on which the methods disagree most.

    Args:
        data: The data set with the images.
        found: The records of each method, by the id of the image.
        limit: The number of images that were evaluated, from the first on; None for all.
        count: The number of images to return, at most.
    """
    if len(found) < 2:
        return []
    scored = []
    for sample in data.samples[:limit]:
        maps = _maps(found, sample.id)
        if maps is not None:
            scored.append((_disagreement(list(maps.values())), sample, maps))
    scored.sort(key=lambda entry: (-entry[0], entry[1].id))
    names, known = data.vocabulary.names, KnownTruth(data)
    entries: list[Disagreement] = []
    for share, sample, maps in scored[:count]:
        known.read_label(sample)
        entries.append(
            {
                "id": sample.id,
                "disagreement": share,
                "panels": _panels(read_image(sample.image), known.truth, maps, len(names)),
                "legend": _legend([known.truth, *maps.values()], names),
            }
        )
    return entries


def _maps(
    found: Mapping[str, Mapping[str, ImageRecord]], sample: str
) -> dict[str, NDArray[np.int32]] | None:
    """Return the label maps of one image by method, or None if a method found nothing in it."""
    maps = {}
    for method, records in found.items():
        codes = records[sample].segments if sample in records else None
        if not codes:
            return None
        height, width = next(iter(codes.values()))["size"]
        maps[method] = decode_labels(codes, (height, width))
    return maps


def _disagreement(maps: Sequence[NDArray[Any]]) -> float:
    """Return the share of pixels on which not all maps agree."""
    same = np.logical_and.reduce([maps[0] == other for other in maps[1:]])
    return float(1 - same.mean())


def _panels(
    image: NDArray[np.uint8],
    truth: NDArray[np.int64],
    maps: Mapping[str, NDArray[np.int32]],
    count: int,
) -> list[Panel]:
    """Draw image, truth and predictions in the same colors, each as a JPEG in base64.

    The share of the labelled pixels that a method names right stands beside its picture.
    """
    labelled = truth >= 0
    entries: list[Panel] = [{"key": "image", "jpeg": _jpeg(image)}]
    shown: dict[str, NDArray[Any]] = {"truth": truth, **maps}
    for key, labels in shown.items():
        painted = (0.3 * image + 0.7 * color_labels(labels, count)).astype(np.uint8)
        entries.append({"key": key, "jpeg": _jpeg(painted)})
        if key in maps and labelled.any():
            entries[-1]["right"] = float((labels == truth)[labelled].mean())
    return entries


def _jpeg(picture: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(side_by_side([picture], height=_PANEL)).save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _legend(maps: Sequence[NDArray[Any]], names: Sequence[str]) -> list[list[str]]:
    """Return (name, color) of every class in any of the maps, and of pixels without a class."""
    colors = palette(len(names))
    ids = np.unique(np.concatenate([labels.ravel() for labels in maps]))
    entries = [
        [names[i], "#{:02x}{:02x}{:02x}".format(*colors[i])] for i in ids if 0 <= i < len(names)
    ]
    return entries if ids[0] >= 0 else [*entries, ["no class", "#000000"]]
