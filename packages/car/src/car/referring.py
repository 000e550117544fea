"""Scoring CaR on referring expressions: one mask for all sentences about an object.

Source: SPEC car 9.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from openvocab.datasets.referring import (
    REFERRING,
    ReferringSample,
    ReferringScores,
    scores_of_overlaps,
)
from openvocab.errors import InputError
from openvocab.evaluation.log import EvaluationLog, ImageRecord
from openvocab.evaluation.protocol import ProtocolCard, protocol_card
from openvocab.files import write_text
from openvocab.image import read_image
from openvocab.metrics.scores import count_pairs
from openvocab.vocabulary import Background, Vocabulary

if TYPE_CHECKING:
    from car.segmenter import CaRSegmenter

RESULT_FILE = "referring.json"
# Labels of the two-class maps that are logged.
_CLASSES = Vocabulary(
    ("background", "object"), "origami", background=Background.names(("background",))
)


@dataclass(frozen=True)
class ReferringResult:
    """Scores with their protocol; not complete while items of other processes are missing."""

    card: ProtocolCard
    scores: ReferringScores
    complete: bool


def evaluate_referring(
    segmenter: CaRSegmenter,
    samples: Sequence[ReferringSample],
    *,
    name: str,
    split: str,
    output: Path,
    limit: int | None = None,
    shard: tuple[int, int] = (0, 1),
    resume: bool = True,
    progress: bool = True,
) -> ReferringResult:
    """Find the object of every item and compare it with the ground truth.

    Finished items are logged in `output`, and a later call with the same protocol computes only
    what is missing.

    Raises:
        InputError: an image cannot be read or has not the size that the annotations say, or there
            is nothing to evaluate on.
    """
    chosen = samples[:limit]
    if not chosen:
        raise InputError("there are no items to evaluate on; give a limit of at least 1, or none")
    card = ProtocolCard(data_set=name, split=split, n_images=len(chosen), n_classes=2)
    card = replace(protocol_card(segmenter, _CLASSES, card), background="bg_cls")
    log = EvaluationLog(output, card, shard, keep=resume)
    try:
        done = {record.id for record in log.records()}
        own = chosen[shard[0] :: shard[1]]
        missing = [sample for sample in own if sample.id not in done]
        for sample in tqdm(missing, unit="item", disable=not progress):
            log.append(_run(segmenter, name, sample))
        records = {record.id: record for record in log.records()}
    finally:
        log.close()
    found = [records[sample.id] for sample in chosen if sample.id in records]
    result = ReferringResult(card, score_records(found), len(found) == len(chosen))
    if result.complete:
        write_text(output / RESULT_FILE, json.dumps(to_json(result), indent=1) + "\n")
    return result


def sentences_of(name: str, sample: ReferringSample) -> tuple[str, ...]:
    """Return the sentences as the original cleans them; those of GRES stay as they are."""
    if REFERRING[name].per_sentence:
        return sample.sentences
    return tuple(s.lower().replace('"', "").replace("/", "") for s in sample.sentences)


def score_records(records: Sequence[ImageRecord]) -> ReferringScores:
    """Score logged items by CaR's rules: an item without any pixel has the IoU 0."""
    if not records:
        raise InputError("there are no finished items to score; evaluate at least one first")
    shared, union = zip(*map(_overlap, records), strict=True)
    return scores_of_overlaps(shared, union)


def to_json(result: ReferringResult) -> dict[str, Any]:
    """Return a result as values that JSON knows."""
    scores = asdict(result.scores)
    precision: Mapping[float, float] = scores.pop("precision")
    return {
        "card": result.card.to_json(),
        "scores": {**scores, **{f"precision@{t:g}": value for t, value in precision.items()}},
    }


def _run(segmenter: CaRSegmenter, name: str, sample: ReferringSample) -> ImageRecord:
    image, truth = read_image(sample.image), sample.mask()
    if image.shape[:2] != truth.shape:
        raise InputError(
            f"{sample.image} has {image.shape[1]}x{image.shape[0]} pixels, but its annotation is "
            f"for {truth.shape[1]}x{truth.shape[0]}; they must come from the same data set"
        )
    found = segmenter.find_object(image, sentences_of(name, sample))
    return ImageRecord(sample.id, count_pairs(found.astype(np.uint8), truth.astype(np.uint8), 2))


def _overlap(record: ImageRecord) -> tuple[int, int]:
    """Intersection and union of the object in one item, in pixels."""
    matrix = record.pairs.dense(2)
    return int(matrix[1, 1]), int(matrix[1].sum() + matrix[0, 1])
