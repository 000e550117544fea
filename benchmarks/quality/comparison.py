"""The JSON for the report, collected from the finished evaluations of a data set."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import MappingProxyType

import numpy as np

from benchmarks.forms import (
    Announced,
    Between,
    CalibrationCurves,
    Comparison,
    Costs,
    DiagnosisEntry,
    MethodPair,
    Paired,
    PartScores,
    Seen,
)
from benchmarks.layout import COSTS_FILE, CROPS_FILE, DIAGNOSES_FILE, FORMAT, read_json, result_file
from benchmarks.quality.controls import control_of
from benchmarks.quality.plan import Plan, is_world
from benchmarks.reporting.gallery import examples, thumbnails
from openvocab.compare import Evaluation, compare_evaluations, compare_every_two
from openvocab.datasets.samples import SampleSet
from openvocab.errors import InputError
from openvocab.evaluation.log import ImageRecord
from openvocab.evaluation.run import RESULT_FILE
from openvocab.files import write_text
from openvocab.methods import find_method
from openvocab.metrics.bootstrap import PairedDifference, paired_difference
from openvocab.metrics.calibration import Reliability
from openvocab.metrics.scores import CONVENTIONS, Convention, IntArray, scores, seen_unseen
from openvocab.vocabulary import Vocabulary, available_vocabularies
from openvocab.weights.training_names import seen_by_training, training_names
from openvocab.world import seen_labels

_SEEN = "coco-stuff-171"  # what SAN and OVSeg are trained on


def write_comparison(plan: Plan, name: str) -> None:
    """Write everything that the report needs of a data set beyond the single results.

    Every evaluation is read only once.
    """
    data = plan.data[name]
    found = {key: one for key in plan.rows if (one := _read(plan, name, key)) is not None}
    if not found:
        return
    seen = seen_classes(plan.seen, data, plan.weights)
    ids = None if seen is None else seen["ids"]
    parts = {key: part_scores(one.result.matrix, ids) for key, one in found.items()}
    for key, one in found.items():
        one.result.save(result_file(plan.output, name, key))
    if seen is not None:
        seen["methods"] = _by_convention(found, seen["ids"])
    records = {key: one.records for key, one in found.items()}
    images = thumbnails(data, records, plan.limit)
    write_text(result_file(plan.output, name, "images"), json.dumps(images) + "\n")
    value: Comparison = {
        "format": FORMAT,
        "data_set": data.name,
        "title": _title(name, data),
        "asked": name,
        "results": {key: result_file(plan.output, name, key).name for key in found},
        "times": {key: _costs(one) for key, one in found.items()},
        "scores": parts,
        "control": {
            key: control_of(one.result.matrix, parts[key]["all"]) for key, one in found.items()
        },
        "titles": {key: plan.foreign[key] for key in found if key in plan.foreign},
        "between": _between(found),
        "paired": [_pair(a, b, found[a], found[b]) for a, b in combinations(found, 2)],
        "seen": seen,
        "diagnoses": {key: _diagnoses(plan, name, key, one, ids) for key, one in found.items()},
        "crops": {
            key: crops
            for key, one in found.items()
            if is_world(data) and (crops := read_json(one.folder / CROPS_FILE)) is not None
        },
        "gallery": examples(data, records, images),
        "calibration": {
            key: curves
            for key, own in records.items()
            if (curves := calibration_curves(list(own.values()))) is not None
        },
    }
    path = result_file(plan.output, name, "comparison")
    write_text(path, json.dumps(value, indent=1) + "\n")


def calibration_curves(records: Sequence[ImageRecord]) -> CalibrationCurves | None:
    """Return how good the confidences of a method are; None where its weights have none.

    Args:
        records: of all images.
    """
    counts = [record.confidence for record in records if record.confidence is not None]
    if not counts or len(counts) < len(records):
        return None
    counted = Reliability(*np.stack(counts, axis=1))
    interval, pixels = counted.interval(), counted.pixels.sum(0)
    coverage, risk = counted.risk_coverage()
    low, high = counted.accuracy_intervals()
    mean = np.where(pixels > 0, counted.confidence.sum(0) / np.maximum(pixels, 1), np.nan)
    return {
        "error": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "pixels": pixels.astype(int).tolist(),
        "confidence": [_number(value) for value in mean],
        "accuracy": [_number(value) for value in counted.accuracy()],
        "accuracy_low": [_number(value) for value in low],
        "accuracy_high": [_number(value) for value in high],
        "coverage": [_number(value) for value in coverage],
        "risk": [_number(value) for value in risk],
    }


def _read(plan: Plan, name: str, *parts: str) -> Evaluation | None:
    """Read an evaluation of a method, or of one of its diagnoses, if it was finished.

    Images beyond the limit, which an earlier run may have evaluated, are left out.
    """
    key, *rest = parts
    folder = plan.folder(name, key).joinpath(*rest)
    if not (folder / RESULT_FILE).is_file():
        return None
    found = Evaluation.read(folder)
    wanted = {sample.id for sample in plan.data[name].samples[: plan.limit]}
    return replace(found, records={i: r for i, r in found.records.items() if i in wanted})


def _costs(evaluation: Evaluation) -> Costs | None:
    costs: Costs | None = read_json(evaluation.folder / COSTS_FILE)
    return costs


def _title(name: str, data: SampleSet) -> str:
    if Path(name).is_dir():
        return Path(name).resolve().name
    return data.name if data.split in ("", "val") else f"{data.name}, {data.split}"


def part_scores(matrix: IntArray, seen: Sequence[int] | None) -> PartScores:
    """Return mIoU of all classes, the seen, the unseen, and the harmonic mean of the two.

    Args:
        matrix: a confusion matrix.
        seen: class ids; None leaves the parts out.
    """
    if seen is None:
        return {"all": _number(scores(matrix).miou)}
    return _parts(matrix, seen, "detectron2")


def _parts(matrix: IntArray, seen: Sequence[int], convention: Convention) -> PartScores:
    found = seen_unseen(matrix, seen, convention)
    return {
        "all": _number(scores(matrix, convention).miou),
        "seen": _number(found.seen_miou),
        "unseen": _number(found.unseen_miou),
        "harmonic": _number(found.harmonic_miou),
    }


def _number(value: float) -> float | None:
    """Return a value as a JSON number, or None if it is not finite."""
    return None if math.isnan(value) else float(value)


def seen_classes(
    asked: str | None, data: SampleSet, weights: Mapping[str, str] = MappingProxyType({})
) -> Seen | None:
    """Return the classes that training saw, and their list; None if it saw all or none.

    Args:
        asked: a file of names or a vocabulary; None: what the checkpoints say of their training,
            and COCO-Stuff's names where they say nothing, as the published ones.
        data: data set whose classes are divided into seen and unseen.
        weights: weights by method.

    Raises:
        InputError: a list was asked for that is neither a file nor a vocabulary.
    """
    trained = _names_of_training(weights) if asked is None else ()
    if asked is None and is_world(data):
        ids, source = list(seen_labels()), "the world's list of seen names"
    elif trained:
        ids, source = seen_by_training(trained, data.vocabulary), "what the checkpoints say"
    else:
        seen, source = _seen_names(asked or _SEEN), asked or _SEEN
        ids = [i for i, name in enumerate(data.vocabulary.names) if name.strip() in seen]
    if not ids or len(ids) == len(data.vocabulary):
        return None
    return {"list": source, "classes": len(ids), "ids": ids}


def _names_of_training(weights: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the training set, as far as all checkpoints that name it agree."""
    found = [
        names
        for key, source in weights.items()
        if (names := training_names(source, find_method(key).package))
    ]
    first, *others = found or [()]
    return tuple(name for name in first if all(name in other for other in others))


