"""Evaluates one method on one data set, and diagnoses it; `run_all.py` starts it for each.

A process of its own makes the memory that is measured the method's own. The last line that it
prints is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.layout import COSTS_FILE, CROPS_FILE, REFUSED_FILE, read_json, run_folder
from benchmarks.measuring import peak_memory_gib
from benchmarks.quality.crops import crop_accuracy
from benchmarks.quality.diagnoses import LENGTHY, Codes, diagnoses_of
from benchmarks.quality.plan import find_data, is_world, load_method, shard
from car.diagnosis import FirstSteps
from car.segmenter import CaRSegmenter
from openvocab.cli import run
from openvocab.computation import choose_device
from openvocab.datasets.samples import SampleSet
from openvocab.errors import InputError
from openvocab.evaluation.log import read_records
from openvocab.evaluation.oracle import KnownTruth
from openvocab.evaluation.results import Result
from openvocab.evaluation.run import evaluate_set
from openvocab.files import write_text
from openvocab.segmenter import Segmenter


class Timed:
    """A segmenter that notes how long its images took."""

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


def evaluate_method(args: argparse.Namespace) -> None:
    """Evaluate, measure, diagnose.

    Raises:
        InputError: the weights or the data are not there, or the method cannot do it.
    """
    before = peak_memory_gib()
    folder = run_folder(args.output, args.data, args.method)
    data = find_data(args.data, args.data_root)
    device = choose_device(args.device)
    segmenter = load_method(args.method, args.weights, data, device)
    diagnosed = args.diagnoses and isinstance(segmenter, CaRSegmenter)
    first_steps = FirstSteps(segmenter) if diagnosed else None
    timed = Timed(segmenter)
    result = _evaluate(timed, data, folder, args, save_predictions=True)
    if timed.seconds:
        write_text(folder / COSTS_FILE, json.dumps(costs(timed.seconds, before)) + "\n")
    if args.diagnoses:
        found = {r.id: r.segments or {} for r in read_records(folder, result.card)}
        diagnose(segmenter, data, found, folder, args, first_steps)
    if isinstance(segmenter, CaRSegmenter) and is_world(data) and shard()[0] == 0:
        _measure_crops(segmenter, folder, args)


def costs(seconds: Sequence[float], before: float) -> dict[str, Any]:
    """Return seconds for an image, without the first one, which pays for the names, and memory.

    Args:
        seconds: of the images in order.
        before: GiB at most before the method was loaded: Python and libraries.
    """
    return {
        "seconds": float(np.median(seconds[1:] or seconds)),
        "images": len(seconds),
        "peak_gib": peak_memory_gib(),
        "libraries_gib": before,
    }


def diagnose(
    segmenter: Segmenter,
    data: SampleSet,
    found: Codes,
    folder: Path,
    args: argparse.Namespace,
    first_steps: FirstSteps | None = None,
) -> None:
    """Evaluate the method with parts of the truth, and write why some of them cannot be told."""
    known = KnownTruth(data)
    refused = {}
    for part, told in diagnoses_of(args.method, segmenter, known, found, first_steps).items():
        print(f"{args.method}, {part}", file=sys.stderr, flush=True)
        limit = args.again if part in LENGTHY else None
        try:
            _evaluate(told, known, folder / part, args, limit=limit or args.limit)
        except InputError as error:
            refused[part] = str(error)
    write_text(folder / REFUSED_FILE, json.dumps(refused) + "\n")


def _evaluate(
    segmenter: Any, data: Any, folder: Path, args: argparse.Namespace, **options: Any
) -> Result:
    return evaluate_set(
        segmenter,
        data,
        output=folder,
        resume=args.resume,
        shard=shard(),
        **{"limit": args.limit, **options},
    )


def _measure_crops(segmenter: CaRSegmenter, folder: Path, args: argparse.Namespace) -> None:
    before = read_json(folder / CROPS_FILE) or {}
    if args.resume and before.get("weights_sha256") == segmenter.weights_sha256:
        return
    found = crop_accuracy(segmenter.car.mask_classifier.text)
    found["weights_sha256"] = segmenter.weights_sha256
    write_text(folder / CROPS_FILE, json.dumps(found) + "\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=("san", "ovseg", "car"))
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--diagnoses", action="store_true")
    parser.add_argument("--again", type=int, help="limit of diagnoses that run the method again")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, and print what was refused."""
    refused = None
    try:
        evaluate_method(make_parser().parse_args(argv))
    except InputError as error:
        refused = str(error)
    print(json.dumps({"refused": refused}))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
