"""Segments a large folder with one command, kills it twice, goes on, and reads every format.

    python -m benchmarks.experiments.two_thousand --images 2000 --memory 200 2000 10000

The photos are scenes of the embedded world, and the method is the world's SAN. Each run is the
command of a user in a process of its own, which is killed when a third and two thirds of the photos
are done. The result is then opened with the library of each tool (extra `tools`, pycocotools and
supervision), and the masks of some photos are compared with the label maps. `--memory` runs the
command on folders of these sizes, and measures the most memory that its process takes; with
`--plain`, the method is no network but takes the brightest channel of each pixel, which leaves the
memory of the folder run itself.
"""

from __future__ import annotations

import csv
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measuring import add_measuring_arguments, report
from openvocab.cli import CommandParser, run
from openvocab.errors import InputError, import_extra
from openvocab.formats.writers import FORMATS
from openvocab.image import read_label_map
from openvocab.inference.layout import JOURNAL, NAMES
from openvocab.reading.json_files import read_json_file
from openvocab.world import scene

# The same command with a method that costs next to nothing.
_PLAIN = """
import argparse, sys
import numpy as np
from openvocab.cli import run
from openvocab.predict import add_predict_arguments, run_prediction
from openvocab.segmenter import BaseSegmenter, Segmentation

class Brightest(BaseSegmenter):
    def segment_arrays(self, images, vocabulary, return_scores):
        labels = [image.argmax(axis=2).astype(np.int32) for image in images]
        return [Segmentation(one, vocabulary) for one in labels]

    def describe(self):
        return {"method": "brightest"}

def main(argv):
    parser = argparse.ArgumentParser()
    add_predict_arguments(parser)
    return run_prediction(parser.parse_args(argv), lambda args: Brightest())

sys.exit(run(main))
"""
_DRAWN = 200  # different scenes; further photos are copies of them
_COMPARED = 20  # photos whose masks are compared with the label map
Found = Iterator[tuple[str, dict[str, NDArray[np.bool_]]]]
"""The stem of each photo, with the mask of each name that a tool reads for it."""


def write_photos(folder: Path, count: int, side: int) -> Path:
    """Write photos of the embedded world, and return their folder."""
    folder.mkdir(parents=True)
    for index in range(count):
        path = folder / f"{index:05}.png"
        if index < _DRAWN:
            Image.fromarray(scene(index, "val", side).image).save(path)
        else:
            path.write_bytes((folder / f"{index % _DRAWN:05}.png").read_bytes())
    return folder


def command(photos: Path, output: Path, kinds: Sequence[str], *, plain: bool = False) -> list[str]:
    """Return the command that a user types; `plain` takes the method without a network."""
    kept = ["--save", ",".join(kinds), "--skip-existing", "--output", str(output)]
    if plain:
        return [sys.executable, "-c", _PLAIN, str(photos), "--class-names", "r,g,b", *kept]
    options = ["--weights", "world", "--vocabulary", "world", "--device", "cpu"]
    return [sys.executable, "-m", "san.predict", str(photos), *options, *kept]


def done_in(output: Path) -> int:
    """Return how many lines of images a journal has."""
    path = output / JOURNAL
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def run_once(arguments: Sequence[str], log: Path, is_over: Callable[[], bool]) -> dict[str, Any]:
    """Run a command until it ends or is to be killed, and return how it went."""
    start = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=file)
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            if is_over():
                process.kill()
            time.sleep(0.05)
    process.returncode = os.waitstatus_to_exitcode(ended[1])
    return {
        "exit_code": process.returncode,
        "seconds": round(time.perf_counter() - start, 1),
        "peak_memory_mb": round(_megabytes(ended[2])),
    }


def _megabytes(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))


def measure_kills(place: Path, count: int, side: int) -> dict[str, Any]:
    """Run the command on photos, kill it twice, let it end, and read what it has written."""
    photos, output = write_photos(place / "photos", count, side), place / "results"
    arguments = command(photos, output, ("label", "json", *FORMATS))
    runs = []
    for third in (1, 2, 3):
        limit = third * count // 3 if third < 3 else sys.maxsize

        def is_over(limit: int = limit) -> bool:
            return done_in(output) >= limit

        found = run_once(arguments, place / "log.txt", is_over)
        runs.append({**found, "images_done": done_in(output)})
    if runs[-1]["exit_code"]:
        raise RuntimeError((place / "log.txt").read_text()[-2000:])
    return {
        "images": count,
        "side": side,
        "runs": runs,
        "completed_twice": done_in(output) - count,
        "readers": {name: check(name, output, count) for name in READERS},
    }


def check(name: str, output: Path, count: int) -> dict[str, Any]:
    """Read a format with the library of its tool, and compare some masks with the label maps.

    Raises:
        RuntimeError: photos are missing.
    """
    names = (output / NAMES).read_text("utf-8").splitlines()
    images, least = 0, 1.0
    for stem, masks in READERS[name](output):
        images += 1
        if images > _COMPARED:
            continue
        labels = read_label_map(output / f"{stem}_labels.png")
        for index in np.unique(labels[labels < len(names)]):
            own = labels == index
            found = masks.get(names[index], np.zeros_like(own))
            least = min(least, float((own & found).sum() / (own | found).sum()))
    if images != count:
        raise RuntimeError(f"{name} has {images} images of {count}")
    return {"images": images, "least_iou": least}


