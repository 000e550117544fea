"""Puts the finished evaluations of a data set together into the JSON that the report is made of."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.layout import COSTS_FILE, CROPS_FILE, FORMAT, REFUSED_FILE, read_json, result_file
from benchmarks.quality.controls import control_of
from benchmarks.quality.diagnoses import ONE_STEP, PARTS
from benchmarks.quality.plan import Plan, is_world
from benchmarks.reporting.gallery import gallery
from openvocab.compare import compare
from openvocab.datasets.samples import SampleSet
from openvocab.errors import InputError
from openvocab.evaluation.log import ImageRecord, read_records
from openvocab.evaluation.results import Result
from openvocab.evaluation.run import PREDICTIONS_FILE, RESULT_FILE
from openvocab.files import write_text
from openvocab.metrics.bootstrap import PairedDifference, paired_difference
from openvocab.metrics.scores import CONVENTIONS, IntArray, scores, seen_unseen
from openvocab.vocabulary import Vocabulary, available_vocabularies
from openvocab.world import seen_labels

_SEEN = "coco-stuff-171"  # what SAN and OVSeg are trained on


def collect(plan: Plan, name: str) -> None:
    """Write what the report needs to know about a data set beyond the single results."""
    data = plan.data[name]
    done = [m for m in plan.weights if (plan.folder(name, m) / RESULT_FILE).is_file()]
    if not done:
        return
    results = {m: Result.load(plan.folder(name, m) / RESULT_FILE) for m in done}
    seen = seen_classes(plan.seen, data)
    ids = None if seen is None else seen["ids"]
    found = {m: part_scores(result.matrix, ids) for m, result in results.items()}
    for method, result in results.items():
        result.save(result_file(plan.output, name, method))
    predictions = {m: plan.folder(name, m) / PREDICTIONS_FILE for m in done}
    value = {
        "format": FORMAT,
        "data_set": data.name,
        "title": _title(name, data),
        "asked": name,
        "results": {m: result_file(plan.output, name, m).name for m in done},
        "times": {m: read_json(plan.folder(name, m) / COSTS_FILE) for m in done},
        "scores": found,
        "control": {m: control_of(r.matrix, found[m]["all"]) for m, r in results.items()},
        "paired": [_pair(plan, name, a, b) for a, b in combinations(done, 2)],
        "seen": None if seen is None else {**seen, "methods": _by_convention(results, ids)},
        "diagnoses": {m: _diagnoses(plan, name, m, ids) for m in done},
        "one_step": _one_step(plan, name),
        "crops": read_json(plan.folder(name, "car") / CROPS_FILE) if is_world(data) else None,
        "gallery": gallery(data, {m: p for m, p in predictions.items() if p.is_file()}, plan.limit),
    }
    path = result_file(plan.output, name, "comparison")
    write_text(path, json.dumps(value, indent=1) + "\n")


def _title(name: str, data: SampleSet) -> str:
    if Path(name).is_dir():
        return Path(name).resolve().name
    return data.name if data.split in ("", "val") else f"{data.name}, {data.split}"


def part_scores(matrix: IntArray, seen: Sequence[int] | None) -> dict[str, float | None]:
    """Return mIoU of all classes, the seen, the unseen, and the harmonic mean of the two.

    Args:
        matrix: a confusion matrix.
        seen: class ids; None leaves the parts out.
    """
    found = {"all": _number(scores(matrix).miou)}
    return found if seen is None else {**found, **_parts(matrix, seen, "detectron2")}


def _parts(matrix: IntArray, seen: Sequence[int], convention: Any) -> dict[str, float | None]:
    found = seen_unseen(matrix, seen, convention)
    return {
        "seen": _number(found.seen_miou),
        "unseen": _number(found.unseen_miou),
        "harmonic": _number(found.harmonic_miou),
    }


def _number(value: float) -> float | None:
    """Return what JSON can hold."""
    return None if math.isnan(value) else float(value)


def seen_classes(asked: str | None, data: SampleSet) -> dict[str, Any] | None:
    """Return which classes training saw, and by which list; None if it is all or nothing.

    Raises:
        InputError: a list was asked for that is neither a file nor a vocabulary.
    """
    if asked is None and is_world(data):
        ids, source = list(seen_labels()), "the world's list of seen names"
    else:
        seen, source = _seen_names(asked or _SEEN), asked or _SEEN
        ids = [i for i, name in enumerate(data.vocabulary.names) if name.strip() in seen]
    if not ids or len(ids) == len(data.vocabulary):
        return None
    return {"list": source, "classes": len(ids), "ids": ids}


def _seen_names(asked: str) -> set[str]:
    if Path(asked).is_file():
        return {line.strip() for line in Path(asked).read_text("utf-8").splitlines()}
    if asked not in available_vocabularies():
        raise InputError(f"--seen is {asked!r}; give a file of names or a vocabulary's name")
    return {name.strip() for name in Vocabulary.load(asked).names}


def _by_convention(results: Mapping[str, Result], ids: Sequence[int]) -> dict[str, Any]:
    return {
        method: {c: _parts(result.matrix, ids, c) for c in CONVENTIONS[:2]}
        for method, result in results.items()
    }


def _pair(plan: Plan, name: str, first: str, second: str) -> dict[str, Any]:
    found = compare(plan.folder(name, first), plan.folder(name, second))
    return {
        "first": first,
        "second": second,
        "protocol": list(found.differences),
        "conventions": {c: _interval(paired) for c, paired in found.paired.items()},
    }


def _interval(paired: PairedDifference) -> dict[str, float | None]:
    return {
        "difference": _number(paired.interval.estimate),
        "low": _number(paired.interval.low),
        "high": _number(paired.interval.high),
        "probability_better": paired.probability_better,
    }


def _diagnoses(plan: Plan, name: str, method: str, seen: Sequence[int] | None) -> dict[str, Any]:
    """Return the scores of a method's diagnoses by name, or the reason why there are none."""
    if not plan.diagnosed(name):
        return {}
    folder = plan.folder(name, method)
    refused = read_json(folder / REFUSED_FILE) or {}
    found: dict[str, Any] = {}
    for part in PARTS:
        path = folder / part / RESULT_FILE
        if part in refused:
            found[part] = {"reason": refused[part]}
        elif path.is_file():
            result = Result.load(path)
            result.save(result_file(plan.output, name, method, part))
            found[part] = {**part_scores(result.matrix, seen), "images": result.card.n_images}
    return found


def _one_step(plan: Plan, name: str) -> dict[str, float | None] | None:
    """Return how much better CaR is than after one step, on the images that both have seen."""
    folder = plan.folder(name, "car")
    there = (folder / ONE_STEP / RESULT_FILE).is_file()
    if "car" not in plan.weights or not plan.diagnosed(name) or not there:
        return None
    itself, one = ({r.id: r.pairs for r in _records(f)} for f in (folder, folder / ONE_STEP))
    both = sorted(itself.keys() & one.keys())
    first, second = [itself[i] for i in both], [one[i] for i in both]
    paired = paired_difference(first, second, len(plan.data[name].vocabulary))
    return {**_interval(paired), "images": len(both)}


def _records(folder: Path) -> Iterator[ImageRecord]:
    return read_records(folder, Result.load(folder / RESULT_FILE).card)
