r"""`python -m ovseg.evaluate`: score OVSeg on labelled images.

    python -m ovseg.evaluate --weights ovseg.pth --dataset ade20k-150

The original's command line works too:

    python -m ovseg.evaluate --config-file configs/ovseg_swinB_vitL_bs32_120k.yaml --eval-only \
        MODEL.WEIGHTS ovseg.pth DATASETS.TEST "('ade20k_sem_seg_val',)"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from openvocab.cli import CommandParser, run
from openvocab.computation import add_computation_arguments
from openvocab.config import flags_of
from openvocab.errors import InputError
from openvocab.evaluation.augmentation import add_augmentation_arguments, augment
from openvocab.evaluation.results import Result
from openvocab.evaluation.run import (
    RESULT_FILE,
    SampleSet,
    add_evaluate_arguments,
    run_evaluation,
    sample_set,
)
from openvocab.evaluation.seen import (
    SEEN_FILE,
    add_seen_argument,
    report_seen,
    seen_classes_of,
)
from openvocab.segmenter import Segmenter
from openvocab.vocabulary import Vocabulary
from ovseg.config import InferenceConfig, ensemble_weights
from ovseg.options import (
    add_model_arguments,
    add_opts,
    load_from_arguments,
    read_opts,
    weights_named,
)

_TTA_SIZES = (256, 384, 512, 640, 768, 896)
_TTA_MAX_SIZE = 3584

# What the original's evaluation reads besides the model.
_OPTIONS: dict[str, Any] = {
    "OUTPUT_DIR": str,
    "DATASETS.TEST": tuple[str, ...],
    "TEST.AUG.ENABLED": bool,
    "TEST.AUG.MIN_SIZES": list[int],
    "TEST.AUG.MAX_SIZE": int,
    "TEST.AUG.FLIP": bool,
    "TEST.SLIDING_WINDOW": bool,
    "TEST.DENSE_CRF": bool,
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser(
        prog="python -m ovseg.evaluate",
        description="Score OVSeg on labelled images: every pixel gets one of the data set's names, "
        "and mean IoU is printed in the three conventions of the field. CLIP's weight against "
        "MaskFormer is the published one of the data set, unless you set it. A killed run goes on "
        "where it stopped.",
    )
    add_model_arguments(parser)
    add_evaluate_arguments(parser)
    add_augmentation_arguments(parser, sizes=_TTA_SIZES, max_size=_TTA_MAX_SIZE)
    add_computation_arguments(parser)
    more = parser.add_argument_group("OVSeg")
    add_seen_argument(more)
    more.add_argument(
        "--proposals",
        choices=("maskformer", "ground-truth"),
        default="maskformer",
        help="ground-truth: name the true masks with CLIP alone, to see what the masks lose",
    )
    old = parser.add_argument_group("accepted from the original's train_net.py")
    old.add_argument("--eval-only", action="store_true", help="what this command always does")
    old.add_argument("--num-gpus", type=int, metavar="N", help="0: CPU; more than 1: see --rank")
    add_opts(parser, "opts")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    args = build_parser().parse_args(argv)
    options = read_opts(args.opts, _OPTIONS)
    _take_over(args, options)
    weights_named(args, options)  # before data sets are looked for
    sets = _test_sets(args, options)
    root = args.output
    for name in sets:
        if name is not None:
            args.dataset = name
        if len(sets) > 1:
            args.output = root / str(name)
        _evaluate(args, options)
    return 0


def _evaluate(args: argparse.Namespace, options: Mapping[str, Any]) -> None:
    data: SampleSet = sample_set(args)
    weights = weights_named(args, options)
    seen = seen_classes_of(args.seen, weights, "ovseg", data.vocabulary)
    from ovseg.proposals import GroundTruthProposals  # late: it imports torch

    oracle = GroundTruthProposals(data) if args.proposals == "ground-truth" else None

    def load(args: argparse.Namespace) -> Segmenter:
        segmenter = load_from_arguments(args, options, proposals=oracle)
        explicit = "ensemble_weight" in flags_of(args, InferenceConfig)
        if not explicit and "CLIP_ENSEMBLE_WEIGHT" not in _adapter_options(options):
            segmenter.inference = with_published_weight(segmenter.inference, data.vocabulary)
        short, long = segmenter.inference.min_size, segmenter.inference.max_size
        return augment(segmenter, args, short=short, max_short=long)

    run_evaluation(args, load, oracle or data)
    result = args.output / RESULT_FILE
    if seen is not None and result.is_file():
        report_seen(Result.load(result), seen, args.output / SEEN_FILE)


def with_published_weight(inference: InferenceConfig, vocabulary: Vocabulary) -> InferenceConfig:
    """Set the ensemble weight that was published for a data set, if one was.

    Source: SPEC ovseg 2, last line.
    """
    weight = ensemble_weights().get(vocabulary.key or "")
    if weight is None or inference.mode != "eval":
        return inference
    return replace(inference, ensemble_weight=weight)


def _adapter_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    adapter: Mapping[str, Any] = options.get("MODEL", {}).get("CLIP_ADAPTER", {})
    return adapter


def _take_over(args: argparse.Namespace, options: Mapping[str, Any]) -> None:
    """Put the original's options into the arguments that replace them."""
    test, augmentation = options.get("TEST", {}), options.get("TEST", {}).get("AUG", {})
    for key in ("SLIDING_WINDOW", "DENSE_CRF"):
        if test.get(key):
            raise InputError(f"TEST.{key} is not supported; set it to False")
    args.tta = args.tta or bool(augmentation.get("ENABLED", False))
    args.tta_sizes = list(augmentation.get("MIN_SIZES", args.tta_sizes))
    args.tta_max_size = augmentation.get("MAX_SIZE", args.tta_max_size)
    args.tta_flip = augmentation.get("FLIP", args.tta_flip)
    args.output = Path(options.get("OUTPUT_DIR", args.output))
    if args.num_gpus == 0:
        args.device = "cpu"
    if args.num_gpus is not None and args.num_gpus > 1:
        print(
            f"one process uses one GPU; start {args.num_gpus} with --rank 0..{args.num_gpus - 1} "
            f"--world-size {args.num_gpus} and the same --output to share the images",
            file=sys.stderr,
        )


def _test_sets(args: argparse.Namespace, options: Mapping[str, Any]) -> list[str | None]:
    """Return the data sets to evaluate; None: the one that the arguments name."""
    given = options.get("DATASETS", {}).get("TEST")
    if given is None:
        return [None]
    if args.dataset is not None or args.images is not None:
        raise InputError("give --dataset, --images or DATASETS.TEST, not several of them")
    return [given] if isinstance(given, str) else list(given)


if __name__ == "__main__":
    sys.exit(run(main))
