"""Adapt CLIP to masked crops: `python -m ovseg.finetune_clip --pairs pairs.tsv`.

Either the image tower is fine-tuned, or both towers stay and prompts for background patches are
learned (`--mask-prompt-depth 3`). The text tower is locked in both.

Source: OVSeg paper sections 3.2 and 3.3; SPEC ovseg 11.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from openvocab.cli import run
from openvocab.training.command import TrainingCommand
from ovseg import open_clip_flags
from ovseg.train_config import FinetuneConfig


def train(config: FinetuneConfig, original: Mapping[str, Any], resume: bool) -> int:
    """Adapt a CLIP; returns the exit code."""
    from ovseg.finetune_task import finetune  # late: it imports torch

    return finetune(config, resume=resume)


def evaluate(config: FinetuneConfig, original: Mapping[str, Any]) -> int:
    """Classify the validation pairs, and print the scores; returns the exit code."""
    from ovseg.finetune_task import evaluate_only  # late: it imports torch

    return evaluate_only(config)


COMMAND = TrainingCommand(
    "ovseg.finetune_clip",
    FinetuneConfig,
    train=train,
    evaluate=evaluate,
    description="Adapt CLIP to masked crops, by fine-tuning or by mask prompts.",
    recipes="recipes: coco_proposal_1cap_finetune_VitL, coco_proposal_1cap_finetune_VitB, "
    "coco_gt_171cls_finetune_VitL, coco_proposal_1cap_mask_prompt_tuning_VitL\n\n"
    "The published recipe of full fine-tuning (coco_proposal_1cap_finetune_VitL), on 4 GPUs; mask "
    "prompt tuning has mask_prompt_depth 3 and base_lr 0.05:",
    add_flags=open_clip_flags.add_flags,
    read_flags=open_clip_flags.read_flags,
)
build_parser, main = COMMAND.build_parser, COMMAND.main

if __name__ == "__main__":
    sys.exit(run(main))
