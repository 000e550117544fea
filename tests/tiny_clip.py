"""A CLIP of two small towers, and a TorchScript archive of it like OpenAI's: for tests."""

from __future__ import annotations

import torch
from torch import nn

from openvocab.clip.config import CLIPConfig, TextConfig, VisionConfig
from openvocab.clip.model import CLIP

CONFIG = CLIPConfig(
    embed_dim=16,
    vision=VisionConfig(image_size=32, patch_size=16, width=64, layers=2, heads=1, mlp_width=256),
    text=TextConfig(context_length=12, vocab_size=99, width=64, layers=1, heads=1, mlp_width=256),
    activation="quick_gelu",
)


HEADS = (1, 1)


class QuickGELU(nn.Module):
    """As in OpenAI's code."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Archived(nn.Module):
    """A module tree with CLIP's names, for a TorchScript archive like OpenAI's."""

    def __init__(self, clip: CLIP, dtype: torch.dtype, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.activation = activation or QuickGELU()
        for name, value in clip.state_dict().items():
            *path, leaf = name.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in dict(owner.named_children()):
                    owner.add_module(part, nn.Module())
                owner = dict(owner.named_children())[part]
            kept = nn.Parameter(value.to(dtype)) if "ln_" not in name else value
            if isinstance(kept, nn.Parameter):
                owner.register_parameter(leaf, kept)
            else:
                owner.register_buffer(leaf, kept)
        self.register_buffer("input_resolution", torch.tensor(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(x)
