"""The images of a run beside what the methods found: some at a readable size, all as thumbnails.

An image counts as right for a method that names at least half of its labelled pixels right. By
how many methods are wrong, images fall into groups; the images at a readable size are drawn from
all groups, so that they show what is usual as well as what is not.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.forms import Example, MapOfImage, Panel, Thumbnail
from openvocab.datasets.samples import Sample, SampleSet
from openvocab.drawing.overlay import draw_overlay, palette
from openvocab.evaluation.log import ImageRecord
from openvocab.evaluation.oracle import KnownTruth
from openvocab.formats.run_length import decode_labels
from openvocab.image import read_image

RIGHT = 0.5  # share of the labelled pixels from which on an image counts as right
AGREEMENTS = ("all right", "one wrong", "several wrong", "all wrong", "no ground truth")
_EXAMPLE = 400  # longest side of an example in pixels
_TEXT = 26  # of names in pixels, half of which is left where the examples stand in a row
_SIDES = (160, 128, 96, 64, 40, 24)  # longest side of a thumbnail, the first that is small enough
_MOST_BYTES = 11_000  # of all thumbnails of one image, so that 200 images stay below 3 MB in base64

Found = Mapping[str, Mapping[str, ImageRecord]]
Labels = NDArray[Any]


def thumbnails(data: SampleSet, found: Found, limit: int | None) -> list[Thumbnail]:
    """Return every image of a run with its label maps, small.

    Args:
        data: The data set with the images.
        found: The records of each method, by the id of the image.
        limit: The number of images that were evaluated, from the first on; None for all.
    """
    known = KnownTruth(data)
    entries: list[Thumbnail] = []
    for sample in data.samples[:limit]:
        maps = _maps(known, sample, found)
        if maps is None:
            continue
        right = _right(maps)
        pictures = _small(read_image(sample.image), maps, len(data.vocabulary))
        drawn: dict[str, MapOfImage] = {
            key: {"png": pictures[key], "classes": np.unique(labels[labels >= 0]).tolist()}
            for key, labels in maps.items()
        }
        for key, share in right.items():
            drawn[key]["right"] = share
        entries.append(
            {
                "id": sample.id,
                "agreement": agreement_group(list(right.values())),
                "disagreement": _disagreement([maps[key] for key in found]),
                "jpeg": pictures["image"],
                "maps": drawn,
            }
        )
    return entries


def examples(
    data: SampleSet, found: Found, images: Sequence[Thumbnail], count: int = 6
) -> list[Example]:
    """Return representative images at a readable size, with names on the regions.

    Args:
        data: The data set with the images.
        found: The records of each method, by the id of the image.
        images: What `thumbnails` returned for them.
        count: The number of images to return, at most.
    """
    known, names = KnownTruth(data), data.vocabulary.names
    samples = {sample.id: sample for sample in data.samples}
    entries: list[Example] = []
    for index in representative([image["agreement"] for image in images], count):
        image = images[index]
        maps = _maps(known, samples[image["id"]], found)
        assert maps is not None  # or it had no thumbnail
        picture = read_image(samples[image["id"]].image)
        entries.append(
            {
                "id": image["id"],
                "agreement": image["agreement"],
                "disagreement": image["disagreement"],
                "panels": _panels(picture, maps, names),
                "legend": _legend(list(maps.values()), names),
            }
        )
    return entries


def agreement_group(right: Sequence[float]) -> str:
    """Return the group of an image, one of `AGREEMENTS`.

    Args:
        right: The share of its labelled pixels that each method names right, in 0..1.
    """
    wrong = sum(share < RIGHT for share in right)
    if not right:
        return "no ground truth"
    if wrong in (0, len(right)):
        return "all wrong" if wrong else "all right"
    return "one wrong" if wrong == 1 else "several wrong"


def representative(groups: Sequence[str], count: int, seed: int = 0) -> list[int]:
    """Draw images from groups in proportion to their sizes, but from each group at least one.

    Args:
        groups: The group of each image.
        count: The number of images to draw, at most.
        seed: Of the draw.

    Returns:
        Indices into `groups`, sorted by group in the order of `AGREEMENTS`.
    """
    members = {g: [i for i, own in enumerate(groups) if own == g] for g in AGREEMENTS}
    members = {g: own for g, own in members.items() if own}
    places = dict.fromkeys(list(members)[:count], 1)
    while sum(places.values()) < min(count, len(groups)):
        open_groups = [g for g in places if places[g] < len(members[g])]
        places[max(open_groups, key=lambda g: len(members[g]) / (2 * places[g] + 1))] += 1
    random = np.random.default_rng(seed)
    drawn = {g: random.choice(len(members[g]), n, replace=False) for g, n in places.items()}
    return [members[g][i] for g, chosen in drawn.items() for i in sorted(chosen)]


def _maps(known: KnownTruth, sample: Sample, found: Found) -> dict[str, Labels] | None:
    """Return the label maps of one image, the truth first, or None if a method kept none."""
    records = {method: own.get(sample.id) for method, own in found.items()}
    if any(record is None or record.segments is None for record in records.values()):
        return None
    known.read_label(sample)
    truth: Labels = known.truth
    maps = {"truth": truth}
    for method, record in records.items():
        assert record is not None and record.segments is not None
        height, width = truth.shape
        maps[method] = decode_labels(record.segments, (height, width))
    return maps


def _right(maps: Mapping[str, Labels]) -> dict[str, float]:
    """Return the share of the labelled pixels that each method names right."""
    truth = maps["truth"]
    labelled = truth >= 0
    if not labelled.any():
        return {}
    return {
        key: float((labels == truth)[labelled].mean())
        for key, labels in maps.items()
        if key != "truth"
    }


def _disagreement(maps: Sequence[Labels]) -> float:
    """Return the share of pixels to which not all maps give the same name."""
    same = np.logical_and.reduce([maps[0] == other for other in maps])
    return float(1 - same.mean())


def _small(image: NDArray[np.uint8], maps: Mapping[str, Labels], count: int) -> dict[str, str]:
    """Return an image as JPEG and its label maps as PNG in base64, all together a few kB."""
    height, width = image.shape[:2]
    pictures: dict[str, bytes] = {}
    for side in _SIDES:
        scale = min(1.0, side / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        photo = Image.fromarray(image).resize(size, Image.Resampling.BOX)
        pictures = {"image": _encoded(photo, "JPEG", quality=75)}
        pictures |= {key: _map_png(labels, size, count) for key, labels in maps.items()}
        if sum(map(len, pictures.values())) <= _MOST_BYTES:
            break
    return {key: base64.b64encode(value).decode("ascii") for key, value in pictures.items()}


def _map_png(labels: Labels, size: tuple[int, int], count: int) -> bytes:
    """Paint a label map of a size in as few bytes as PNG allows; no class is black."""
    small = np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling(0)))
    ids, places = np.unique(small, return_inverse=True)
    colors = np.where(ids[:, None] < 0, 0, palette(count)[np.maximum(ids, 0)]).astype(np.uint8)
    places = places.reshape(small.shape)
    if len(ids) > 256:
        return _encoded(Image.fromarray(colors[places]), "PNG", optimize=True)
    picture = Image.fromarray(places.astype(np.uint8), "P")
    picture.putpalette(colors.tobytes())
    return _encoded(picture, "PNG", optimize=True)


def _encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def _panels(
    image: NDArray[np.uint8], maps: Mapping[str, Labels], names: Sequence[str]
) -> list[Panel]:
    """Draw image, truth and predictions in the same colors, each as a JPEG in base64.

    The share of the labelled pixels that a method names right stands beside its picture.
    """
    plain = np.full(image.shape[:2], -1)
    right = _right(maps)
    entries: list[Panel] = []
    for key, labels in {"image": plain, **maps}.items():
        drawn = draw_overlay(
            image,
            labels,
            names,
            alpha=0.7,
            legend=False,
            max_side=_EXAMPLE,
            text_size=_TEXT,
            numbers=False,
        )
        jpeg = base64.b64encode(_encoded(Image.fromarray(drawn), "JPEG", quality=80))
        entries.append({"key": key, "jpeg": jpeg.decode("ascii")})
        if key in right:
            entries[-1]["right"] = right[key]
    return entries


def _legend(maps: Sequence[Labels], names: Sequence[str]) -> list[list[str]]:
    """Return (name, color) of every class in any of the maps."""
    ids = np.unique(np.concatenate([labels.ravel() for labels in maps]))
    colors = hex_colors(len(names))
    return [[names[i], colors[i]] for i in ids if 0 <= i < len(names)]


def hex_colors(count: int) -> list[str]:
    """Return the colors of classes as in the pictures, in the notation of CSS."""
    return ["#{:02x}{:02x}{:02x}".format(*color) for color in palette(count)]
