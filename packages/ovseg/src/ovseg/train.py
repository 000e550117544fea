"""Train OVSeg's proposals (its first stage): `python -m ovseg.train --config-file swinB_vitL`.

Only MaskFormer and the "no object" embedding are trained; CLIP gives the text classifier.

Source: OVSeg paper section 3.1; SPEC ovseg 10.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from openvocab.cli import run
from openvocab.training.command import TrainingCommand, add_data_flags
from ovseg.option_keys import OPTIONS
from ovseg.train_config import OVSegTrainConfig

_KEYS = {
    "MODEL.MASK_FORMER.DICE_WEIGHT": "criterion.dice_weight",
    "MODEL.MASK_FORMER.MASK_WEIGHT": "criterion.mask_weight",
    "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME": "clip",
}
_ALIASES = {
    "ovseg_swinB_vitL_bs32_120k": "swinB_vitL",
    "ovseg_R101c_vitB_bs32_120k": "R101c_vitB",
}


def train(config: OVSegTrainConfig, original: Mapping[str, Any], resume: bool) -> int:
    """Train; see `train_segmenter`."""
    from openvocab.training.segmentation import train_segmenter  # late: it imports torch
    from ovseg.task import OVSegTask

    return train_segmenter(OVSegTask, config, original, resume=resume)


def evaluate(config: OVSegTrainConfig, original: Mapping[str, Any]) -> int:
    """Evaluate given weights; see `evaluate_segmenter`."""
    from openvocab.training.segmentation import evaluate_segmenter  # late: it imports torch
    from ovseg.task import OVSegTask

    return evaluate_segmenter(OVSegTask, config, original)


COMMAND = TrainingCommand(
    "ovseg.train",
    OVSegTrainConfig,
    train=train,
    evaluate=evaluate,
    add_flags=add_data_flags,
    description="Train OVSeg's mask proposals beside CLIP's text classifier.",
    recipes="recipes: swinB_vitL, R101c_vitB\n\nThe published recipe (swinB_vitL):",
    keys=_KEYS,
    model_keys=OPTIONS,
    aliases=_ALIASES,
)
build_parser, main = COMMAND.build_parser, COMMAND.main

if __name__ == "__main__":
    sys.exit(run(main))
