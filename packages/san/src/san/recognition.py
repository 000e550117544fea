"""The recognition half of SAN: CLIP's last blocks, with one more class token for each mask.

Source: SAN paper section 3.2 ("mask recognition with attention bias"); SPEC san 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from openvocab.clip.model import Attention, Block, VisionTransformer


def recognize(
    visual: VisionTransformer,
    blocks: Sequence[Block],
    tokens: Tensor,
    grid: tuple[int, int],
    biases: Sequence[Tensor],
    num_queries: int,
    pool: Callable[[Tensor, tuple[int, int]], Tensor] | None = None,
) -> Tensor:
    """Give every query an embedding in CLIP's joint space.

    Each query gets a copy of the class token, a [SLS] token. It attends to the patches, with its
    bias added, and to itself; nothing attends to it. So patches and class token go through the
    blocks as in plain CLIP, and the (Q + 1 + h * w)^2 mask of the original is never built.

    Args:
        visual: CLIP's image tower, for its output normalisation and projection.
        blocks: the N - S deep blocks.
        tokens: (B, 1 + h * w, D) behind block S, class token first.
        grid: (h, w).
        biases: one for all blocks or one for each, (B, heads, Q, hs, ws).
        num_queries: Q.
        pool: stands in for `pool_bias` where a graph for all sizes is made.

    Returns:
        Mask embeddings (B, Q, E) of unit length.
    """
    pooled = [(pool or pool_bias)(bias, grid) for bias in biases]  # (B, heads, Q, h * w)
    x = torch.cat([tokens[:, :1].expand(-1, num_queries, -1), tokens], dim=1)
    for index, block in enumerate(blocks):
        bias = pooled[index if len(pooled) > 1 else 0].to(x.dtype)
        x = _block(block, x, bias, num_queries, last=index == len(blocks) - 1)
    return F.normalize(visual.project(x[:, :num_queries]), dim=-1)


def pool_bias(bias: Tensor, grid: tuple[int, int]) -> Tensor:
    """Max-pool a bias (B, heads, Q, hs, ws) to CLIP's grid: (B, heads, Q, h * w)."""
    pooled = F.adaptive_max_pool2d(bias.flatten(0, 1), grid)  # (B * heads, Q, h, w)
    return torch.unflatten(pooled, 0, tuple(bias.shape[:2])).flatten(3)


def _block(block: Block, x: Tensor, bias: Tensor, num_queries: int, *, last: bool) -> Tensor:
    """Run a CLIP block on [Q x SLS; CLS; patches]; in the last one only SLS tokens are needed."""
    normed = block.ln_1(x)
    rows = num_queries if last else x.shape[1]
    attended = _attend(block.attn, normed, bias, num_queries, last=last)
    return block.feed_forward(x[:, :rows] + attended)


def _attend(
    attn: Attention, normed: Tensor, bias: Tensor, num_queries: int, *, last: bool
) -> Tensor:
    """Attention of SLS tokens (biased) and, unless `last`, of class token and patches (plain)."""
    q, k, v = attn.qkv(normed)  # (B, heads, Q + 1 + h * w, d)
    clip = slice(num_queries, None)
    masks = _attend_to_patches_and_self(
        q[:, :, :num_queries], k[:, :, :num_queries], v[:, :, :num_queries],
        k[:, :, num_queries + 1 :], v[:, :, num_queries + 1 :], bias,
    )  # fmt: skip
    if last:
        return attn.merge(masks)
    plain = F.scaled_dot_product_attention(q[:, :, clip], k[:, :, clip], v[:, :, clip])
    return attn.merge(torch.cat([masks, plain], dim=2))


def _attend_to_patches_and_self(
    q: Tensor, k_self: Tensor, v_self: Tensor, k_patch: Tensor, v_patch: Tensor, bias: Tensor
) -> Tensor:
    """Softmax over patches (with bias) and the token itself (without): (B, heads, Q, d)."""
    q = q * q.shape[-1] ** -0.5
    to_patches = q @ k_patch.transpose(-2, -1) + bias  # (B, heads, Q, h * w)
    to_self = (q * k_self).sum(-1, keepdim=True)  # (B, heads, Q, 1)
    weights = torch.cat([to_patches, to_self], dim=-1).softmax(dim=-1)
    return weights[..., :-1] @ v_patch + weights[..., -1:] * v_self
