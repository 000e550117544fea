"""`python -m car.evaluate`: score CaR on labelled images, or on referring expressions.

    python -m car.evaluate --config voc21 --data-root datasets

The original's command line works too:

    python -m car.evaluate --cfg-path configs/voc_test.yaml --visual_prompt_type circle,blur
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from car.config import NamedConfig
from car.options import CaRSettings, add_model_arguments, load_segmenter, read_settings
from car.referring import RESULT_FILE as REFERRING_FILE
from car.referring import evaluate_referring
from openvocab.cli import CommandParser, run
from openvocab.computation import add_computation_arguments
from openvocab.config import dump_config
from openvocab.datasets.referring import REFERRING, load_referring
from openvocab.datasets.samples import Sample
from openvocab.errors import InputError
from openvocab.evaluation.results import Result
from openvocab.evaluation.run import (
    RESULT_FILE,
    SampleSet,
    add_evaluate_arguments,
    run_evaluation,
    sample_set,
)
from openvocab.files import write_text
from openvocab.metrics.scores import Ignore, scores, without_background
from openvocab.segmenter import Segmenter
from openvocab.vocabulary import Vocabulary

SUMMARY_FILE = "car.json"
CONFIG_FILE = "config.yaml"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser(
        prog="python -m car.evaluate",
        description="Score CaR. With --config NAME the published settings, the data set and its "
        "names are chosen; any setting can be changed by its flag. Where the original drops the "
        "background from its confusion matrix, which flatters, both mean IoUs are printed. A "
        "killed run goes on where it stopped.",
    )
    add_model_arguments(parser)
    add_evaluate_arguments(parser)
    add_computation_arguments(parser)
    more = parser.add_argument_group("CaR")
    more.add_argument("--split", default=None, help="of a referring set (default: val)")
    old = parser.add_argument_group("accepted from the original")
    old.add_argument(
        "--index", type=int, metavar="N", help="which of the file's num_chunks parts to evaluate"
    )
    old.add_argument("--output_path", type=Path, metavar="DIR", help="the same as --output")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    args = build_parser().parse_args(argv)
    settings = read_settings(args)
    _take_over(args, settings)
    if args.dataset in REFERRING:
        _evaluate_referring(args, settings)
    else:
        _evaluate_semantic(args, settings)
    return 0


class RenamedSet:
    """A data set whose classes have the names that CaR looks for."""

    def __init__(self, data: SampleSet, vocabulary: Vocabulary) -> None:
        if len(vocabulary) != len(data.vocabulary):
            raise InputError(
                f"{data.name} has {len(data.vocabulary)} classes and the names of "
                f"{vocabulary.key} are {len(vocabulary)}; choose the configuration of the data set"
            )
        self.data, self.vocabulary = data, vocabulary
        self.name, self.split = data.name, data.split
        self.samples: Sequence[Sample] = data.samples
        self.ignore_index: Ignore = data.ignore_index

    def label_tree_hash(self) -> str:
        """See `SampleSet`."""
        return self.data.label_tree_hash()

    def read_label(self, sample: Sample) -> Any:
        """See `SampleSet`."""
        return self.data.read_label(sample)


def _evaluate_semantic(args: argparse.Namespace, settings: CaRSettings) -> None:
    if settings.car.mode != "semantic":
        raise InputError(
            f"mode is {settings.car.mode!r}, but {args.dataset or args.images} has class labels; "
            "use --mode semantic"
        )
    data: SampleSet = sample_set(args)
    named = settings.named
    if named is not None and named.vocabulary is not None and args.images is None:
        data = RenamedSet(data, Vocabulary.load(named.vocabulary))

    def load(args: argparse.Namespace) -> Segmenter:
        dump_config(settings.car, args.output / CONFIG_FILE)
        return load_segmenter(args, settings.car)

    run_evaluation(args, load, data)
    result = args.output / RESULT_FILE
    if result.is_file():
        summary = summarize(Result.load(result), named)
        write_text(args.output / SUMMARY_FILE, json.dumps(summary, indent=1) + "\n")
        print(_sentence(summary))


def summarize(result: Result, named: NamedConfig | None) -> dict[str, Any]:
    """Return both mean IoUs of the original, and separately the published one.

    `mIoU_ignore_background` removes the row and the column of the background, so that a pixel of a
    class that was labelled as background does not count as an error.

    Source: SPEC car 10.
    """
    background = result.names.index("background") if "background" in result.names else -1
    return {
        "mIoU": scores(result.matrix).miou,
        "mIoU_ignore_background": scores(without_background(result.matrix, background)).miou,
        "original_reports": None
        if named is None or named.vocabulary is None
        else ("mIoU_ignore_background" if named.ignore_background else "mIoU"),
        "published": None if named is None else asdict(named.published),
    }


def _sentence(summary: dict[str, Any]) -> str:
    both = (
        f"mIoU {summary['mIoU']:.2f}; without the background's row and column, where a miss to "
        f"the background is none, {summary['mIoU_ignore_background']:.2f}"
    )
    reports = summary["original_reports"]
    if reports is None:
        return both
    which = "the second" if reports.endswith("background") else "the first"
    known = summary["published"]["scores"].get("mIoU")
    number = "publishes no number" if known is None else f"published {known}"
    return f"{both}. The original reports {which}; it {number} for this configuration."


def _evaluate_referring(args: argparse.Namespace, settings: CaRSettings) -> None:
    if settings.car.mode != "refer":
        raise InputError(f"{args.dataset} needs --mode refer")
    split = args.split or "val"
    samples = load_referring(args.dataset, split, args.data_root)
    dump_config(settings.car, args.output / CONFIG_FILE)
    result = evaluate_referring(
        load_segmenter(args, settings.car),
        samples,
        name=args.dataset,
        split=split,
        output=args.output,
        limit=args.limit,
        shard=(args.rank, args.world_size),
        resume=args.resume,
    )
    found = result.scores
    precision = ", ".join(f"{value:.2f} at {t:g}" for t, value in found.precision.items())
    print(
        f"{args.dataset} {split}: {found.n} items, mIoU {found.mean_iou:.2f}, overall IoU "
        f"{found.overall_iou:.2f}, precision {precision}"
    )
    published = {} if settings.named is None else settings.named.published.scores
    for column, number in published.items():
        print(f"published, {column}: {number}")
    if result.complete:
        print(f"written to {args.output / REFERRING_FILE}")


def _take_over(args: argparse.Namespace, settings: CaRSettings) -> None:
    """Put what a file or a published configuration chooses into the arguments."""
    if args.output_path is not None:
        args.output = args.output_path
    named = settings.named
    if args.dataset is None and args.images is None and named is not None:
        args.dataset = named.dataset
    test = {} if settings.original is None else settings.original.test
    if args.split is None and args.dataset in REFERRING:
        args.split = test.get("split")
    chunks = test.get("num_chunks", 1)
    if args.index is not None or chunks != 1:
        index = test.get("chunk_index", 0) if args.index is None else args.index
        if not isinstance(chunks, int) or not 0 <= index < chunks:
            raise InputError(
                f"part {index} of num_chunks {chunks} does not exist; parts count from 0"
            )
        args.rank, args.world_size = index, chunks


if __name__ == "__main__":
    sys.exit(run(main))
