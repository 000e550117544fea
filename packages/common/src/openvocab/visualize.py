"""Draw [image | prediction | ground truth] for predictions of any program.

`python -m openvocab.visualize --input sem_seg_predictions.json --dataset NAME --output DIR`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from openvocab.cli import CommandParser, run
from openvocab.datasets.label_check import check_labels
from openvocab.datasets.predictions import Predictions, check_complete, open_predictions
from openvocab.datasets.samples import Sample, SampleSet
from openvocab.drawing.overlay import draw_overlay, side_by_side
from openvocab.errors import InputError
from openvocab.evaluation.data_arguments import sample_set
from openvocab.evaluation.protocol import metric_names
from openvocab.files import atomic_path
from openvocab.image import ImageArray, read_image
from openvocab.score import add_prediction_arguments

_HEIGHT = 512  # of a row, as the original's
_TITLES = ("image", "prediction", "ground truth")


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the predictions that are there and write one PNG for each image."""
    args = build_parser().parse_args(argv)
    if args.limit is not None and args.limit < 1:
        raise InputError(f"the limit is {args.limit} images; give at least 1, or none for all")
    data = sample_set(args)
    predictions = open_predictions(args.input, data, args.category_ids, args.prediction_offset)
    samples = check_complete(predictions, data.samples, partial=True)[: args.limit]
    check_labels(data, samples=samples, classes=len(metric_names(data.vocabulary)))
    for sample in tqdm(samples, desc="drawing", unit="image", disable=args.quiet):
        target = args.output / f"{sample.id}.png"
        with atomic_path(target) as temporary:
            Image.fromarray(draw_row(sample, predictions, data)).save(temporary)
    print(f"{len(samples)} pictures in {args.output}")
    return 0


def draw_row(sample: Sample, predictions: Predictions, data: SampleSet) -> ImageArray:
    """Draw one row: the image, the prediction over it, and the ground truth over it.

    Args:
        sample: one of the set.
        predictions: that have it.
        data: the set.

    Returns:
        (H, W, 3) uint8.

    Raises:
        InputError: a file cannot be read, or the sizes differ.
    """
    image, truth = read_image(sample.image), data.read_label(sample)
    predicted = predictions.read(sample, len(data.vocabulary))
    panels = [image]
    for what, labels, names in (
        ("prediction", predicted, data.vocabulary.names),
        ("label map", truth, metric_names(data.vocabulary)),
    ):
        if labels.shape != image.shape[:2]:
            raise InputError(
                f"the {what} of {sample.id} has the size {labels.shape} (height, width) and its "
                f"image {image.shape[:2]}; "
                "check that both belong together"
            )
        panels.append(draw_overlay(image, _visible(labels, len(names)), names, legend=False))
    return side_by_side(panels, _TITLES, height=_HEIGHT)


def _visible(labels: NDArray[np.int32], classes: int) -> NDArray[np.int32]:
    return np.where((labels >= 0) & (labels < classes), labels, -1).astype(np.int32)


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = CommandParser("python -m openvocab.visualize", description=__doc__)
    parser.add_argument("--input", type=Path, required=True, metavar="JSON|DIR")
    add_prediction_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


if __name__ == "__main__":
    sys.exit(run(main))
