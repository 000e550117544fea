"""Evaluates and diagnoses one method on one data set; `run_all.py` starts it for each pair.

It runs in a process of its own, so that the measured memory is the method's own. The last line of
its output is JSON.
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

from benchmarks.forms import Announced, Costs
from benchmarks.layout import COSTS_FILE, CROPS_FILE, DIAGNOSES_FILE, read_json, run_folder
from benchmarks.measuring import peak_memory_gib
from benchmarks.quality.plan import find_data, is_world, load_method, shard
from openvocab.cli import CommandParser, run
from openvocab.clip.prompts import TextEncoder
from openvocab.computation import choose_device
from openvocab.datasets.samples import SampleSet
from openvocab.errors import InputError
from openvocab.evaluation.diagnosis import Diagnosis, Found
from openvocab.evaluation.log import read_records
from openvocab.evaluation.oracle import KnownTruth
from openvocab.evaluation.results import Result
from openvocab.evaluation.run import evaluate_set
from openvocab.files import write_text
from openvocab.methods import find_method
from openvocab.segmenter import Segmenter
from openvocab.world.crop_accuracy import crop_accuracy


class Timed:
    """A segmenter that records the time of each image."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self.seconds: list[float] = []

    def describe(self) -> dict[str, Any]:
        """Return the segmenter's own description."""
        return self.segmenter.describe()

    def segment(self, image: Any, vocabulary: Any, **options: Any) -> Any:
        """Segment an image and record the time."""
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
    method = find_method(args.method)
    folder = run_folder(args.output, args.data, args.method)
    data = find_data(args.data, args.data_root)
    segmenter = load_method(args.method, args.weights, data, choose_device(args.device))
    asked = args.diagnoses and method.diagnoses is not None
    diagnoses = method.diagnoses(segmenter) if asked and method.diagnoses else ()
    timed = Timed(segmenter)
    result = _evaluate(timed, data, folder, args, save_predictions=True)
    if timed.seconds:
        write_text(folder / COSTS_FILE, json.dumps(costs(timed.seconds, before)) + "\n")
    if diagnoses:
        found = {r.id: r.segments or {} for r in read_records(folder, result.card)}
        run_diagnoses(diagnoses, data, found, folder, args)
    if method.naming_clip is not None and is_world(data) and shard()[0] == 0:
        weights_sha256 = str(segmenter.describe().get("weights_sha256"))
        _measure_crops(method.naming_clip(segmenter), weights_sha256, folder, args)


def costs(seconds: Sequence[float], before: float) -> Costs:
    """Return the median seconds for an image, without the first one, and the memory.

    Args:
        seconds: seconds of the images, in order.
        before: GiB at most before the method was loaded: Python and libraries.
    """
    return {
        "seconds": float(np.median(seconds[1:] or seconds)),
        "images": len(seconds),
        "peak_gib": peak_memory_gib(),
        "libraries_gib": before,
    }


def run_diagnoses(
    diagnoses: Sequence[Diagnosis],
    data: SampleSet,
    found: Found,
    folder: Path,
    args: argparse.Namespace,
) -> None:
    """Run a method's diagnoses, and write which there are and why some cannot be done."""
    known = KnownTruth(data)
    announced: dict[str, Announced] = {}
    for one in diagnoses:
        print(f"{args.method}, {one.key}", file=sys.stderr, flush=True)
        limit, reason = args.again if one.runs_again else None, ""
        try:
            told = one.segmenter(known, found)
            _evaluate(told, known, folder / one.key, args, limit=limit or args.limit)
        except InputError as error:
            reason = str(error)
        announced[one.key] = {
            "title": one.title, "note": one.note, "paired": one.paired, "reason": reason,
        }  # fmt: skip
    write_text(folder / DIAGNOSES_FILE, json.dumps(announced) + "\n")


def _evaluate(
    segmenter: Segmenter,
    data: SampleSet,
    folder: Path,
    args: argparse.Namespace,
    **options: Any,
) -> Result:
    return evaluate_set(
        segmenter,
        data,
        output=folder,
        resume=args.resume,
        shard=shard(),
        **{"limit": args.limit, **options},
    )


def _measure_crops(
    clip: TextEncoder, weights_sha256: str, folder: Path, args: argparse.Namespace
) -> None:
    before = read_json(folder / CROPS_FILE) or {}
    if args.resume and before.get("weights_sha256") == weights_sha256:
        return
    found = {**crop_accuracy(clip), "weights_sha256": weights_sha256}
    write_text(folder / CROPS_FILE, json.dumps(found) + "\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("method", help="key of an installed method")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--diagnoses", action="store_true")
    parser.add_argument(
        "--again", type=int, help="number of images of the diagnoses that run the method again"
    )
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
