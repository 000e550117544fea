"""`python -m ovseg.replace_clip MODEL.pth CLIP.pt OUT.pth`: put a fine-tuned CLIP into OVSeg.

Source: SPEC ovseg 11.4.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openvocab.cli import CommandParser, run
from openvocab.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def replace_clip(
    model: Mapping[str, Tensor], clip: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Put the tensors of a CLIP into the state dict of an OVSeg model.

    Args:
        model: official names, `clip_adapter.clip_model.*` among them.
        clip: OpenAI's names, and `visual.mask_embedding` if it has mask prompts.

    Returns:
        The new state dict, and the mean absolute change of each tensor that changed.

    Raises:
        InputError: if a tensor has no place or another shape.
    """
    from ovseg._convert import CLIP_PREFIX, PROMPTS  # late: it imports torch

    result, changed = dict(model), {}
    for name, tensor in clip.items():
        old = model.get(CLIP_PREFIX + name)
        if old is None and name != PROMPTS:
            raise InputError(f"the model has no place for the CLIP's {name}; is it an OVSeg model?")
        # The number of prompted layers belongs to the CLIP.
        if old is not None and name != PROMPTS and old.shape != tensor.shape:
            raise InputError(
                f"{name} is {tuple(tensor.shape)} in the CLIP and {tuple(old.shape)} in the model; "
                "give a CLIP of the model's size"
            )
        result[CLIP_PREFIX + name] = tensor.float()
        if old is None or old.shape != tensor.shape:
            changed[name] = float("nan")
        elif difference := (tensor.float() - old.float()).abs().mean().item():
            changed[name] = difference
    return result, changed


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser(
        prog="python -m ovseg.replace_clip",
        description="Put a CLIP that was fine-tuned on masked images into an OVSeg checkpoint, and "
        "say which of its tensors changed and by how much. A CLIP without mask prompts leaves the "
        "model's prompts as they are.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL.pth", help="OVSeg checkpoint")
    parser.add_argument("clip", type=Path, metavar="CLIP.pt", help="fine-tuned CLIP checkpoint")
    parser.add_argument(
        "output", type=Path, metavar="OUT.pth", help=".pth or .safetensors to write"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    args = build_parser().parse_args(argv)
    from openvocab.clip.weights import stored_choices  # late: they import torch
    from openvocab.formats.detectron2 import read_checkpoint
    from openvocab.weights.state_dict import read_values, save_state_dict
    from ovseg._convert import PROMPTS, read_mask_clip

    activation = stored_choices(args.clip)[0] or "quick_gelu"
    # Tensors are copied, so the heads, which no tensor tells, do not matter here.
    _, clip, prompted = read_mask_clip(args.clip, activation, heads=(1, 1))
    if not prompted:
        del clip[PROMPTS]
    result, changed = replace_clip(read_checkpoint(args.model), clip)
    metadata = read_values(args.model)
    save_state_dict(args.output, result, metadata)
    _report(changed, len(clip))
    if not prompted:
        print("the CLIP has no mask prompts: run the model with --region.mask-prompts false")
    print(f"written to {args.output}")
    return 0


def _report(changed: Mapping[str, float], total: int) -> None:
    for name, difference in changed.items():
        new = difference != difference  # nan
        print(f"{name}: {'new' if new else f'mean change {difference:.3g}'}")
    print(f"{len(changed)} of {total} tensors changed")


if __name__ == "__main__":
    sys.exit(run(main))