def _seen_names(asked: str) -> set[str]:
    if Path(asked).is_file():
        return {line.strip() for line in Path(asked).read_text("utf-8").splitlines()}
    if asked not in available_vocabularies():
        raise InputError(f"--seen is {asked!r}; give a file of names or a vocabulary's name")
    return {name.strip() for name in Vocabulary.load(asked).names}


def _by_convention(
    found: Mapping[str, Evaluation], ids: Sequence[int]
) -> dict[str, dict[str, PartScores]]:
    return {
        key: {c: _parts(one.result.matrix, ids, c) for c in CONVENTIONS[:2]}
        for key, one in found.items()
    }


def _pair(first: str, second: str, left: Evaluation, right: Evaluation) -> MethodPair:
    found = compare_evaluations(left, right)
    return {
        "first": first,
        "second": second,
        "protocol": list(found.differences),
        "conventions": {c: _interval(paired) for c, paired in found.paired.items()},
    }


def _between(found: Mapping[str, Evaluation]) -> list[Between]:
    """Return the difference of every pair, with intervals that hold for all pairs together."""
    if len(found) < 2:
        return []
    return [
        {
            "first": first,
            "second": second,
            "difference": _number(paired.interval.estimate),
            "low": _number(paired.interval.low),
            "high": _number(paired.interval.high),
        }
        for (first, second), paired in compare_every_two(found).items()
    ]


def _interval(paired: PairedDifference) -> Paired:
    return {
        "difference": _number(paired.interval.estimate),
        "low": _number(paired.interval.low),
        "high": _number(paired.interval.high),
        "probability_better": paired.probability_better,
    }


def _diagnoses(
    plan: Plan, name: str, key: str, itself: Evaluation, seen: Sequence[int] | None
) -> dict[str, DiagnosisEntry]:
    """Return the scores of a method's diagnoses by name, or the reason why there are none."""
    if not plan.diagnosed(name):
        return {}
    announced: dict[str, Announced] = read_json(itself.folder / DIAGNOSES_FILE) or {}
    entries: dict[str, DiagnosisEntry] = {}
    for part, said in announced.items():
        entry: DiagnosisEntry = {"title": said["title"], "note": said["note"]}
        if said["reason"]:
            entries[part] = {**entry, "reason": said["reason"]}
        elif (found := _read(plan, name, key, part)) is not None:
            result = found.result
            result.save(result_file(plan.output, name, key, part))
            scored = part_scores(result.matrix, seen)
            entries[part] = {**entry, **scored, "images": result.card.n_images}
            if said["paired"]:
                entries[part]["paired"] = _difference(itself, found)
    return entries


def _difference(itself: Evaluation, other: Evaluation) -> Paired:
    """Return the difference between a method and its diagnosis, on images that both evaluated."""
    both = sorted(itself.records.keys() & other.records.keys())
    first, second = ([one.records[i].pairs for i in both] for one in (itself, other))
    paired = paired_difference(first, second, len(itself.result.names))
    return {**_interval(paired), "images": len(both)}
