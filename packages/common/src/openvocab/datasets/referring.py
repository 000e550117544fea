"""Referring expressions: RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO (GRES), and their scores.

Source: SPEC car 9; layouts.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openvocab.datasets.labelled_set import data_root_of
from openvocab.datasets.polygons import segment_mask
from openvocab.errors import InputError
from openvocab.formats.run_length import Mask
from openvocab.reading.json_files import read_json_file
from openvocab.reading.pickles import read_plain_pickle

IMAGES = "refer/data/images/mscoco/images/train2014"
DATA = "refer/data"
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class ReferringSpec:
    """The description of a referring data set.

    Args:
        folder: folder below `refer/data`.
        by: who split it: part of the name of the file of expressions.
        splits: splits of the data set.
        file: name of the file of expressions.
        sources: keys in `data/sources.json`.
        per_sentence: every sentence is an item of its own (GRES); else every object is.
    """

    folder: str
    by: str
    splits: tuple[str, ...]
    file: str
    sources: tuple[str, ...] = ("refer", "coco-2014")
    per_sentence: bool = False


REFERRING: dict[str, ReferringSpec] = {
    "refcoco": ReferringSpec("refcoco", "unc", ("train", "val", "testA", "testB"), "refs(unc).p"),
    "refcoco+": ReferringSpec("refcoco+", "unc", ("train", "val", "testA", "testB"), "refs(unc).p"),
    "refcocog": ReferringSpec("refcocog", "umd", ("train", "val", "test"), "refs(umd).p"),
    "refcocog-google": ReferringSpec("refcocog", "google", ("train", "val"), "refs(google).p"),
    "gres": ReferringSpec(
        "grefcoco",
        "unc",
        ("train", "val", "testA", "testB"),
        "grefs(unc).json",
        ("gref", "coco-2014"),
        per_sentence=True,
    ),
}


@dataclass(frozen=True)
class ReferringSample:
    """An image, and the sentences about the objects in one mask.

    Args:
        id: unique in the set.
        image: the photograph.
        sentences: sentences, which all describe the same mask.
        segments: polygons or run-length codes whose union is the mask; none for GRES's "no target".
        size: (height, width).
    """

    id: str
    image: Path
    sentences: tuple[str, ...]
    segments: tuple[Any, ...]
    size: tuple[int, int]

    def mask(self) -> Mask:
        """Return the ground truth, `(H, W)`."""
        inside = np.zeros(self.size, dtype=bool)
        for segment in self.segments:
            inside |= segment_mask(segment, self.size)
        return inside


@dataclass(frozen=True)
class ReferringScores:
    """The scores of predicted masks, in percent.

    Args:
        mean_iou: mean over the items of their IoU, 0 where both masks are empty (CaR's rule).
        overall_iou: all intersections over all unions, as most other papers report.
        precision: share of the items whose IoU reaches .5, .6, .7, .8, .9.
        n: number of items.
    """

    mean_iou: float
    overall_iou: float
    precision: Mapping[float, float]
    n: int


def load_referring(
    name: str, split: str = "val", data_root: str | Path | None = None
) -> tuple[ReferringSample, ...]:
    """Read a split of a referring data set from the official files.

    Raises:
        InputError: the name, the split or a file is not there, or a file is damaged or would run
            code.
    """
    spec = REFERRING.get(name)
    if spec is None:
        raise InputError(f"{name!r} is no referring set; known are {', '.join(REFERRING)}")
    if split not in spec.splits:
        raise InputError(f"{name} has no split {split!r}; it has {', '.join(spec.splits)}")
    root = data_root_of(data_root)
    folder = root / DATA / spec.folder
    refs = _read_refs(folder / spec.file)
    instances = folder / "instances.json"
    content = read_json_file(instances, "COCO instances")
    try:
        images = {image["id"]: image for image in content["images"]}
        segments = {a["id"]: a["segmentation"] for a in content["annotations"]}
        samples = [
            sample
            for ref in refs
            if ref["split"] == split
            for sample in _samples(spec, ref, images, segments, root / IMAGES)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder} does not fit together ({error!r:.60} is missing): {spec.file} and "
            f"instances.json must come from the same archive"
        ) from None
    if not samples:
        raise InputError(
            f"{folder / spec.file} has nothing in the split {split!r}; fetch the archive again"
        )
    return tuple(samples)


def referring_scores(pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> ReferringScores:
    """Score pairs (prediction, truth) of masks `(H, W)`.

    Raises:
        InputError: there are none, or two masks of a pair differ in size.
    """
    intersections, unions = [], []
    for prediction, truth in pairs:
        if prediction.shape != truth.shape:
            raise InputError(
                f"a predicted mask has the size {prediction.shape} and the truth {truth.shape}; "
                "predict at the size of the image"
            )
        a, b = prediction != 0, truth != 0
        intersections.append(int(np.count_nonzero(a & b)))
        unions.append(int(np.count_nonzero(a | b)))
    return scores_of_overlaps(intersections, unions)


def scores_of_overlaps(intersections: Sequence[int], unions: Sequence[int]) -> ReferringScores:
    """Score items by the pixels of the intersection and of the union.

    Raises:
        InputError: there are none.

    Source: SPEC car 9.
    """
    if len(unions) == 0:
        raise InputError("there are no masks to score; segment at least one image first")
    i, u = np.array(intersections, dtype=np.float64), np.array(unions, dtype=np.float64)
    iou = np.divide(i, u, out=np.zeros_like(i), where=u > 0)
    return ReferringScores(
        mean_iou=100 * float(iou.mean()),
        overall_iou=100 * float(i.sum() / u.sum()) if u.sum() else 0.0,
        precision={t: 100 * float((iou >= t).mean()) for t in THRESHOLDS},
        n=len(iou),
    )


def _samples(
    spec: ReferringSpec,
    ref: Mapping[str, Any],
    images: Mapping[int, Mapping[str, Any]],
    segments: Mapping[int, Any],
    folder: Path,
) -> list[ReferringSample]:
    image = images[ref["image_id"]]
    ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    chosen = tuple(segments[i] for i in ids if i != -1)  # GRES: -1 is "no such object"
    size = (int(image["height"]), int(image["width"]))
    photograph = folder / str(image["file_name"])
    sentences = [str(s.get("raw", s["sent"])) for s in ref["sentences"]]
    groups = [(s,) for s in sentences] if spec.per_sentence else [tuple(sentences)]
    return [
        ReferringSample(
            f"{ref['ref_id']}-{number}" if spec.per_sentence else str(ref["ref_id"]),
            photograph,
            group,
            chosen,
            size,
        )
        for number, group in enumerate(groups)
    ]


def _read_refs(path: Path) -> Sequence[Mapping[str, Any]]:
    content = (
        read_json_file(path, "REFER annotations")
        if path.suffix == ".json"
        else read_plain_pickle(path)
    )
    if not isinstance(content, list) or not all(isinstance(ref, dict) for ref in content):
        raise InputError(f"{path} is no list of expressions; fetch it again")
    return content
