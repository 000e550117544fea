"""Evaluates methods with weights on data sets, on identical images in identical order."""

from __future__ import annotations

import base64
import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from measuring import peak_memory_gib
from numpy.typing import NDArray
from PIL import Image

from car.config import CaRConfig
from car.segmenter import load_car
from openvocab.compare import compare
from openvocab.datasets import resolve
from openvocab.detectron2 import read_predictions
from openvocab.errors import InputError
from openvocab.evaluation import PREDICTIONS_FILE, RESULT_FILE, FolderDataset, evaluate_set
from openvocab.files import write_text
from openvocab.image import read_image
from openvocab.masks import decode_rle
from openvocab.metrics import CONVENTIONS, seen_unseen
from openvocab.results import Result
from openvocab.samples import SampleSet
from openvocab.segmenter import Segmenter
from openvocab.visualization import color_labels, palette, side_by_side
from openvocab.vocabulary import Vocabulary, available_vocabularies
from ovseg import load_ovseg
from ovseg.evaluate import with_published_weight
from san import load_san

TIMES_FILE = "times.json"
FORMAT = "openvocab-comparison-1"
_PANEL = 260  # height of the gallery's pictures
_FOLDERS = ("images", "labels", "names.txt")


@dataclass(frozen=True)
class Missing:
    """Something that was asked for and is not there.

    Attributes:
        what: the model or the data set.
        sentence: what is wrong and what to do.
    """

    what: str
    sentence: str


def find_data(name: str, root: Path | None) -> SampleSet:
    """Find a known data set, or a folder that holds images/, labels/ and names.txt.

    Raises:
        InputError: it is neither.
    """
    folder = Path(name)
    if folder.is_dir():
        parts = [folder / part for part in _FOLDERS]
        if absent := [part.name for part in parts if not part.exists()]:
            raise InputError(
                f"the folder {folder} has no {' and no '.join(absent)}; a data set of one's own is "
                "a folder with images/, labels/ and names.txt"
            )
        return FolderDataset(*parts)
    return resolve(name, root)


def load_method(method: str, weights: str, data: SampleSet | None = None) -> Segmenter:
    """Load a method from `--weights METHOD=...`.

    Args:
        method: "san", "ovseg" or "car".
        weights: what its own commands take; for CaR one CLIP or two, with a comma between.
        data: OVSeg's ensemble weight is the published one of this set.

    Raises:
        InputError: the weights are not there.
    """
    if method == "san":
        return load_san(weights)
    if method == "ovseg":
        segmenter = load_ovseg(weights)
        if data is not None:
            segmenter.inference = with_published_weight(segmenter.inference, data.vocabulary)
        return segmenter
    proposer, _, judge = weights.partition(",")
    return load_car(CaRConfig(clip=proposer, classifier_clip=judge or proposer))


def check_weights(weights: Mapping[str, str]) -> list[Missing]:
    """Return which weights cannot be found, before anything runs."""
    missing = []
    for method, source in weights.items():
        for part in source.split(",") if method == "car" else (source,):
            if Path(part).is_file():
                continue
            looks_like_path = "/" in part or Path(part).suffix
            try:
                if looks_like_path:
                    raise InputError(
                        f"there is no file '{part}'; fetch the checkpoint and put it there, or "
                        f"give another with --weights {method}=FILE"
                    )
                load_method(method, part)  # fetches it, or finds it in the cache
            except InputError as error:
                missing.append(Missing(f"weights of {method}", str(error)))
    return missing


class Timed:
    """A segmenter that notes how long its images took; names are encoded before the clock runs."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self.seconds: list[float] = []

    def describe(self) -> dict[str, Any]:
        """Return what the segmenter says about itself."""
        return self.segmenter.describe()

    def segment(self, image: Any, vocabulary: Any, **options: Any) -> Any:
        """Segment on the clock."""
        start = time.perf_counter()
        result = self.segmenter.segment(image, vocabulary, **options)
        self.seconds.append(time.perf_counter() - start)
        return result


@dataclass(frozen=True)
class Plan:
    """What is evaluated.

    Attributes:
        weights: by method.
        data: by name.
        output: the output folder.
        limit: images of each set; None for all.
        shard: (rank, world).
        resume: go on where an earlier run stopped.
        seen: names that training saw, a file or a vocabulary; None for COCO-Stuff's 171.
    """

    weights: Mapping[str, str]
    data: Mapping[str, SampleSet]
    output: Path
    limit: int | None = None
    shard: tuple[int, int] = (0, 1)
    resume: bool = True
    seen: str | None = None

    def folder(self, data: str, method: str) -> Path:
        """Return where one evaluation is logged."""
        return self.output / "runs" / slug(data) / method


def slug(name: str) -> str:
    """Return a data set's name as a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name).strip("-")


def evaluate_all(plan: Plan, say: Callable[[str], None]) -> list[Missing]:
    """Evaluate every method on every data set; return what a method could not do."""
    refused = []
    for name, data in plan.data.items():
        for method, weights in plan.weights.items():
            say(f"{method} on {name}")
            try:
                _evaluate(plan, name, data, method, weights)
            except InputError as error:
                refused.append(Missing(f"{method} on {name}", str(error)))
        _collect(plan, name, data)
    return refused


def _evaluate(plan: Plan, name: str, data: SampleSet, method: str, weights: str) -> None:
    folder = plan.folder(name, method)
    timed = Timed(load_method(method, weights, data))
    result = evaluate_set(
        timed,
        data,
        output=folder,
        resume=plan.resume,
        limit=plan.limit,
        shard=plan.shard,
        save_predictions=True,
    )
    if timed.seconds:
        # The first image pays for the names.
        typical = float(np.median(timed.seconds[1:] or timed.seconds))
        times = {"seconds": typical, "images": len(timed.seconds), "peak_gib": peak_memory_gib()}
        write_text(folder / TIMES_FILE, json.dumps(times) + "\n")
    if result.complete:
        result.save(plan.output / "results" / f"{slug(name)}--{method}.json")


