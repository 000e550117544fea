r"""`python -m ovseg.evaluate`: score OVSeg on labelled images.

    python -m ovseg.evaluate --weights ovseg.pth --dataset ade20k-150

The original's command line works too:

    python -m ovseg.evaluate --config-file configs/ovseg_swinB_vitL_bs32_120k.yaml --eval-only \
        MODEL.WEIGHTS ovseg.pth DATASETS.TEST "('ade20k_sem_seg_val',)"
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
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
from openvocab.files import write_text
from openvocab.metrics.scores import seen_unseen
from openvocab.segmenter import Segmenter
from openvocab.vocabulary import Vocabulary, available_vocabularies
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
SEEN_FILE = "seen_unseen.json"

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
    more.add_argument(
        "--seen",
        metavar="NAMES",
        help="also score seen, unseen and their harmonic mean: a file with one class name that was "
        "seen in training per line, or a vocabulary such as coco-stuff-171",
    )
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
    seen = _seen(args, options, data.vocabulary)
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
        _report_seen(Result.load(result), seen, args.output / SEEN_FILE)


def _seen(
    args: argparse.Namespace, options: Mapping[str, Any], vocabulary: Vocabulary
) -> list[int] | None:
    """Return the classes that training saw, from the arguments or from the checkpoint."""
    if args.seen is not None:
        return seen_ids(args.seen, vocabulary)
    from openvocab.weights.training_names import seen_by_training, training_names  # late: torch

    names = training_names(weights_named(args, options), "ovseg")
    ids = seen_by_training(names, vocabulary)
    return ids if 0 < len(ids) < len(vocabulary) else None


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


def seen_ids(names: str, vocabulary: Vocabulary) -> list[int]:
    """Return which classes of a vocabulary are in a list of seen names.

    Args:
        names: a file with one name per line, or the key of a vocabulary.
        vocabulary: vocabulary of the data set.

    Raises:
        InputError: if there is no such list, or none of its names is a class.
    """
    if Path(names).is_file():
        seen = {line.strip() for line in Path(names).read_text("utf-8").splitlines()}
    elif names in available_vocabularies():
        seen = set(Vocabulary.load(names).names)
    else:
        raise InputError(f"--seen is {names!r}; give a file of names or a vocabulary's name")
    ids = [index for index, name in enumerate(vocabulary.names) if name.strip() in seen]
    if not ids:
        raise InputError(
            f"none of the seen names in {names} is a class of this data set; "
            "give names of this data set"
        )
    return ids


def _report_seen(result: Result, seen: Sequence[int], path: Path) -> None:
    scores = seen_unseen(result.matrix, seen)
    write_text(path, json.dumps({"seen": list(seen), **asdict(scores)}, indent=1) + "\n")
    print(
        f"{len(seen)} seen classes: mIoU {scores.seen_miou:.2f}, pACC {scores.seen_pacc:.2f}; "
        f"{len(result.names) - len(seen)} unseen: mIoU {scores.unseen_miou:.2f}, pACC "
        f"{scores.unseen_pacc:.2f}; harmonic mIoU {scores.harmonic_miou:.2f}"
    )


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
