"""`python -m benchmarks.quality.calibration --output FILE`: measure how good confidences are.

For each method with a calibration of its world weights, on the scenes of world:val, which no
calibration was fitted on: the expected calibration error with its interval, the reliability diagram
and the risk-coverage curve, as numbers; and how well `named` tells ground without a name from the
rest, on scenes whose ground has lost its name; and what confidences cost.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measuring import add_measuring_arguments, report
from openvocab.calibrate import Judged, judge, without_ground
from openvocab.cli import CommandParser, run
from openvocab.errors import InputError
from openvocab.image import read_image
from openvocab.inference.confidence import use_calibration
from openvocab.methods import available_methods, load, title_of
from openvocab.metrics.calibration import auroc, reliability
from openvocab.segmenter import BaseSegmenter
from openvocab.vocabulary import NOTHING, WORLD
from openvocab.world import open_world

REPEATS = 20  # of each measurement of time
_STEP = 7  # every so many pixels count for curves over pixels of all scenes


def measure(segmenter: BaseSegmenter, count: int | None = None) -> dict[str, Any]:
    """Measure the confidences of a calibrated method on scenes of world:val.

    Args:
        segmenter: the method.
        count: number of scenes; None for all.
    """
    data = open_world("val", count)
    vocabulary = data.vocabulary
    images, confident, named = [], _Ranked(), _Ranked()
    for sample in data.samples:
        seen = judge(segmenter, data, sample, vocabulary)
        confidence, _ = _probabilities(seen)
        chosen, right = seen.judgeable(), seen.right()
        images.append((confidence[chosen], right[chosen]))
        confident.add(confidence[chosen], right[chosen])
        reduced = without_ground(vocabulary, seen.truth)
        if reduced is not None:
            seen = judge(segmenter, data, sample, *reduced)
            known = seen.known()
            named.add(_probabilities(seen)[1][known], (seen.truth != NOTHING)[known])
    counted = reliability(images)
    coverage, risk = counted.risk_coverage()
    return {
        "scenes": len(data.samples),
        "calibration": segmenter.describe()["calibration"],
        "expected_calibration_error": asdict(counted.interval()),
        "mean_confidence": float(counted.confidence.sum() / counted.pixels.sum()),
        "accuracy": float(counted.right.sum() / counted.pixels.sum()),
        "auroc_right": confident.area(),
        "auroc_named": named.area(),
        "scenes_without_ground": named.scenes,
        "share_named": named.share(),
        "reliability": {
            "pixels": counted.pixels.sum(0).astype(int).tolist(),
            "accuracy": _plain(counted.accuracy()),
        },
        "risk_coverage": {"coverage": _plain(coverage), "risk": _plain(risk)},
    }


def measure_cost(segmenter: BaseSegmenter, repeats: int = REPEATS) -> dict[str, float]:
    """Measure what confidences cost: seconds of CPU for a scene without and with them.

    Both are measured in turns, and the shortest times count, so that other work on the machine has
    little influence.
    """
    data = open_world("val", 1)
    image, calibration = read_image(data.samples[0].image), segmenter.calibration
    times: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(repeats + 1):  # the first ones do not count
        for kind, own in times.items():
            use_calibration(segmenter, calibration if kind == "with" else None)
            start = time.process_time()
            segmenter.segment(image, data.vocabulary)
            own.append(time.process_time() - start)
    use_calibration(segmenter, calibration)
    return {kind: min(own[1:]) for kind, own in times.items()}


class _Ranked:
    """The probabilities of pixels in several scenes, and whether the events occurred."""

    def __init__(self) -> None:
        self._values: list[NDArray[Any]] = []
        self._true: list[NDArray[Any]] = []

    @property
    def scenes(self) -> int:
        return len(self._values)

    def add(self, values: NDArray[Any], true: NDArray[Any]) -> None:
        """Add the pixels of a scene."""
        self._values.append(values[::_STEP])
        self._true.append(true[::_STEP])

    def area(self) -> float:
        """Return the area under the ROC curve."""
        return round(auroc(np.concatenate(self._values), np.concatenate(self._true)), 4)

    def share(self) -> float:
        """Return the share of pixels for which the event occurred."""
        return round(float(np.concatenate(self._true).mean()), 4)


def _probabilities(seen: Judged) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    found = seen.found
    assert found.confidence is not None and found.named is not None
    return found.confidence, found.named


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(value) else round(float(value), 4) for value in values]


def table(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """Write measurements by method as a table in Markdown, as the documentation shows it."""
    lines = [
        "| | scenes | calibration error | 95 % interval | area, right | area, named | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, found in methods.items():
        error, seconds = found["expected_calibration_error"], found["cpu_seconds"]
        slower = 100 * (seconds["with"] / seconds["without"] - 1)
        lines.append(
            f"| {title_of(key)} | {found['scenes']} | {error['estimate']:.3f} | "
            f"{error['low']:.3f} to {error['high']:.3f} | {found['auroc_right']:.2f} | "
            f"{found['auroc_named']:.2f} | {slower:+.0f} % |"
        )
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = CommandParser(
        prog="benchmarks.quality.calibration",
        description="Measure the confidences of all methods with calibrated world weights on "
        "world:val.",
    )
    parser.add_argument("--methods", nargs="+", metavar="KEY", help="measure these methods only")
    parser.add_argument("--scenes", type=int, metavar="N", help="take the first N scenes only")
    add_measuring_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report.

    Raises:
        InputError: no method that was asked for is calibrated.
    """
    args = build_parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    found = {}
    for key in args.methods or available_methods():
        segmenter = load(key, WORLD, device="cpu")
        if isinstance(segmenter, BaseSegmenter) and segmenter.calibrated:
            found[key] = {**measure(segmenter, args.scenes), "cpu_seconds": measure_cost(segmenter)}
    if not found:
        raise InputError("no method has calibrated weights; run python -m openvocab.calibrate")
    report({"data_set": f"{WORLD}:val", "methods": found}, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
