"""How fast label maps are counted: `python benchmarks/speed/confusion_matrix.py`.

Compares the confusion matrix of `openvocab.metrics.scores` with the usual one (`numpy.bincount` of
`K * truth + prediction`, as detectron2 and mmsegmentation do) and with two others that were tried,
on one thread, on maps that look like label maps and on noise, the worst case.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from openvocab.cli import CommandParser, run
from openvocab.files import write_text
from openvocab.metrics.scores import ConfusionMatrix

Labels = NDArray[Any]
Pairs = list[tuple[Labels, Labels]]
SIZE = (512, 683)  # of an ADE20K-Full image
IMAGES = 12


class Naive:
    """`bincount` over int64, added to the total."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.matrix = np.zeros((classes, classes + 1), np.int64)

    def update(self, prediction: Labels, truth: Labels) -> None:
        """Add one image."""
        cells = (self.classes + 1) * truth.astype(np.int64).ravel()
        cells += prediction.astype(np.int64).ravel()
        self.matrix += np.bincount(cells, minlength=self.matrix.size).reshape(self.matrix.shape)


class TorchBincount(Naive):
    """torch's `bincount` over int32."""

    def update(self, prediction: Labels, truth: Labels) -> None:
        """Add one image."""
        cells = torch.from_numpy(truth.astype(np.int32).ravel()) * (self.classes + 1)
        cells += torch.from_numpy(prediction.ravel())
        counts = torch.bincount(cells, minlength=self.matrix.size).numpy()
        self.matrix += counts.reshape(self.matrix.shape)


class OpenCVHistogram(Naive):
    """OpenCV's two-dimensional histogram over uint16."""

    def update(self, prediction: Labels, truth: Labels) -> None:
        """Add one image."""
        images = [truth.astype(np.uint16), prediction.astype(np.uint16)]
        rows, columns = self.matrix.shape
        counts = cv2.calcHist(images, [0, 1], None, [rows, columns], [0, rows, 0, columns])
        self.matrix += counts.astype(np.int64)


CONTESTANTS: dict[str, Callable[[int], Any]] = {
    "naive": Naive,
    "torch.bincount": TorchBincount,
    "cv2.calcHist": OpenCVHistogram,
    "openvocab": ConfusionMatrix,
}


def label_maps(classes: int, images: int = IMAGES, seed: int = 0) -> Pairs:
    """Make pairs of maps of about 20 regions with smooth outlines that mostly agree."""
    random = np.random.default_rng(seed)
    return [(_regions(random, classes), _regions(random, classes)) for _ in range(images)]


def noisy_maps(classes: int, images: int = IMAGES, seed: int = 0) -> Pairs:
    """Make pairs of maps in which every pixel is drawn alone."""
    random = np.random.default_rng(seed)
    return [
        (
            random.integers(0, classes, SIZE).astype(np.int32),
            random.integers(0, classes, SIZE).astype(np.uint16),
        )
        for _ in range(images)
    ]


def _regions(random: np.random.Generator, classes: int) -> Labels:
    shown = random.choice(classes, size=min(20, classes), replace=False)
    fields = random.standard_normal((len(shown), 9, 12)).astype(np.float32)
    height, width = SIZE
    smooth = [cv2.resize(f, (width, height), interpolation=cv2.INTER_CUBIC) for f in fields]
    labels: Labels = shown[np.argmax(smooth, axis=0)].astype(np.int32)
    return labels


def pixels_per_second(make: Callable[[int], Any], pairs: Pairs, classes: int, rounds: int) -> float:
    """Return the best of several rounds over all pairs, by processor time of the one thread."""
    best = float("inf")
    for _ in range(rounds):
        confusion = make(classes)
        start = time.process_time()
        for prediction, truth in pairs:
            confusion.update(prediction, truth)
        best = min(best, time.process_time() - start)
    return sum(prediction.size for prediction, _ in pairs) / best


def measure(class_counts: Sequence[int], images: int, rounds: int) -> list[dict[str, Any]]:
    """Measure every contestant on both kinds of maps, and check that all count the same."""
    rows: list[dict[str, Any]] = []
    for classes in class_counts:
        for kind, pairs in (
            ("label maps", label_maps(classes, images)),
            ("noise", noisy_maps(classes, images)),
        ):
            speeds = {
                name: pixels_per_second(make, pairs, classes, rounds) / 1e6
                for name, make in CONTESTANTS.items()
            }
            rows.append(
                {
                    "classes": classes,
                    "maps": kind,
                    "megapixels_per_second": {k: round(v, 1) for k, v in speeds.items()},
                    "relative_to_naive": round(speeds["openvocab"] / speeds["naive"], 2),
                }
            )
            _check_equal(pairs, classes)
    return rows


def _check_equal(pairs: Pairs, classes: int) -> None:
    matrices = []
    for make in CONTESTANTS.values():
        confusion = make(classes)
        for prediction, truth in pairs:
            confusion.update(prediction, truth)
        matrices.append(confusion.matrix)
    if not all(np.array_equal(matrices[0], other) for other in matrices[1:]):
        raise AssertionError(f"the matrices of {classes} classes differ")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write it as JSON if asked to."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[20, 150, 847])
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the numbers as JSON")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = measure(args.classes, args.images, args.rounds)
    head = "".join(f"{name:>16}" for name in CONTESTANTS)
    print(f"{'classes':>8} {'maps':<11}{head}{'ours / naive':>15}")
    for row in rows:
        speeds = row["megapixels_per_second"].values()
        print(
            f"{row['classes']:>8} {row['maps']:<11}"
            + "".join(f"{speed:>10.0f} Mpx/s" for speed in speeds)
            + f"{row['relative_to_naive']:>15.2f}"
        )
    if args.output is not None:
        write_text(args.output, json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
