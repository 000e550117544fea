"""Measures whether the same noun of another crop should be a negative of mask-adapted CLIP's.

    python benchmarks/experiments/duplicate_nouns.py --output benchmarks/measured/duplicates.json

The world's CLIP is adapted with `--duplicates negative` and with `--duplicates ignore`, with the
same crops in the same order for each of several seeds, and names crops of scenes that no training
saw. Everything is done by the project's own commands; a run that was killed goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.measuring import add_measuring_arguments, report
from openvocab.cli import CommandParser, run
from openvocab.errors import InputError
from openvocab.training.order import EndlessShuffle
from openvocab.vocabulary import WORLD
from openvocab.world.names import seen_labels, world_vocabulary
from ovseg import collect_pairs, finetune_clip
from ovseg.mask_clip import MaskCLIP
from ovseg.pairs import Pair, PairData, read_pairs
from ovseg.train_config import Duplicates

KINDS: tuple[Duplicates, ...] = ("negative", "ignore")
RECIPE, FINAL = "world_mask_clip", "model_final.safetensors"
# The recipe's own steps are few and gentle since its crops leave room around a mask; these do not.
STEPS = ("--epochs", "2", "--warmup-steps", "20", "--optimizer.base-lr", "2e-4")
SHORT = 192  # side of the world's scenes
_CROPS = 64


def collected(folder: Path, dataset: str) -> Path:
    """Return the list of a data set's true pairs, made by `ovseg.collect_pairs`."""
    output = folder / dataset.replace(":", "-")
    words = ["--dataset", dataset, "--min-size", str(SHORT), "--output", str(output)]
    if not (output / "pairs.tsv").is_file() and run(collect_pairs.main, words):
        raise InputError(f"the pairs of {dataset} could not be collected; see above")
    return output / "pairs.tsv"


def adapted(folder: Path, pairs: Path, kind: str, seed: int, more: Sequence[str]) -> Path:
    """Return the CLIP that `ovseg.finetune_clip` makes of the pairs."""
    output = folder / f"{kind}-{seed}"
    words = ["--config-file", RECIPE, *STEPS, "--pairs", str(pairs), "--duplicates", kind]
    words += ["--run.seed", str(seed), "--run.output", str(output), "--run.device", "cpu"]
    done = (output / FINAL).is_file()
    if not done and run(finetune_clip.main, [*words, *more, "--resume"]):
        raise InputError(f"{output} could not be trained; see above")
    return output / FINAL


@torch.inference_mode()
def named_right(clip: MaskCLIP, pairs: Sequence[Pair], names: Sequence[str]) -> dict[str, bool]:
    """Tell of each crop, by its file, whether the CLIP calls it by its title among all names."""
    classifier = clip.embed_names(names)
    data = PairData(pairs, clip.clip_model.config.vision.image_size, None)
    found = {}
    for start in range(0, len(pairs), _CROPS):
        rows = range(start, min(start + _CROPS, len(pairs)))
        crops = torch.stack([data[row, row]["image"] for row in rows])
        best = (F.normalize(clip.clip_model.visual(crops), dim=-1) @ classifier.T).argmax(1)
        for row, label in zip(rows, best.tolist(), strict=True):
            found[str(pairs[row].path)] = names[label] == pairs[row].title
    return found


def accuracy(weights: str | Path, pairs: Sequence[Pair]) -> dict[str, float]:
    """Return the percentage of crops that are named right: all, of seen and of unseen names."""
    names = world_vocabulary().names
    seen = {names[label] for label in seen_labels()}
    right = named_right(MaskCLIP.load(weights), pairs, names)
    groups = {
        "all": list(right.values()),
        "seen": [right[str(pair.path)] for pair in pairs if pair.title in seen],
        "unseen": [right[str(pair.path)] for pair in pairs if pair.title not in seen],
    }
    return {name: 100 * float(np.mean(found)) for name, found in groups.items()}


def share_of_duplicates(pairs: Sequence[Pair], batch: int, seed: int) -> float:
    """Return the share of crops in an epoch's batches whose noun another crop of the batch has."""
    order, found = EndlessShuffle(len(pairs), seed), []
    for start in range(0, len(pairs) - batch + 1, batch):
        titles = [pairs[order[position]].title for position in range(start, start + batch)]
        counts = Counter(titles)
        found += [counts[title] > 1 for title in titles]
    return float(np.mean(found))


def differences(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean and standard error of "ignore" minus "negative" over seeds, in points."""
    found = {}
    for name in ("all", "seen", "unseen"):
        by = {kind: [r[name] for r in runs if r["duplicates"] == kind] for kind in KINDS}
        gaps = np.subtract(by["ignore"], by["negative"])
        error = float(gaps.std(ddof=1) / len(gaps) ** 0.5) if len(gaps) > 1 else float("nan")
        found[name] = {"mean": float(gaps.mean()), "standard_error": error}
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train and score everything."""
    train, held_out = (
        collected(args.folder, f"{WORLD}:{split}:{count}")
        for split, count in (("train", args.scenes), ("tune", args.held_out))
    )
    tested, pairs = read_pairs(held_out), read_pairs(train)
    words = ["--config-file", RECIPE, *STEPS, *args.more]
    settings = finetune_clip.COMMAND.read(words)[1]
    runs = []
    for seed in range(args.seeds):
        for kind in KINDS:
            weights = adapted(args.folder, train, kind, seed, args.more)
            runs.append({"duplicates": kind, "seed": seed, **accuracy(weights, tested)})
            print(runs[-1], file=sys.stderr, flush=True)
    batch = settings.run.batch
    return {
        "about": "crops of held-out scenes that the world's mask-adapted CLIP names right, percent",
        "recipe": RECIPE,
        "overrides": args.more,
        "training_pairs": len(pairs),
        "held_out_pairs": len(tested),
        "names": len(world_vocabulary().names),
        "batch": batch,
        "epochs": settings.epochs,
        "seeds": args.seeds,
        "crops_with_a_duplicate": share_of_duplicates(pairs, batch, 0),
        "before": accuracy(settings.clip, tested),
        "runs": runs,
        "ignore_minus_negative": differences(runs),
        "torch": torch.__version__,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = CommandParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_measuring_arguments(parser)
    parser.add_argument(
        "--folder", type=Path, default=Path("duplicates"), help="folder of all trainings"
    )
    parser.add_argument("--seeds", type=int, default=4, help="number of trainings of each kind")
    parser.add_argument("--scenes", type=int, default=400, help="number of scenes to train on")
    parser.add_argument(
        "--held-out", type=int, default=300, help="number of scenes whose crops are named"
    )
    parser.add_argument("more", nargs="*", help="options of ovseg.finetune_clip, after --")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    report(measure(args), args.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
