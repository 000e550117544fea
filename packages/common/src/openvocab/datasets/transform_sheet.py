"""A sheet to look at what training sees: `python -m openvocab.datasets.transform_sheet`.

A column is one random draw, a row what it looks like behind one more stage: scale, crop, colour,
flip, padding; each image stands above the colours of its label map (void is black). Without
`--image` and `--label` the picture is drawn in the colours of its labels, so that above and below
must be the same shapes wherever the stages moved them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from openvocab.cli import CommandParser, run
from openvocab.config import add_config_flags, flags_of, load_config
from openvocab.datasets.transforms import Labels, Pair, TrainTransform, TransformConfig
from openvocab.drawing.overlay import color_labels, palette
from openvocab.errors import InputError
from openvocab.files import atomic_path
from openvocab.image import ImageArray, read_image, read_label_map

VOID = -1
_TILE, _GAP, _MARGIN = 150, 6, 70


def drawn_pair(height: int = 96, width: int = 144) -> Pair:
    """Return a picture whose colours are those of its labels, with shapes that show a flip."""
    label = np.zeros((height, width), np.int32)
    label[height * 2 // 3 :] = 1
    label[height // 4 : height * 3 // 4, width // 8 : width // 4] = 2
    rows, columns = np.mgrid[:height, :width]
    center, radius = (height // 3, width * 2 // 3), height // 5
    label[(rows - center[0]) ** 2 + (columns - center[1]) ** 2 < radius**2] = 3
    label[rows - height // 2 > np.abs(columns - width // 2)] = 4
    return palette(5)[label], label


def transform_sheet(
    image: ImageArray, label: Labels, config: TransformConfig, *, seeds: Sequence[int] = range(6)
) -> Image.Image:
    """Draw what each stage makes of an image and its label map.

    Args:
        image: (H, W, 3) uint8.
        label: (H, W) integers; values below 0 are void.
        config: settings of the random transforms.
        seeds: one for each column.

    Returns:
        A row for the source and one for each stage, from top to bottom.
    """
    transform = TrainTransform(config, VOID)
    rows: dict[str, list[Pair]] = {"source": [(image, label) for _ in seeds]}
    generators = [np.random.default_rng(seed) for seed in seeds]
    last = rows["source"]
    for name, stage in transform.stages.items():
        last = [stage(*pair, rng) for pair, rng in zip(last, generators, strict=True)]
        rows[name] = last
    largest = max(max(pair[0].shape[:2]) for pairs in rows.values() for pair in pairs)
    height = 2 * _TILE + 2 * _GAP
    sheet = Image.new("RGB", (_MARGIN + len(seeds) * (_TILE + _GAP), len(rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, pairs) in enumerate(rows.items()):
        draw.text((8, row * height + _TILE), name, "black")
        for column, pair in enumerate(pairs):
            place = (_MARGIN + column * (_TILE + _GAP), row * height)
            _paste(sheet, place, pair, _TILE / largest)
    return sheet


def _paste(sheet: Image.Image, place: tuple[int, int], pair: Pair, scale: float) -> None:
    """Paste an image and, a tile below, the colours of its labels, both at one scale."""
    image, label = pair
    colors = color_labels(label, max(1, int(label.max()) + 1))
    size = [max(1, round(side * scale)) for side in label.shape[::-1]]
    for below, pixels in enumerate((image, colors)):
        tile = Image.fromarray(np.ascontiguousarray(pixels))
        smaller = tile.resize((size[0], size[1]), Image.Resampling.NEAREST)
        sheet.paste(smaller, (place[0], place[1] + below * _TILE))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser(prog="python -m openvocab.datasets.transform_sheet", description=__doc__)
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="photo to transform (default: a drawn picture)"
    )
    parser.add_argument("--label", type=Path, metavar="FILE", help="label map of --image")
    parser.add_argument(
        "--ignore-index",
        type=int,
        default=255,
        help="value of void pixels in --label (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="random seed of the first column; each further column adds one",
    )
    parser.add_argument("--columns", type=int, default=6, metavar="N")
    parser.add_argument("--output", type=Path, default=Path("transforms.png"), metavar="FILE")
    add_config_flags(parser, TransformConfig)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write a sheet; the settings are those of training (`--min-sizes`, `--crop-size`, ...)."""
    args = build_parser().parse_args(argv)
    config = load_config(TransformConfig, None, flags_of(args, TransformConfig))
    if (args.image is None) != (args.label is None):
        raise InputError("give both --image and --label, or neither")
    if args.image is None:
        image, label = drawn_pair(480, 720)
    else:
        image, label = read_image(args.image), read_label_map(args.label).astype(np.int32)
        if image.shape[:2] != label.shape:
            raise InputError(
                f"{args.image} and {args.label} are not of one size; give a label map of the image"
            )
        label = np.where(label == args.ignore_index, VOID, label)
    seeds = range(args.seed, args.seed + max(1, args.columns))
    with atomic_path(args.output) as temporary:
        transform_sheet(image, label, config, seeds=seeds).save(temporary)
    print(f"written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
