"""The transformer decoder: queries read the coarsest features and become masks and embeddings.

Source: Carion et al., "DETR" (ECCV 2020), supplement A; MaskFormer section 3.3; SPEC ovseg
3.4 and 17.3-4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MaskPredictions(NamedTuple):
    """The predictions for each query after each of the decoder's L layers, the last layer last."""

    hidden: Tensor
    """Queries (L, B, Q, hidden)."""
    class_embeddings: Tensor
    """Embeddings in CLIP's space, not normalised (L, B, Q, D)."""
    mask_logits: Tensor
    """Mask logits at stride 4 (L, B, Q, H/4, W/4)."""


class TransformerPredictor(nn.Module):
    """Queries, decoder and the two heads.

    Source: SPEC ovseg 3.4.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        hidden_dim: int,
        mask_dim: int,
        embedding_dim: int,
        num_queries: int,
        heads: int,
        feedforward: int,
        layers: int,
        dropout: float,
        embed_hidden_dim: int,
        embed_layers: int,
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.transformer = MaskTransformer(
            dim=hidden_dim, heads=heads, feedforward=feedforward, layers=layers, dropout=dropout
        )
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.input_proj = _input_projection(in_channels, hidden_dim)
        self.mask_embed = EmbeddingMLP([hidden_dim] * 3 + [mask_dim])
        self.class_embed = EmbeddingMLP(
            [hidden_dim] + [embed_hidden_dim] * (embed_layers - 1) + [embedding_dim]
        )

    def forward(
        self, features: Tensor, mask_features: Tensor, *, all_layers: bool = False
    ) -> MaskPredictions:
        """Predict masks and embeddings.

        Args:
            features: the coarsest backbone features (B, C, h, w).
            mask_features: per-pixel features (B, M, H/4, W/4).
            all_layers: predict after every decoder layer (for training) or after the last (L = 1).
        """
        memory = self.input_proj(features)
        height, width = memory.shape[-2:]
        position = sine_position(height, width, self.hidden_dim, device=memory.device).to(memory)
        hidden = self.transformer(
            memory.flatten(2).transpose(1, 2),  # (B, hw, hidden)
            position,
            self.query_embed.weight,
            all_layers=all_layers,
        )  # (L, B, Q, hidden)
        masks = torch.einsum("lbqc,bchw->lbqhw", self.mask_embed(hidden), mask_features)
        return MaskPredictions(hidden, self.class_embed(hidden), masks)


class MaskTransformer(nn.Module):
    """A stack of decoder layers without an encoder: the memory is the projected backbone output."""

    def __init__(
        self, *, dim: int, heads: int, feedforward: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(
            DecoderLayer(dim, heads, feedforward, dropout) for _ in range(layers)
        )
        self.decoder.norm = nn.LayerNorm(dim)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, memory: Tensor, position: Tensor, queries: Tensor, *, all_layers: bool
    ) -> Tensor:
        """Decode the queries.

        Args:
            memory: image tokens (B, N, C); padding is attended to like everything else.
            position: their position encoding (N, C).
            queries: query positions (Q, C); the queries themselves start at zero.
            all_layers: return every layer's output.

        Returns:
            Normalised outputs (L, B, Q, C), L = 1 unless `all_layers`.
        """
        decoder = self.decoder
        keys = memory + position
        target = queries.new_zeros(memory.shape[0], *queries.shape).to(memory)
        outputs = []
        for layer in decoder.get_submodule("layers").children():
            target = layer(target, queries, keys, memory)
            outputs.append(target)
        kept = torch.stack(outputs if all_layers else outputs[-1:])
        normalized: Tensor = decoder.get_submodule("norm")(kept)
        return normalized


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and an MLP, each followed by its LayerNorm."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, target: Tensor, queries: Tensor, keys: Tensor, memory: Tensor) -> Tensor:
        """Update the queries (B, Q, C) from the memory (B, N, C) under keys with positions."""
        q = target + queries
        attended = self.self_attn(q, q, target, need_weights=False)[0]
        target = self.norm1(target + self.dropout(attended))
        attended = self.multihead_attn(target + queries, keys, memory, need_weights=False)[0]
        target = self.norm2(target + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(target)))
        out: Tensor = self.norm3(target + self.dropout(self.linear2(hidden)))
        return out


class EmbeddingMLP(nn.Module):
    """Linear layers of the given widths with ReLU between them."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., widths[0]) to (..., widths[-1])."""
        for index, layer in enumerate(self.layers):
            x = layer(x) if index == 0 else layer(F.relu(x))
        return x


def sine_position(
    height: int,
    width: int,
    channels: int,
    temperature: float = 10000.0,
    device: torch.device | None = None,
) -> Tensor:
    """Return the sine position encoding of a grid, (h·w, C): first half y, second half x.

    Source: SPEC ovseg 3.4 and 17.3 (positions count from 1 and are scaled to 2π).
    """
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=device)
    frequency = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / half)
    y = _encode_axis(height, frequency)[:, None].expand(-1, width, -1)
    x = _encode_axis(width, frequency)[None].expand(height, -1, -1)
    return torch.cat([y, x], -1).flatten(0, 1)


def _encode_axis(length: int, frequency: Tensor) -> Tensor:
    position = torch.arange(1, length + 1, dtype=torch.float32, device=frequency.device)
    position = position / (position[-1] + 1e-6) * 2 * math.pi
    angle = position[:, None] / frequency  # (length, half)
    return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], -1).flatten(1)


def _input_projection(in_channels: int, hidden_dim: int) -> nn.Module:
    if in_channels == hidden_dim:
        return nn.Identity()
    conv = nn.Conv2d(in_channels, hidden_dim, 1)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