def _collect(plan: Plan, name: str, data: SampleSet) -> None:
    """Write what the report needs to know about a data set beyond the single results."""
    done = [m for m in plan.weights if (plan.folder(name, m) / RESULT_FILE).is_file()]
    if not done:
        return
    results = {m: Result.load(plan.folder(name, m) / RESULT_FILE) for m in done}
    times = {m: _read_json(plan.folder(name, m) / TIMES_FILE) for m in done}
    value = {
        "format": FORMAT,
        "data_set": data.name,
        "title": Path(name).resolve().name if Path(name).is_dir() else data.name,
        "asked": name,
        "results": {m: f"{slug(name)}--{m}.json" for m in done},
        "times": times,
        "paired": [_paired(plan, name, a, b) for a, b in combinations(done, 2)],
        "seen": _seen(plan.seen, data.vocabulary, results),
        "gallery": _gallery(plan, name, data, done),
    }
    path = plan.output / "results" / f"{slug(name)}--comparison.json"
    write_text(path, json.dumps(value, indent=1) + "\n")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def _paired(plan: Plan, name: str, first: str, second: str) -> dict[str, Any]:
    found = compare(plan.folder(name, first), plan.folder(name, second))
    paired = {}
    for convention, difference in found.paired.items():
        interval = difference.interval
        paired[convention] = {
            "difference": _number(interval.estimate),
            "low": _number(interval.low),
            "high": _number(interval.high),
            "probability_better": difference.probability_better,
        }
    return {
        "first": first,
        "second": second,
        "protocol": list(found.differences),
        "conventions": paired,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _seen(
    asked: str | None, vocabulary: Vocabulary, results: Mapping[str, Result]
) -> dict[str, Any] | None:
    """Score the classes that training saw and the others; None if it is all or nothing."""
    seen = _seen_names(asked)
    ids = [i for i, name in enumerate(vocabulary.names) if name.strip() in seen]
    if not ids or len(ids) == len(vocabulary):
        return None
    rows: dict[str, Any] = {}
    for method, result in results.items():
        for convention in CONVENTIONS[:2]:
            found = seen_unseen(result.matrix, ids, convention)
            values = (found.seen_miou, found.unseen_miou, found.harmonic_miou)
            rows.setdefault(method, {})[convention] = [_number(value) for value in values]
    return {"list": asked or "coco-stuff-171", "classes": len(ids), "methods": rows}


def _seen_names(asked: str | None) -> set[str]:
    if asked is not None and Path(asked).is_file():
        return {line.strip() for line in Path(asked).read_text("utf-8").splitlines()}
    key = asked or "coco-stuff-171"
    if key not in available_vocabularies():
        raise InputError(f"--seen is {asked!r}; give a file of names or a vocabulary's name")
    return {name.strip() for name in Vocabulary.load(key).names}


def _gallery(
    plan: Plan, name: str, data: SampleSet, methods: Sequence[str], count: int = 6
) -> list[dict[str, Any]]:
    """Return the images on which the methods disagree most, drawn side by side."""
    predictions = {
        m: read_predictions(plan.folder(name, m) / PREDICTIONS_FILE)
        for m in methods
        if (plan.folder(name, m) / PREDICTIONS_FILE).is_file()
    }
    if len(predictions) < 2:
        return []
    scored = []
    for sample in data.samples[: plan.limit]:
        maps = _maps(predictions, str(sample.image))
        if maps is not None:
            scored.append((_disagreement(list(maps.values())), sample))
    scored.sort(key=lambda pair: (-pair[0], pair[1].id))
    gallery = []
    for share, sample in scored[:count]:
        maps = _maps(predictions, str(sample.image))
        assert maps is not None
        truth = np.asarray(data.read_label(sample)).astype(np.int64)
        truth[(truth >= len(data.vocabulary)) | (truth < 0)] = -1
        names = data.vocabulary.names
        gallery.append(
            {
                "id": sample.id,
                "disagreement": share,
                "jpeg": _draw(read_image(sample.image), truth, maps, len(names)),
                "legend": _legend([truth, *maps.values()], names),
            }
        )
    return gallery


def _maps(predictions: Mapping[str, Any], image: str) -> dict[str, NDArray[np.int64]] | None:
    """Return the label maps of one image by method, or None if a method has none of it."""
    maps = {}
    for method, by_image in predictions.items():
        segments = by_image.get(image)
        if not segments:
            return None
        height, width = segments[0].segmentation["size"]
        labels = np.full((height, width), -1, dtype=np.int64)
        for segment in segments:
            labels[decode_rle(segment.segmentation)] = segment.category_id
        maps[method] = labels
    return maps


def _disagreement(maps: Sequence[NDArray[np.int64]]) -> float:
    """Return the share of pixels on which not all maps agree."""
    same = np.logical_and.reduce([maps[0] == other for other in maps[1:]])
    return float(1 - same.mean())


def _draw(
    image: NDArray[np.uint8],
    truth: NDArray[np.int64],
    maps: Mapping[str, NDArray[np.int64]],
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


def _legend(maps: Sequence[NDArray[np.int64]], names: Sequence[str]) -> list[list[str]]:
    """Return (name, colour) of every class that any of the maps has."""
    colors = palette(len(names))
    ids = np.unique(np.concatenate([labels.ravel() for labels in maps]))
    return [[names[i], "#{:02x}{:02x}{:02x}".format(*colors[i])] for i in ids if i >= 0]
