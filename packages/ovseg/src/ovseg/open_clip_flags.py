"""The flags of the original's CLIP training (open_clip's `training.main`), under our settings.

`torchrun --nproc-per-node 4 -m ovseg.finetune_clip --train-data pairs.tsv --model ViT-L-14
--pretrained openai --lock-text --lr 5e-6 --wd 0.2 --warmup 100 --batch-size 32 --epochs 5` is the
original's command line with another module.

Source: SPEC ovseg 11.3 and 14.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openvocab.errors import InputError

# Flags with a value that is one of our settings as it is.
_SETTINGS = {
    "--train-data": "pairs",
    "--val-data": "validation",
    "--lr": "optimizer.base_lr",
    "--wd": "optimizer.weight_decay",
    "--beta1": "optimizer.beta1",
    "--beta2": "optimizer.beta2",
    "--eps": "optimizer.eps",
    "--mask_wd": "optimizer.prompt_weight_decay",
    "--mask_lr_multiplier": "optimizer.prompt_lr_multiplier",
    "--mask-emb-depth": "mask_prompt_depth",
    "--warmup": "warmup_steps",
    "--workers": "run.workers",
    "--seed": "run.seed",
}
# What this program always does, or reads from the list's header; other values are refused.
_FIXED = {
    "--dataset-type": ("csv", "auto"),
    "--csv-img-key": ("filepath",),
    "--csv-caption-key": ("title",),
    "--csv-separator": ("\t", "\\t"),
    "--lock-image-unlocked-groups": ("0",),
}
_ALWAYS = ("--lock-text", "--local-loss", "--gather-with-grad")
# Periods that the original counts in epochs, and we in steps; of two for one the last counts.
_IN_EPOCHS = {
    "--save-frequency": "run.checkpoint_period",
    "--val-frequency": "run.eval_period",
    "--zeroshot-frequency": "run.eval_period",
}
_PRECISIONS = {"amp": "fp16", "fp16": "fp16", "fp32": "fp32"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the original's flags to ours."""
    group = parser.add_argument_group("flags of the original's training.main (open_clip)")
    for flag, setting in _SETTINGS.items():
        group.add_argument(flag, dest=f"original {setting}", metavar="X", help=f"--{setting}")
    for flag, values in _FIXED.items():
        group.add_argument(flag, choices=values, help="accepted: it is so")
    for flag in _ALWAYS:
        group.add_argument(flag, action="store_true", help="accepted: it is always so")
    for flag, setting in _IN_EPOCHS.items():
        group.add_argument(
            flag,
            type=int,
            dest=f"epochs {setting}",
            metavar="EPOCHS",
            help=f"--{setting}, in steps",
        )
    group.add_argument("--model", metavar="NAME", help="with --pretrained: --clip NAME:TAG")
    group.add_argument("--pretrained", metavar="TAG|FILE", help="see --model; or --clip FILE")
    group.add_argument("--batch-size", type=int, metavar="N", help="--run.batch, of one process")
    group.add_argument("--precision", choices=_PRECISIONS, help="--run.precision")
    group.add_argument("--logs", metavar="DIR", help="with --name: --run.output DIR/NAME")
    group.add_argument("--name", metavar="NAME", help="see --logs")
    group.add_argument("--report-to", metavar="X", help="wandb: --run.wandb_project")
    group.add_argument("--scale_min", type=float, metavar="X", help="first of --scale")
    group.add_argument("--scale_max", type=float, metavar="X", help="second of --scale")
    group.add_argument("--grad-checkpointing", action="store_true", help="recompute blocks")
    group.add_argument("--force-quick-gelu", action="store_true", help="--activation quick_gelu")
    group.add_argument("--with-mask", action="store_true", help="needs --mask-emb-depth")
    group.add_argument("--lock-image", action="store_true", help="needs --mask-emb-depth")


def read_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Return our settings for the original's flags that were given.

    Raises:
        InputError: they contradict each other.
    """
    given: dict[str, Any] = {
        k: v for k, v in vars(args).items() if isinstance(v, str | int | float)
    }
    prefix = "original "
    values = {k.removeprefix(prefix): v for k, v in given.items() if k.startswith(prefix)}
    if "model" in given or "pretrained" in given:
        values["clip"] = _clip(args.model, args.pretrained)
    if "batch_size" in given:
        started = int(os.environ.get("WORLD_SIZE", args.num_gpus * args.num_machines))
        values["run.batch"] = args.batch_size * started
    if epochs := {
        k.removeprefix("epochs "): v for k, v in given.items() if k.startswith("epochs ")
    }:
        steps = _steps_of_an_epoch(values)
        values |= {setting: count * steps for setting, count in epochs.items()}
    if "precision" in given:
        values["run.precision"] = _PRECISIONS[args.precision]
    if "logs" in given or "name" in given:
        values["run.output"] = Path(args.logs or "logs", args.name or "run")
    if "wandb" in given.get("report_to", ""):
        values["run.wandb_project"] = args.name or "ovseg"
    if "scale_min" in given or "scale_max" in given:
        values["scale"] = (given.get("scale_min", 0.9), given.get("scale_max", 1.0))
    if args.grad_checkpointing:
        values["run.activation_checkpoints"] = True
    if args.force_quick_gelu:
        values["activation"] = "quick_gelu"
    depth = values.get("mask_prompt_depth", given.get("mask_prompt_depth", 0))
    prompts = args.config_file is not None or str(depth) != "0"
    if (args.with_mask or args.lock_image) and not prompts:
        raise InputError(
            "--with-mask and --lock-image belong to mask prompts; add --mask-prompt-depth 3"
        )
    return values


def _steps_of_an_epoch(values: Mapping[str, Any]) -> int:
    """Return how many batches the pairs make.

    Raises:
        InputError: pairs or batch are not given by the original's flags, or cannot be read.
    """
    if not {"pairs", "run.batch"} <= values.keys():
        names = ", ".join(_IN_EPOCHS)
        raise InputError(
            f"{names} count epochs; they need --train-data and --batch-size beside them"
        )
    from ovseg.pairs import read_pairs  # late: it imports torch

    return max(1, len(read_pairs(Path(values["pairs"]))) // int(values["run.batch"]))


def _clip(model: str | None, pretrained: str | None) -> str:
    """Name a CLIP by open_clip's name and tag, or by the file that a run before this has written.

    Raises:
        InputError: only one of the two is given, and it is no file.
    """
    if pretrained is not None and Path(pretrained).is_file():
        return pretrained
    if model is None or pretrained is None:
        raise InputError(
            "--model NAME and --pretrained TAG are only understood together; give both"
        )
    return f"{model}:{pretrained}"
