"""SAN and OVSeg with small random networks, for tests of what does not depend on their size."""

from __future__ import annotations

import torch
from torch import nn

from openvocab.clip.config import CLIPConfig, TextConfig, VisionConfig
from ovseg import OVSeg, OVSegConfig
from ovseg.config import SwinConfig
from san import SAN, SANConfig


def clip_config(patch: int, side: int, layers: int = 3) -> CLIPConfig:
    return CLIPConfig(
        32,
        VisionConfig(side, patch, 64, layers, 2, 128),
        TextConfig(77, 49408, 32, 1, 1, 64),
        "quick_gelu",
    )


def tiny_san() -> SAN:
    torch.manual_seed(0)
    config = SANConfig(
        clip=clip_config(16, 64),
        split=2,
        fusion=((0, 0), (1, 1)),
        side_width=24,
        side_depth=2,
        side_heads=2,
        side_image_size=64,
        num_queries=7,
        supervised=(1, 2),
        bias_heads=2,
        embed_channels=16,
        mlp_channels=20,
    )
    return SAN(config)


def tiny_ovseg(decoder_layers: int = 1) -> OVSeg:
    torch.manual_seed(0)
    config = OVSegConfig(
        backbone=SwinConfig(8, (1, 1, 1, 1), (1, 2, 2, 4), 4),
        clip=clip_config(16, 64),
        convs_dim=32,
        mask_dim=32,
        hidden_dim=32,
        num_queries=5,
        heads=2,
        feedforward=32,
        decoder_layers=decoder_layers,
        embed_hidden_dim=16,
        mask_prompt_depth=2,
    )
    model = OVSeg(config)
    nn.init.normal_(model.clip_adapter.clip_model.visual.mask_embedding)
    return model
