"""SAN in the plain formulation: same weights, same result, computed step by step as it is written.

What SAN's speed is compared with. Attention builds all its scores and applies a softmax; the mask
tokens join all others under one mask of scores; the decoder makes the features of every head at
every position; the activation takes three steps; and labels are the best of all names' scores.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openvocab.clip import CLIP
from openvocab.clip.model import MLP, Attention
from san.config import SANConfig
from san.model import SAN, SANPrediction
from san.recognition import pool_bias
from san.side_adapter import MaskDecoder, SideAttention


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return softmax(q k / sqrt(d) + bias) v of (B, heads, T, d) queries, keys and values."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, heads, T, T)
    if bias is not None:
        scores = scores + bias
    out: Tensor = scores.softmax(dim=-1) @ v
    return out


class PlainAttention(Attention):
    """CLIP's self-attention with all its scores in memory."""

    def forward(
        self,
        query: Tensor,
        key_value: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """See `Attention`; texts and single class tokens are computed as there."""
        if key_value is not None or causal:
            return super().forward(query, key_value, bias=bias, causal=causal)
        return self.merge(attend(*self.qkv(query), bias))


class PlainMLP(MLP):
    """CLIP's feed-forward network with its activation as a step of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """See `MLP`."""
        out: Tensor = self.c_proj(self.gelu(self.c_fc(x)))
        return out


class PlainSideAttention(SideAttention):
    """The side adapter's self-attention with all its scores in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """See `SideAttention`."""
        qkv = torch.unflatten(self.qkv(x), -1, (3, self.heads, -1))
        out = attend(*qkv.permute(2, 0, 3, 1, 4))
        projected: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return projected


class PlainMaskDecoder(MaskDecoder):
    """The decoder with the features of every head at every position."""

    def _attention_bias(self, query: Tensor, patches: Tensor) -> Tensor:
        split = (self.layers, self.heads, -1)
        features = torch.unflatten(self.attn_mlp(patches), -1, split)  # (B, L, layers, heads, E)
        bias = torch.einsum("bqe,blnhe->bnhql", query, features)
        return bias if self.bias_scaling is None else self.bias_scaling(bias[..., None])[..., 0]


_PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    Attention: PlainAttention,
    MLP: PlainMLP,
    SideAttention: PlainSideAttention,
    MaskDecoder: PlainMaskDecoder,
}


class PlainSAN(SAN):
    """SAN whose parts are all computed in the plain way."""

    def __init__(self, config: SANConfig, clip: CLIP | None = None) -> None:
        super().__init__(config, clip)
        for module in self.modules():
            module.__class__ = _PLAIN.get(type(module), type(module))

    def forward(
        self, images: Tensor, class_embeddings: Tensor, *, all_layers: bool = False
    ) -> list[SANPrediction]:
        """See `SAN`."""
        shallow, tokens, grid = self.clip_features(images)
        proposals = self.side_adapter(images, shallow, grid, all_layers=all_layers)
        predictions = []
        for mask_logits, biases in proposals:
            pooled = [pool_bias(bias, grid) for bias in biases]
            embeddings = self._recognize(tokens, pooled)  # (B, Q, E)
            logits = embeddings.float() @ class_embeddings.T
            predictions.append(SANPrediction(logits, mask_logits.float()))
        return predictions

    def _recognize(self, tokens: Tensor, biases: list[Tensor]) -> Tensor:
        """Run the deep blocks on [Q x SLS; CLS; patches], with one mask of all scores."""
        queries = self.config.num_queries
        x = torch.cat([tokens[:, :1].expand(-1, queries, -1), tokens], dim=1)
        masks = [self._mask(bias, x.shape[1]) for bias in biases]
        for index, block in enumerate(self.deep_blocks):
            x = block(x, masks[index if len(masks) > 1 else 0])
        return F.normalize(self.clip.visual.project(x[:, :queries]), dim=-1)

    def _mask(self, bias: Tensor, tokens: int) -> Tensor:
        """Return (B, heads, T, T): only patches, with the bias, and itself are seen by a query."""
        queries = bias.shape[2]
        hidden = bias.new_full((*bias.shape[:2], tokens, queries + 1), float("-inf"))
        itself = torch.arange(queries, device=bias.device)
        hidden[:, :, itself, itself] = 0
        hidden[:, :, queries:, queries] = 0
        others = bias.new_zeros(*bias.shape[:2], tokens - queries, bias.shape[3])
        return torch.cat([hidden, torch.cat([bias, others], dim=2)], dim=-1)
