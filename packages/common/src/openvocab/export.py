"""Write results in the formats of other tools: `python -m openvocab.export RESULTS --format coco`.

RESULTS is the output folder of `predict`, which must hold the results as JSON. From Python,
`export` does the same for any `Segmentation`s.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openvocab.cli import CommandParser, run
from openvocab.errors import InputError
from openvocab.files import atomic_path, write_text
from openvocab.formats import cvat, yolo
from openvocab.formats.coco import coco_dataset, same_names
from openvocab.formats.geojson import feature_collection
from openvocab.formats.labelme import labelme_file
from openvocab.formats.labelstudio import labeling_config, labelstudio_tasks
from openvocab.formats.regions import ImageResult, box_of, read_results
from openvocab.image import read_image

Write = Callable[[Iterable[ImageResult], Path], None]


@dataclass(frozen=True)
class Format:
    """One format of another tool.

    Attributes:
        help: what is written, and who reads it.
        target: name of the file or folder below the output folder.
        write: writes all results to it.
    """

    help: str
    target: str
    write: Write


def export(results: Iterable[ImageResult], name: str, output: Path) -> Path:
    """Write results in a format of another tool.

    Args:
        results: from `openvocab.formats.regions.result_of` or `read_results`.
        name: of the format, a key of `FORMATS`.
        output: folder; the format decides the name of its file or folder in it.

    Returns:
        The file or folder that was written.

    Raises:
        InputError: the format is not known or cannot hold these results, or an image that it needs
            cannot be read.
    """
    if name not in FORMATS:
        raise InputError(f"there is no format {name!r}; give one of {', '.join(FORMATS)}")
    target = output / FORMATS[name].target
    FORMATS[name].write(results, target)
    return target


def _write_coco(results: Iterable[ImageResult], target: Path) -> None:
    write_text(target, json.dumps(coco_dataset(results), ensure_ascii=False))


def _write_coco_polygons(results: Iterable[ImageResult], target: Path) -> None:
    write_text(target, json.dumps(coco_dataset(results, polygons=True), ensure_ascii=False))


def _write_labelstudio(results: Iterable[ImageResult], target: Path) -> None:
    known = list(results)
    write_text(target, json.dumps(labelstudio_tasks(known), ensure_ascii=False))
    names = dict.fromkeys(name for result in known for name in result.names)
    write_text(target.with_suffix(".xml"), labeling_config(names))


def _write_csv(results: Iterable[ImageResult], target: Path) -> None:
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["image", "index", "name", "pixels", "share", "score", "x", "y", "w", "h"])
    for result in results:
        height, width = result.size
        for region in result.regions:
            mask = region.mask
            pixels = int(mask.sum())
            score = "" if region.score is None else f"{region.score:.6g}"
            row = [result.image, region.index, region.name, pixels]
            writer.writerow([*row, f"{pixels / (height * width):.6g}", score, *box_of(mask)])
    write_text(target, lines.getvalue())


def _write_cvat(results: Iterable[ImageResult], target: Path) -> None:
    names: tuple[str, ...] | None = None
    stems = []
    for result, stem in _flat(results):
        names = same_names(names, result)
        cvat.label_map_text(names)  # before anything is written
        stems.append(stem)
        _write_png(target / cvat.CLASSES / f"{stem}.png", cvat.class_picture(result))
        _write_png(target / cvat.OBJECTS / f"{stem}.png", cvat.class_picture(result))
    write_text(target / cvat.LIST, "".join(f"{stem}\n" for stem in stems))
    write_text(target / cvat.LABELMAP, cvat.label_map_text(names or ()))


def _write_yolo(results: Iterable[ImageResult], target: Path) -> None:
    names: tuple[str, ...] | None = None
    for result, stem in _flat(results):
        names = same_names(names, result)
        write_text(target / "labels" / f"{stem}.txt", yolo.yolo_lines(result))
        source = _image_file(result)
        with atomic_path(target / "images" / f"{stem}{source.suffix}") as temporary:
            shutil.copyfile(source, temporary)
    write_text(target / "data.yaml", yolo.data_yaml(names or ()))


def _write_labelme(results: Iterable[ImageResult], target: Path) -> None:
    for result, stem in _flat(results):
        source = _image_file(result)
        with atomic_path(target / f"{stem}{source.suffix}") as temporary:
            shutil.copyfile(source, temporary)
        content = labelme_file(result, f"{stem}{source.suffix}")
        write_text(target / f"{stem}.json", json.dumps(content, ensure_ascii=False, indent=1))


def _write_masks(results: Iterable[ImageResult], target: Path) -> None:
    for result in results:
        for region in result.regions:
            name = f"{region.index:03d}_{_file_name(region.name)}.png"
            _write_png(target / result.stem / name, region.mask.astype(np.uint8) * 255)


def _write_cutouts(results: Iterable[ImageResult], target: Path) -> None:
    for result in results:
        image = read_image(_image_file(result))
        for region in result.regions:
            mask = region.mask
            left, top, width, height = box_of(mask)
            alpha = mask.astype(np.uint8)[..., None] * 255
            cut = np.concatenate([image, alpha], axis=2)[top : top + height, left : left + width]
            name = f"{region.index:03d}_{_file_name(region.name)}.png"
            _write_png(target / result.stem / name, cut)


def _write_geojson(results: Iterable[ImageResult], target: Path) -> None:
    for result in results:
        content = json.dumps(feature_collection(result), ensure_ascii=False)
        write_text(target / f"{result.stem}.geojson", content)


FORMATS: dict[str, Format] = {
    "coco": Format(
        "one JSON file with run-length masks, for COCO's tools", "coco.json", _write_coco
    ),
    "coco-polygons": Format(
        "the same with outlines; masks with holes stay run-length codes",
        "coco_polygons.json",
        _write_coco_polygons,
    ),
    "cvat": Format("CVAT's Segmentation mask 1.1", "cvat", _write_cvat),
    "yolo": Format("YOLO's segmentation polygons, with the images", "yolo", _write_yolo),
    "labelme": Format("a JSON file for each image, beside a copy of it", "labelme", _write_labelme),
    "labelstudio": Format(
        "tasks with brush masks, and a labeling configuration",
        "labelstudio.json",
        _write_labelstudio,
    ),
    "masks": Format("a black and white PNG for each name of each image", "masks", _write_masks),
    "cutouts": Format("what each mask shows, as PNG with alpha", "cutouts", _write_cutouts),
    "geojson": Format("outlines with holes, in pixels", "geojson", _write_geojson),
    "csv": Format("a line for each name of each image", "segments.csv", _write_csv),
}


def _flat(results: Iterable[ImageResult]) -> Iterator[tuple[ImageResult, str]]:
    """Yield every result with a file name of its own, for formats that have no folders."""
    taken: set[str] = set()
    for result in results:
        stem = result.stem.replace("/", "__")
        while stem.casefold() in taken:
            stem += "_"
        taken.add(stem.casefold())
        yield result, stem


def _image_file(result: ImageResult) -> Path:
    path = Path(result.image)
    if not path.is_file():
        raise InputError(
            f"the image '{result.image}' is not there, and this format needs it; run the command "
            "in the folder in which predict was run"
        )
    return path


def _file_name(name: str) -> str:
    """Return a name as part of a file name: letters, digits, spaces, - and _ stay."""
    return re.sub(r"[^\w \-]", "_", name).strip()[:80] or "name"


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, "PNG")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    listing = "\n".join(f"  {name:<14} {entry.help}" for name, entry in FORMATS.items())
    parser = CommandParser(
        prog="python -m openvocab.export",
        description=f"Write the results of predict in the formats of other tools.\n\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, help="the output folder of predict")
    parser.add_argument(
        "--format", nargs="+", required=True, choices=FORMATS, metavar="NAME", dest="formats"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder (default: the folder of the results)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Export the results of a run; see the module."""
    args = build_parser().parse_args(argv)
    for name in args.formats:
        print(export(read_results(args.results), name, args.output or args.results))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
