"""What fewer bits cost trained weights: `python -m benchmarks.quality.precision --output FILE`.

The world's weights of each method segment scenes of world:val in fp32, bf16 and fp16. Random
weights would not do: their scores lie so close together that any rounding changes labels, or so far
apart that none does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import add_measuring_arguments, report
from openvocab.cli import CommandParser, run
from openvocab.computation import PRECISIONS, add_device_argument, choose_device
from openvocab.image import read_image
from openvocab.methods import available_methods, load, title_of
from openvocab.metrics.scores import ConfusionMatrix, scores
from openvocab.vocabulary import WORLD
from openvocab.world import open_world


def measure(key: str, count: int, device: str) -> dict[str, Any]:
    """Compare the labels and the mIoU of a method in each precision with those in fp32.

    Args:
        key: of the method.
        count: of the scenes.
        device: where it runs.
    """
    data = open_world("val", count)
    segmenters = {name: load(key, WORLD, device=device, precision=name) for name in PRECISIONS}
    counted = {
        name: ConfusionMatrix(len(data.vocabulary), data.ignore_index) for name in PRECISIONS
    }
    same, pixels = dict.fromkeys(PRECISIONS, 0), 0
    for sample in data.samples:
        image, truth = read_image(sample.image), data.read_label(sample)
        found = {name: s.segment(image, data.vocabulary).labels for name, s in segmenters.items()}
        pixels += truth.size
        for name, labels in found.items():
            counted[name].update(labels, truth)
            same[name] += int(np.count_nonzero(labels == found["fp32"]))
    return {
        "scenes": len(data.samples),
        **{
            name: {
                "equal_labels": same[name] / pixels,
                "miou": scores(counted[name].matrix).miou,
            }
            for name in PRECISIONS
        },
    }


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = CommandParser(
        prog="benchmarks.quality.precision",
        description="Measure what bf16 and fp16 change in the labels of the world's weights.",
    )
    parser.add_argument("--methods", nargs="+", metavar="KEY", help="measure these methods only")
    parser.add_argument(
        "--scenes", type=int, metavar="N", default=48,
        help="number of scenes of world:val (default: %(default)s)",
    )  # fmt: skip
    add_device_argument(parser)
    add_measuring_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report."""
    args = build_parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    keys = args.methods or available_methods()
    found = {key: measure(key, args.scenes, device) for key in keys}
    result = {
        "data_set": f"{WORLD}:val",
        "device": device,
        "torch": torch.__version__,
        "titles": {key: title_of(key) for key in found},
        "methods": found,
    }
    report(result, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
