"""Measures how many photos of a folder the prediction command does in a second.

`python -m benchmarks.speed.folder --before CHECKOUT` compares this version with an older checkout.
The photos are scenes of the embedded world, saved as JPEG; the method is the world's SAN. Each
version runs in a process of its own, on a part of the photos in turn, so that other work on the
machine meets both. Starting the process and loading the weights do not count. Beside the seconds
stands the processor time, which hardly sees other work when `--threads 1` is given.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.measuring import add_measuring_arguments, report
from openvocab.cli import CommandParser, run
from openvocab.errors import InputError
from openvocab.image import read_label_map
from openvocab.reading.json_files import parse_json
from openvocab.world import scene

_QUALITY = 92
_PACKAGES = ("packages/common/src", "packages/san/src")
# Predicts one photo, so that everything is loaded, and then measures a folder.
_RUN = """
import json, sys, time
import torch
torch.set_num_threads(int(sys.argv[4]))
from san.predict import main
options = ["--weights", "world", "--vocabulary", "world", "--device", "cpu"]
main([sys.argv[1], *options, "--output", sys.argv[3] + "-first"])
wall, cpu = time.perf_counter(), time.process_time()
main([sys.argv[2], *options, "--output", sys.argv[3]])
seconds = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
print(json.dumps(seconds))
"""


def write_photos(folder: Path, count: int, side: int, parts: int) -> list[Path]:
    """Write photos into folders of about equal size, and return these."""
    folders = [folder / f"part{part}" for part in range(parts)]
    for one in folders:
        one.mkdir(parents=True)
    for index in range(count):
        picture = Image.fromarray(scene(index, "val", side).image)
        picture.save(folders[index % parts] / f"{index:05}.jpg", quality=_QUALITY)
    return folders


def predict(folder: Path, output: Path, threads: int, checkout: Path | None) -> dict[str, float]:
    """Predict the photos of a folder with a version of the program, and return its seconds."""
    paths = [] if checkout is None else [str(checkout / package) for package in _PACKAGES]
    paths.append(os.environ.get("PYTHONPATH", ""))
    first = next(folder.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(first), str(folder), str(output), str(threads)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, float] = parse_json(
        done.stdout.splitlines()[-1], "its output", "a measurement"
    )
    return found


def agreement(first: Path, second: Path) -> float:
    """Return the share of pixels with the same label, in the worst of the images."""
    shares = [
        float((read_label_map(path) == read_label_map(second / path.relative_to(first))).mean())
        for path in sorted(first.rglob("*_labels.png"))
    ]
    return min(shares)


def measure(
    images: int, side: int, parts: int, threads: int, before: Path | None
) -> dict[str, Any]:
    """Measure this version, and the older one if there is one."""
    versions = {"now": None} if before is None else {"before": before, "now": None}
    seconds = {name: {"seconds": 0.0, "cpu": 0.0} for name in versions}
    same = 1.0
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        for part in write_photos(place / "photos", images, side, parts):
            for name, checkout in versions.items():
                found = predict(part, place / name / part.name, threads, checkout)
                for key, value in found.items():
                    seconds[name][key] += value
            if before is not None:
                same = min(same, agreement(place / "now" / part.name, place / "before" / part.name))
    result: dict[str, Any] = {
        "images": images,
        "side": side,
        "threads": threads,
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
    }
    for name, times in seconds.items():
        result[name] = {
            "images_per_second": images / times["seconds"],
            "cpu_seconds_per_image": times["cpu"] / images,
        }
    if before is not None:
        result["times_faster"] = seconds["before"]["seconds"] / seconds["now"]["seconds"]
        result["times_less_cpu"] = seconds["before"]["cpu"] / seconds["now"]["cpu"]
        result["least_agreement_of_labels"] = same
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report.

    Raises:
        InputError: the older checkout is none.
    """
    parser = CommandParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300, metavar="N")
    parser.add_argument("--side", type=int, default=512, metavar="PIXELS", help="of the photos")
    parser.add_argument("--parts", type=int, default=6, metavar="N", help="turns of each version")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="of an older version")
    add_measuring_arguments(parser)
    args = parser.parse_args(argv)
    if args.before is not None and not (args.before / _PACKAGES[0]).is_dir():
        raise InputError(
            f"{args.before} is no checkout of this project; give the folder of one with --before"
        )
    threads = args.threads or torch.get_num_threads()
    parts = min(args.parts, args.images)
    report(measure(args.images, args.side, parts, threads, args.before), args.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
