"""Measures seconds for an image against the number of names and the size of the image.

`python benchmarks/structure/latency.py car --weights world` measures the world's CaR. What the
names mean does not matter here, so their embeddings are random and cost nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn import functional as F

from benchmarks.forms import Curves, Latency, Point
from benchmarks.quality.plan import load_method
from openvocab.cli import CommandParser, run
from openvocab.clip.prompts import TextEncoder
from openvocab.image import ImageArray
from openvocab.segmenter import Segmenter
from openvocab.vocabulary import WORLD, Vocabulary

FORMAT = "openvocab-latency-1"
NAME_COUNTS = (20, 150, 847, 5000)
SIDES = (64, 128, 256, 512)  # pixels; the world's scenes have 128
FEW_NAMES = 4  # where the size is what matters


def picture(side: int) -> ImageArray:
    """Return a smooth random picture (side, side, 3)."""
    coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 255
    fine = F.interpolate(coarse, (side, side), mode="bicubic")[0].clamp(0, 255)
    pixels: ImageArray = fine.permute(1, 2, 0).to(torch.uint8).numpy()
    return pixels


def words(count: int) -> Vocabulary:
    """Return a vocabulary of so many made-up names."""
    return Vocabulary(tuple(f"name {index}" for index in range(count)))


@contextmanager
def known_names() -> Iterator[None]:
    """Give names random embeddings, so that encoding them takes no time."""

    def table(encoder: TextEncoder, count: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(count)
        width = encoder.clip.config.embed_dim
        return F.normalize(torch.randn(count, width, generator=generator), dim=-1)

    known: dict[str, Callable[..., torch.Tensor]] = {
        "encode_names": lambda self, names, templates="vild": table(self, len(names)),
        "encode_texts": lambda self, texts: table(self, len(texts)),
        "names_per_template": lambda self, names, templates="vild": table(self, len(names))[None],
    }
    before = {name: getattr(TextEncoder, name) for name in known}
    for name, method in known.items():
        setattr(TextEncoder, name, method)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(TextEncoder, name, method)


def measure_curves(
    segmenter: Segmenter,
    name_counts: Sequence[int],
    sides: Sequence[int],
    side: int,
    left: Callable[[], float],
) -> Curves:
    """Measure both curves as far as the time allows.

    Args:
        segmenter: segmenter to measure.
        name_counts: numbers of names, ascending, at images of `side`.
        sides: sides of square images, ascending, with `FEW_NAMES` names.
        side: side of the images with different numbers of names.
        left: tells how many seconds are left.

    Returns:
        Points by axis: seconds, or None and a reason.
    """
    with known_names():
        segmenter.segment(picture(min(sides)), words(FEW_NAMES))  # the first run is slower
        return {
            "names": _curve(segmenter, "names", [(n, side, n) for n in name_counts], left),
            "side": _curve(segmenter, "side", [(s, s, FEW_NAMES) for s in sides], left),
        }


def _curve(
    segmenter: Segmenter, axis: str, points: list[tuple[int, int, int]], left: Callable[[], float]
) -> list[Point]:
    """Measure (value on the axis, side, names) one after the other.

    A point is left out if it would not be done in time, were its cost as large as that of the one
    before it times their ratio (for sides, of the areas).
    """
    curve: list[Point] = []
    expected = 0.0
    for index, (value, side, count) in enumerate(points):
        if index:
            ratio = value / points[index - 1][0]
            expected *= ratio if axis == "names" else ratio**2
        if expected > left():
            reason = f"could take {expected:.0f} s, and {max(left(), 0):.0f} s were left"
            curve.append(_point(axis, value, None, reason))
            continue
        image, vocabulary = picture(side), words(count)
        start = time.perf_counter()
        segmenter.segment(image, vocabulary)
        expected = time.perf_counter() - start
        curve.append(_point(axis, value, expected))
    return curve


def _point(axis: str, value: int, seconds: float | None, reason: str = "") -> Point:
    point: Point = {"names": value, "seconds": seconds}
    if axis == "side":
        point = {"side": value, "seconds": seconds}
    if reason:
        point["reason"] = reason
    return point


def measure(method: str, weights: str, seconds: float) -> Latency:
    """Measure a method with weights.

    Args:
        method: key of an installed method.
        weights: weights, see `load_method`.
        seconds: approximate limit of the time.
    """
    start = time.monotonic()
    segmenter = load_method(method, weights)
    left = lambda: seconds - (time.monotonic() - start)  # noqa: E731
    return {
        "format": FORMAT,
        "method": method,
        "weights": weights,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "side": SIDES[1],
        "few_names": FEW_NAMES,
        "curves": measure_curves(segmenter, NAME_COUNTS, SIDES, SIDES[1], left),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one method and print JSON in one line."""
    parser = CommandParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("method", help="key of an installed method")
    parser.add_argument("--weights", default=WORLD)
    parser.add_argument(
        "--seconds",
        type=float,
        default=60,
        help="time after which no further point of a curve is begun",
    )
    args = parser.parse_args(argv)
    print(json.dumps(measure(args.method, args.weights, args.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
