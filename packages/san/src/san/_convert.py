"""Names of tensors in the original's checkpoints, and in ours.

The original stores CLIP's image tower in two parts, cut behind block S with the second part counted
from 0 again, its text tower inside the classifier, and two constant buffers.

Source: SPEC san 13.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from san.config import SANConfig

_EXTRACTOR = ("class_embedding", "positional_embedding", "stem.", "conv1.", "ln_pre.")
_BLOCK = re.compile(r"(.*resblocks\.)(\d+)(\..*)")


def official_name(name: str, split: int) -> str:
    """Translate one of our tensor names, as in `clip.visual.conv1.weight`, to the original's."""
    if name.startswith("side_adapter."):
        return name.replace("side_adapter.", "side_adapter_network.", 1)
    if name == "bg_embed":
        return "ov_classifier.bg_embed"
    name = name.removeprefix("clip.")
    if not name.startswith("visual."):
        return "ov_classifier." + name
    name = name.removeprefix("visual.")
    if match := _BLOCK.fullmatch(name):
        index = int(match[2])
        part = "clip_visual_extractor" if index < split else "clip_rec_head"
        return f"{part}.resblocks.{index if index < split else index - split}{match[3]}"
    part = "clip_visual_extractor" if name.startswith(_EXTRACTOR) else "clip_rec_head"
    return f"{part}.{name}"


def to_official(state_dict: Mapping[str, Tensor], config: SANConfig) -> dict[str, Tensor]:
    """Return tensors under the original's names, together with its constant buffers."""
    renamed = {official_name(name, config.split): t for name, t in state_dict.items()}
    return renamed | _constants(config)


def from_official(
    checkpoint: Mapping[str, Tensor], names: list[str], config: SANConfig
) -> dict[str, Tensor]:
    """Return the original's tensors under our names.

    Args:
        checkpoint: the original's names.
        names: all of ours.
        config: the variant.

    Returns:
        Our names where the checkpoint has the tensor. Names that belong to no tensor of ours are
        kept, so that strict loading reports them.
    """
    ours = {official_name(name, config.split): name for name in names}
    constants = _constants(config)
    return {
        ours.get(name, name): tensor for name, tensor in checkpoint.items() if name not in constants
    }


def is_official(checkpoint: Mapping[str, Tensor]) -> bool:
    """Return whether the names of tensors are those of the original."""
    return any(name.startswith("clip_visual_extractor.") for name in checkpoint)


def _constants(config: SANConfig) -> dict[str, Tensor]:
    """Return the constant buffers of the original, which follow from its configuration."""
    weight = torch.ones(config.num_classes + 1)
    weight[-1] = config.no_object_weight
    context = config.clip.text.context_length
    mask = torch.full((context, context), float("-inf")).triu(1)
    return {"criterion.empty_weight": weight, "ov_classifier.attn_mask": mask}
