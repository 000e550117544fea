"""Measures how long a full-size SAN waits for the disk while it segments a folder of photos.

`python -m benchmarks.speed.folder_waiting --output benchmarks/measured/folder_waiting.json` writes
JPEG photos, and segments them by the prediction command with SAN ViT-B/16 at random weights. Photos
are read ahead and results are written behind the network. Whatever of that does not happen in time
stands between two calls of the network, so that the share of this time counts: from the first call
to the end of the last one. Shares hardly depend on how busy the machine is, as seconds would.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.measuring import add_measuring_arguments, report
from benchmarks.speed.san_image import cached_text, picture, random_san
from openvocab.cli import CommandParser, run
from openvocab.inference.folder import Prediction
from openvocab.inference.outputs import plan_outputs, result_names
from openvocab.segmenter import Segmenter
from openvocab.vocabulary import Vocabulary
from san import SANInference, SANSegmenter

_QUALITY = 92  # of the JPEG files


class Watched:
    """A segmenter that notes when it works.

    Attributes:
        calls: (start, end) of each call, in seconds.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter, self.calls = segmenter, list[tuple[float, float]]()
        self.batch_size = getattr(segmenter, "batch_size", 1)

    def segment(
        self, image: Any, vocabulary: Any, *, return_scores: bool = False, bgr: bool = False
    ) -> Any:
        """Segment, see `Segmenter.segment`."""
        start = time.perf_counter()
        found = self.segmenter.segment(image, vocabulary, return_scores=return_scores, bgr=bgr)
        self.calls.append((start, time.perf_counter()))
        return found

    def describe(self) -> dict[str, Any]:
        """Return what the segmenter says about itself."""
        return self.segmenter.describe()

    def share_between_calls(self) -> float:
        """Return the share, in 0..1, of the time between the first call and the last one's end."""
        working = sum(end - start for start, end in self.calls)
        return 1 - working / (self.calls[-1][1] - self.calls[0][0])


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """Write JPEG photos of a (height, width) that differ from each other, and return them."""
    folder.mkdir(parents=True)
    pixels = torch.from_numpy(picture(*size))
    paths = [folder / f"{index:04}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        noise = torch.randint(0, 24, pixels.shape, generator=torch.Generator().manual_seed(index))
        grainy = (pixels.int() + noise).clamp(0, 255).to(torch.uint8)
        Image.fromarray(grainy.numpy()).save(path, quality=_QUALITY)
    return paths


def measure(
    segmenter: Segmenter, vocabulary: Vocabulary, count: int, size: tuple[int, int]
) -> dict[str, Any]:
    """Segment photos as the prediction command does, with label maps, overlays and JSON.

    Args:
        segmenter: the method.
        vocabulary: the names.
        count: of the photos.
        size: (height, width) of each.

    Returns:
        The share of the time between calls of the network, and how many calls there were.
    """
    watched = Watched(segmenter)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        paths = write_photos(place / "photos", count, size)
        names = result_names({path: Path(path.name) for path in paths})
        outputs = plan_outputs(names, place / "results", None)
        order = Prediction(outputs, vocabulary, place / "results", names=names, quiet=True)
        if order.run(watched):
            raise RuntimeError("some photos could not be segmented")
    return {"calls": len(watched.calls), "share_between_calls": watched.share_between_calls()}


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = CommandParser(
        prog="benchmarks.speed.folder_waiting",
        description="Measure how long a full-size SAN waits for photos to be read and results to "
        "be written.",
    )
    parser.add_argument("--images", type=int, default=24, metavar="N")
    parser.add_argument("--size", type=int, nargs=2, default=(1536, 2048), metavar=("H", "W"))
    parser.add_argument("--names", type=int, default=150, metavar="N")
    add_measuring_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report."""
    args = build_parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    height, width = args.size
    segmenter = SANSegmenter(random_san(), SANInference(), cache_dir=False)
    vocabulary = cached_text(segmenter, args.names)
    found = measure(segmenter, vocabulary, args.images, (height, width))
    settings = {
        "images": args.images,
        "size": [height, width],
        "names": args.names,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
    }
    report({**settings, **found}, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
