"""Images on which methods disagree, drawn side by side with the ground truth."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openvocab.detectron2 import labels_of_predictions, read_predictions
from openvocab.image import read_image
from openvocab.oracle import KnownTruth
from openvocab.samples import SampleSet
from openvocab.visualization import color_labels, palette, side_by_side

_PANEL = 260  # height of the pictures


def gallery(
    data: SampleSet, files: Mapping[str, Path], limit: int | None, count: int = 6
) -> list[dict[str, Any]]:
    """Return the images on which the methods disagree most.

    Args:
        data: the images.
        files: predictions by method, as `openvocab.evaluation` writes them.
        limit: only the first so many images were evaluated; None for all.
        count: how many images.
    """
    if len(files) < 2:
        return []
    predictions = {method: read_predictions(path) for method, path in files.items()}
    scored = []
    for sample in data.samples[:limit]:
        maps = _maps(predictions, str(sample.image))
        if maps is not None:
            scored.append((_disagreement(list(maps.values())), sample, maps))
    scored.sort(key=lambda entry: (-entry[0], entry[1].id))
    names, known, entries = data.vocabulary.names, KnownTruth(data), []
    for share, sample, maps in scored[:count]:
        known.read_label(sample)
        entries.append(
            {
                "id": sample.id,
                "disagreement": share,
                "jpeg": _draw(read_image(sample.image), known.truth, maps, len(names)),
                "legend": _legend([known.truth, *maps.values()], names),
            }
        )
    return entries


def _maps(predictions: Mapping[str, Any], image: str) -> dict[str, NDArray[np.int32]] | None:
    """Return the label maps of one image by method, or None if a method has none of it."""
    found = {method: by_image.get(image) for method, by_image in predictions.items()}
    if not all(found.values()):
        return None
    return {method: labels_of_predictions(segments) for method, segments in found.items()}


def _disagreement(maps: Sequence[NDArray[Any]]) -> float:
    """Return the share of pixels on which not all maps agree."""
    same = np.logical_and.reduce([maps[0] == other for other in maps[1:]])
    return float(1 - same.mean())


def _draw(
    image: NDArray[np.uint8],
    truth: NDArray[np.int64],
    maps: Mapping[str, NDArray[np.int32]],
    count: int,
) -> str:
    """Draw image, truth and predictions in a row, in the same colours: a JPEG in base64."""
    painted = [
        (0.4 * image + 0.6 * color_labels(labels, count)).astype(np.uint8)
        for labels in (truth, *maps.values())
    ]
    row = side_by_side([image, *painted], ["image", "ground truth", *maps], height=_PANEL)
    buffer = io.BytesIO()
    Image.fromarray(row).save(buffer, "JPEG", quality=82)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _legend(maps: Sequence[NDArray[Any]], names: Sequence[str]) -> list[list[str]]:
    """Return (name, colour) of every class that any of the maps has."""
    colors = palette(len(names))
    ids = np.unique(np.concatenate([labels.ravel() for labels in maps]))
    return [
        [names[i], "#{:02x}{:02x}{:02x}".format(*colors[i])] for i in ids if 0 <= i < len(names)
    ]
