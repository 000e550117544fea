"""Draw sheets of scenes, write them as files, and say what the world consists of."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
from PIL import Image, ImageDraw

from openvocab.cli import CommandParser
from openvocab.drawing.fonts import font_for
from openvocab.drawing.legend import INK, WHITE
from openvocab.drawing.overlay import draw_overlay
from openvocab.errors import InputError
from openvocab.files import atomic_path
from openvocab.world.dataset import COUNTS, world_version
from openvocab.world.export import export
from openvocab.world.names import world_names
from openvocab.world.pictograms import Pixels, attribution, package_versions
from openvocab.world.scenes import NOTHING, SIZE, Scene, Split, scene

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_SIDE = 384  # of a picture on the sheet: three times that of a usual scene
_GAP = 14


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m openvocab.world`."""
    parser = CommandParser(
        prog="python -m openvocab.world",
        description="Show or write the embedded world. Without options: list it.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--draw", type=Path, metavar="FILE", help="draw a sheet of scenes")
    what.add_argument(
        "--write",
        type=Path,
        metavar="DIR",
        help="write images, labels, names, captions and nouns as files",
    )
    parser.add_argument("--count", type=int, default=12, help="number of scenes")
    parser.add_argument("--columns", type=int, default=3, help="scenes in a row of the sheet")
    parser.add_argument("--size", type=int, default=SIZE, help="pixels of a scene's side")
    parser.add_argument("--seed", type=int, default=0, help="index of the first scene")
    parser.add_argument("--split", choices=get_args(Split), default="val")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `openvocab.cli.run`."""
    args = build_parser().parse_args(argv)
    if args.count < 1 or args.columns < 1:
        raise InputError(
            f"{args.count} scenes in {args.columns} columns cannot be drawn; "
            "give at least 1 of each"
        )
    if args.draw is not None:
        _save_sheet(args)
    elif args.write is not None:
        export(args.write, args.split, args.count, args.size, args.seed)
    else:
        print(describe_world())
        return 0
    print(f"written to {args.draw or args.write}; {attribution()}")
    return 0


def _save_sheet(args: argparse.Namespace) -> None:
    if args.draw.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{args.draw} is no picture; end its name with {', '.join(_SUFFIXES)}")
    scenes = [scene(args.seed + i, args.split, args.size) for i in range(args.count)]
    sheet = Image.fromarray(draw_sheet(scenes, args.columns))
    with atomic_path(args.draw) as temporary:
        sheet.save(temporary, optimize=True)


def describe_world() -> str:
    """Return names, splits, version and credit as text.

    Raises:
        InputError: the pictograms are not installed.
    """
    lines = []
    for seen in (True, False):
        for thing in (True, False):
            words = [n.name for n in world_names() if (n.seen, n.is_thing) == (seen, thing)]
            kind = f"{'seen' if seen else 'unseen'} {'things' if thing else 'stuff'}"
            lines.append(f"{len(words):3d} {kind}: {', '.join(words)}")
    lines.append("splits: " + ", ".join(f"world:{name} {count}" for name, count in COUNTS.items()))
    lines.append(f"version {world_version()[:16]} ({package_versions()})")
    return "\n".join([*lines, attribution()])


def draw_sheet(scenes: Sequence[Scene], columns: int) -> Pixels:
    """Draw scenes, each beside its labels and over its caption.

    Args:
        scenes: scenes to draw, at least one.
        columns: scenes in a row.

    Returns:
        (H, W, 3) uint8.
    """
    panels = [_panel(one) for one in scenes]
    height, width = panels[0].shape[:2]
    rows = -(-len(panels) // columns)
    columns = min(columns, len(panels))
    sheet = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), 255)
    for number, panel in enumerate(panels):
        top = _GAP + number // columns * (height + _GAP)
        left = _GAP + number % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = panel
    return sheet.astype(np.uint8)


def _panel(one: Scene) -> Pixels:
    """Draw one scene: in whole pixels where it is smaller than its place, and so are its labels."""
    names = [name.name for name in world_names()]
    labels = np.where(one.label == NOTHING, -1, one.label.astype(np.int32))
    times = max(1, _SIDE // one.image.shape[0])
    image, labels = (x.repeat(times, axis=0).repeat(times, axis=1) for x in (one.image, labels))
    overlay = draw_overlay(image, labels, names, legend=False, max_side=_SIDE)
    pair = [cv2.resize(x, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA) for x in (image, overlay)]
    canvas = Image.new("RGB", (2 * _SIDE, _SIDE + 24), WHITE)
    canvas.paste(Image.fromarray(np.concatenate(pair, axis=1).astype(np.uint8)), (0, 0))
    pen = ImageDraw.Draw(canvas)
    text_size = 17
    while font_for(one.caption, text_size).getlength(one.caption) > 2 * _SIDE - 8:
        text_size -= 1
    font = font_for(one.caption, text_size)
    pen.text((_SIDE, _SIDE + 13), one.caption, INK, font, anchor="mm")
    return np.array(canvas)
