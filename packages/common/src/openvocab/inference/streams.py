"""Inputs that do not fit into memory as one image: videos, and rasters in tiles."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from openvocab.errors import InputError, NamesError
from openvocab.inference.outputs import check_writable, is_one_file
from openvocab.inference.summary import Row, Shares
from openvocab.inference.tiles import (
    RASTER_KINDS,
    RASTER_SUFFIXES,
    RasterPrediction,
    check_tiles,
)
from openvocab.inference.video import VIDEO_KINDS, VIDEO_SUFFIXES, VideoPrediction
from openvocab.segmenter import Segmenter
from openvocab.vocabulary import Vocabulary

Stream = VideoPrediction | RasterPrediction


def add_stream_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for videos and large images."""
    video = parser.add_argument_group("videos (need the extra 'video')")
    video.add_argument(
        "--every",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="take a frame whenever so many seconds have passed (default: all frames)",
    )
    video.add_argument(
        "--smooth",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="let labels flicker less: a label changes where the new one has outvoted it, about as "
        "long after the change (default: no smoothing)",
    )
    large = parser.add_argument_group("large images")
    large.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="segment in tiles of this side. A TIFF is then read, segmented and written as a "
        "GeoTIFF of labels tile by tile, whatever its size, and keeps its georeference (needs the "
        "extra 'geo')",
    )
    large.add_argument(
        "--overlap",
        type=int,
        default=128,
        metavar="PIXELS",
        help="what neighbouring tiles share (default: %(default)s)",
    )


def is_stream(path: str, args: argparse.Namespace) -> bool:
    """Tell whether an input is a video, or a raster that is asked for in tiles."""
    suffix = os.path.splitext(path)[1].lower()
    long = suffix in VIDEO_SUFFIXES or (args.tile is not None and suffix in RASTER_SUFFIXES)
    return long and os.path.isfile(path)


def plan_streams(
    args: argparse.Namespace,
    paths: Mapping[Path, Path],
    vocabulary: Vocabulary,
    thresholds: Mapping[str, float | None],
) -> list[Stream]:
    """Check the arguments, and return an order for each video and raster.

    Args:
        args: of the command.
        paths: the videos and rasters, with the relative path that names the results of each.
        vocabulary: the names.
        thresholds: arguments of `Segmentation.with_threshold`.

    Raises:
        InputError: two have the same name, the output is no folder, or an option makes no sense.
    """
    check_tiles(args.tile, args.overlap)
    names = {relative.with_suffix("").as_posix().casefold() for relative in paths.values()}
    if len(names) < len(paths):
        raise InputError("two inputs have the same name; predict them into different folders")
    for option in ("every", "smooth"):
        if not 0 <= getattr(args, option) < float("inf"):
            raise InputError(f"--{option} is {getattr(args, option)}, expected seconds from 0 on")
    if paths:
        if is_one_file(args.output):
            raise InputError(
                f"the results of a video or raster go to a folder, not to '{args.output}'; "
                "give a folder with --output"
            )
        check_writable({args.output})
    return [
        _plan(path, args.output / relative.parent, args, vocabulary, thresholds)
        for path, relative in paths.items()
    ]


def _plan(
    path: Path,
    folder: Path,
    args: argparse.Namespace,
    vocabulary: Vocabulary,
    thresholds: Mapping[str, float | None],
) -> Stream:
    if path.suffix.lower() in RASTER_SUFFIXES:
        limits = [name for name, value in thresholds.items() if value is not None]
        if limits or "label" not in (args.save or ("label",)):
            what = f"--{limits[0].replace('_', '-')}" if limits else "--save without label"
            raise InputError(f"rasters in tiles give labels as they are; leave out {what}")
        return RasterPrediction(
            path,
            folder,
            vocabulary,
            args.tile,
            args.overlap,
            polygons="polygons" in (args.save or ()),
            quiet=args.quiet,
        )
    kinds = tuple(kind for kind in args.save or VIDEO_KINDS if kind in VIDEO_KINDS)
    if not kinds:
        raise InputError(
            f"'{path}' is a video, and of a video --save writes only {', '.join(VIDEO_KINDS)}; "
            "add one of them, or choose images only with --glob"
        )
    return VideoPrediction(
        path,
        folder,
        vocabulary,
        kinds,
        every=args.every,
        smooth=args.smooth,
        max_pixels=args.max_pixels,
        thresholds=thresholds,
        skip_existing=args.skip_existing,
        quiet=args.quiet,
    )


def left_out(orders: Sequence[Stream], args: argparse.Namespace) -> list[str]:
    """Say in a sentence each what is asked for and not written of videos and rasters.

    Args:
        orders: from `plan_streams`.
        args: of the command.
    """
    sentences = []
    if orders and args.show_steps:
        sentences.append("--show-steps writes pictures of images, and none of videos")
    for what, order, known in (
        ("video", VideoPrediction, VIDEO_KINDS),
        ("raster in tiles", RasterPrediction, RASTER_KINDS),
    ):
        others = [kind for kind in args.save or () if kind not in known]
        if others and any(isinstance(one, order) for one in orders):
            sentences.append(
                f"of a {what}, --save writes only {', '.join(known)}, and not {', '.join(others)}"
            )
    return sentences


def run_streams(orders: Iterable[Stream], segmenter: Segmenter) -> Iterator[Row]:
    """Run orders one after the other, and say how each ended.

    Yields:
        What the summary says about each that was not complete before.
    """
    for order in orders:
        try:
            row = order.run(segmenter)
        except NamesError:
            raise
        except InputError as error:
            row = Shares().row(order.path, 0.0, str(error))
        if row is not None and row.failure is not None:
            print(row.failure, file=sys.stderr)
        elif not order.quiet:
            print(f"'{order.path}' is done, results in '{order.folder}'")
        if row is not None:
            yield row
