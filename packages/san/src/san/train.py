"""Train a side adapter: `python -m san.train --config-file san_vit_b_16`.

What is trained is in `san.task`, the settings are in `san.train_config`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from openvocab.cli import run
from openvocab.training.command import TrainingCommand, add_data_flags, available_recipes
from san.option_keys import OPTIONS
from san.train_config import SANTrainConfig

_KEYS = {"SOLVER.BACKBONE_MULTIPLIER": "optimizer.side_multiplier",
         "SOLVER.CLIP_MULTIPLIER": "optimizer.clip_multiplier",
         "MODEL.SAN.CLASS_WEIGHT": "criterion.class_weight",
         "MODEL.SAN.MASK_WEIGHT": "criterion.mask_weight",
         "MODEL.SAN.DICE_WEIGHT": "criterion.dice_weight",
         "MODEL.SAN.TRAIN_NUM_POINTS": "criterion.points",
         "MODEL.SAN.OVERSAMPLE_RATIO": "criterion.oversample",
         "MODEL.SAN.IMPORTANCE_SAMPLE_RATIO": "criterion.importance"}  # fmt: skip
_ALIASES = {
    "san_clip_vit_res4_coco": "san_vit_b_16",
    "san_clip_vit_large_res4_coco": "san_vit_large_14",
}


def train(config: SANTrainConfig, original: Mapping[str, Any], resume: bool) -> int:
    """Train; see `train_segmenter`."""
    from openvocab.training.segmentation import train_segmenter  # late: it imports torch
    from san.task import SANTask

    return train_segmenter(SANTask, config, original, resume=resume)


def evaluate(config: SANTrainConfig, original: Mapping[str, Any]) -> int:
    """Evaluate given weights; see `evaluate_segmenter`."""
    from openvocab.training.segmentation import evaluate_segmenter  # late: it imports torch
    from san.task import SANTask

    return evaluate_segmenter(SANTask, config, original)


COMMAND = TrainingCommand(
    "san.train",
    SANTrainConfig,
    train=train,
    evaluate=evaluate,
    add_flags=add_data_flags,
    description="Train a side adapter network beside a frozen CLIP.",
    recipes=f"recipes: {', '.join(available_recipes('san'))}\n\n"
    "The published recipe (san_vit_b_16):",
    keys=_KEYS,
    model_keys=OPTIONS,
    aliases=_ALIASES,
)
build_parser, main = COMMAND.build_parser, COMMAND.main


if __name__ == "__main__":
    sys.exit(run(main))
