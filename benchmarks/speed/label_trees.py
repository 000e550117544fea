"""Measure the doctor on generated label maps.

`python benchmarks/speed/label_trees.py --images 5000` is how the recorded numbers were made.
The set is made once in a temporary folder in the layout of COCO-Stuff: region-like label maps of
480 x 640 and photographs that are as slow to decode as real ones of that size.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from openvocab.cli import CommandParser, run
from openvocab.datasets import resolve
from openvocab.datasets.diagnosis import diagnose
from openvocab.datasets.inspection import inspect_set
from openvocab.datasets.preparation import default_workers

HEIGHT, WIDTH = 480, 640
CLASSES = 171
_DISTINCT = 50  # pictures that are drawn; the others are their files again


def main(argv: Sequence[str] | None = None) -> int:
    """Make the set, visit it, print the seconds."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000, metavar="N")
    parser.add_argument("--workers", type=int, default=default_workers(), metavar="N")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_set(root, args.images)
        start = time.perf_counter()
        data = resolve("coco-stuff-171", root)
        seen = inspect_set(data, workers=args.workers, progress=True)
        findings = diagnose(seen, root)
        seconds = time.perf_counter() - start
    report = {
        "images": len(data.samples),
        "seconds": round(seconds, 1),
        "workers": args.workers,
        "findings": len(findings),
        "processor": platform.processor() or platform.machine(),
    }
    print(json.dumps(report))
    return 0


def make_set(root: Path, count: int) -> None:
    """Write `count` pairs below `root`."""
    images, labels = root / "coco/val2017", root / "coco/stuffthingmaps_detectron2/val2017"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    pairs = [_pair(seed) for seed in range(min(count, _DISTINCT))]
    for i in range(count):
        photograph, label_map = pairs[i % len(pairs)]
        (images / f"{i:012d}.jpg").write_bytes(photograph)
        (labels / f"{i:012d}.png").write_bytes(label_map)


def _pair(seed: int) -> tuple[bytes, bytes]:
    rng = np.random.default_rng(seed)
    # Regions: classes of the nearest of 40 points, with wavy borders.
    points = rng.uniform(0, 1, (40, 2)) * (HEIGHT, WIDTH)
    classes = rng.integers(0, CLASSES, 40)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    rows, columns = rows + 9 * np.sin(columns / 13), columns + 9 * np.sin(rows / 11)
    distance = (rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2
    labels = classes[distance.argmin(axis=-1)].astype(np.uint8)
    texture = rng.normal(128, 60, (HEIGHT // 2, WIDTH // 2, 3)).clip(0, 255).astype(np.uint8)
    photograph = cv2.resize(texture, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return (
        cv2.imencode(".jpg", photograph, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes(),
        cv2.imencode(".png", labels)[1].tobytes(),
    )


if __name__ == "__main__":
    sys.exit(run(main))