def _coco(output: Path) -> Found:
    with open(os.devnull, "w") as quiet:
        printed, sys.stdout = sys.stdout, quiet
        try:
            coco = import_extra("pycocotools.coco", "test", "COCO").COCO(str(output / "coco.json"))
        finally:
            sys.stdout = printed
    for image in coco.imgs.values():
        found = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        masks = {coco.cats[one["category_id"]]["name"]: coco.annToMask(one) > 0 for one in found}
        yield Path(image["file_name"]).stem, masks


def _yolo(output: Path) -> Found:
    data = import_extra("supervision", "test", "YOLO").DetectionDataset.from_yolo(
        str(output / "yolo/images"), str(output / "yolo/labels"), str(output / "yolo/data.yaml")
    )
    for path, _, found in data:
        parts: dict[str, NDArray[np.bool_]] = {}
        for mask, index in zip(found.mask, found.class_id, strict=True):
            name = data.classes[index]
            parts[name] = parts[name] | mask if name in parts else mask
        yield Path(path).stem, parts


def _labelme(output: Path) -> Found:
    read = import_extra("labelme._label_file", "tools", "LabelMe").read_label_file
    for path in sorted((output / "labelme").glob("*.json")):
        found = read(str(path))
        size = read_label_map(output / f"{path.stem}_labels.png").shape
        masks = {}
        for shape in found["shapes"] if isinstance(found, dict) else found.shapes:
            (left, top), (right, bottom) = np.array(shape["points"], int)
            mask = np.zeros(size, np.bool_)
            mask[top : bottom + 1, left : right + 1] = shape["mask"]
            masks[str(shape["label"])] = mask
        yield path.stem, masks


def _labelstudio(output: Path) -> Found:
    brush = import_extra("label_studio_sdk.converter.brush", "tools", "Label Studio")
    for task in read_json_file(output / "labelstudio.json", "export for Label Studio"):
        masks = {}
        for one in task["predictions"][0]["result"]:
            size = one["original_height"], one["original_width"], 4
            mask = np.reshape(brush.decode_rle(one["value"]["rle"]), size)[..., 3] > 0
            masks[one["value"]["brushlabels"][0]] = mask
        yield Path(task["data"]["image"]).stem, masks


def _cvat(output: Path) -> Found:
    datumaro = import_extra("datumaro", "tools", "CVAT's format")
    dataset = datumaro.Dataset.import_from(str(output / "cvat"), "voc_segmentation")
    labels = dataset.categories()[datumaro.AnnotationType.label]
    for item in dataset:
        masks: dict[str, NDArray[np.bool_]] = {}
        for one in item.annotations:
            name, mask = labels[one.label].name, np.asarray(one.image) > 0
            masks[name] = masks[name] | mask if name in masks else mask
        yield item.id, masks


def _pictures(output: Path) -> Found:
    for folder in sorted((output / "masks").iterdir()):
        files = sorted(folder.iterdir())
        masks = {path.stem.split("_", 1)[1]: np.array(Image.open(path)) > 0 for path in files}
        yield folder.name, masks


def _csv(output: Path) -> Found:
    """Yield masks of no pixels; the areas are compared here."""
    rows: dict[str, dict[str, int]] = {}
    with (output / FORMATS["csv"].target).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows.setdefault(Path(row["image"]).stem, {})[row["name"]] = int(row["pixels"])
    names = (output / NAMES).read_text("utf-8").splitlines()
    for stem, areas in rows.items():
        labels = read_label_map(output / f"{stem}_labels.png")
        masks = {name: labels == names.index(name) for name in areas}
        yield stem, {name: mask for name, mask in masks.items() if mask.sum() == areas[name]}


READERS: dict[str, Callable[[Path], Found]] = {
    "coco": _coco,
    "yolo": _yolo,
    "labelme": _labelme,
    "labelstudio": _labelstudio,
    "cvat": _cvat,
    "masks": _pictures,
    "csv": _csv,
}


def measure_memory(
    place: Path, counts: Sequence[int], side: int, *, plain: bool
) -> list[dict[str, Any]]:
    """Return the most memory that the command takes for folders of these sizes."""
    found = []
    for count in counts:
        photos = write_photos(place / f"photos{count}", count, side)
        output = place / f"results{count}"
        arguments = command(photos, output, ("label", "json", "coco"), plain=plain)
        result = run_once(arguments, place / "log.txt", lambda: False)
        if result.pop("exit_code"):
            raise RuntimeError((place / "log.txt").read_text()[-2000:])
        method = "brightest channel" if plain else "san"
        found.append({"method": method, "images": count, "side": side, **result})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report.

    Raises:
        InputError: a folder has too few photos to kill a run in it twice.
    """
    parser = CommandParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000, metavar="N", help="of the killed run")
    parser.add_argument("--side", type=int, default=128, metavar="PIXELS", help="of its photos")
    parser.add_argument("--memory", type=int, nargs="*", default=(), metavar="N")
    parser.add_argument("--memory-side", type=int, default=64, metavar="PIXELS")
    parser.add_argument("--plain", action="store_true", help="measure memory without a network")
    add_measuring_arguments(parser)
    args = parser.parse_args(argv)
    if 0 < args.images < 9:
        raise InputError(f"--images is {args.images}, expected at least 9, or 0 for no killed run")
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        result = {"cores": len(os.sched_getaffinity(0)), "threads": args.threads}
        if args.images:
            result |= {"killed_twice": measure_kills(place, args.images, args.side)}
        result |= {"memory": measure_memory(place, args.memory, args.memory_side, plain=args.plain)}
    report(result, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
