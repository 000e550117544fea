"""Dense CLIP without training: three changes of the last attention of CLIP's image tower.

CLIP is trained for one vector for each image, so the attention of its last block gathers what is
everywhere. Three papers replace it, and compare every patch with the names' embeddings:

* MaskCLIP: Zhou, Loy, Dai, "Extract Free Dense Labels from CLIP", ECCV 2022.
* SCLIP: Wang, Mei, Yuille, "SCLIP: Rethinking Self-Attention for Dense Vision-Language Inference",
  ECCV 2024.
* NACLIP: Hajimiri, Ben Ayed, Dolz, "Pay Attention to Your Neighbours: Training-Free Open-Vocabulary
  Semantic Segmentation", WACV 2025.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from openvocab.clip.model import Attention, VisionTransformer

Variant = Literal["maskclip", "sclip", "naclip"]


def gaussian(grid: tuple[int, int], sigma: float) -> Tensor:
    """Return the Gaussian of the distance between any two patches: (h * w, h * w), 1 on itself.

    Source: NACLIP section 3, the unnormalized kernel exp(-||x - mu||^2 / (2 sigma^2)).
    """
    rows, columns = torch.meshgrid(*(torch.arange(float(n)) for n in grid), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1)  # (h * w, 2)
    squared = (places[:, None] - places).square().sum(dim=-1)
    return torch.exp(-squared / (2 * sigma**2))


def value_path(attention: Attention, x: Tensor) -> Tensor:
    """MaskCLIP: every token (B, T, D) keeps its own value, through the output projection.

    Source: MaskCLIP section 3.2: queries and keys are dropped, the value projection and the output
    projection stay, as two 1 x 1 convolutions.
    """
    return attention.merge(attention.qkv(x)[2])


def correlative_attention(attention: Attention, x: Tensor) -> Tensor:
    """SCLIP: tokens (B, T, D) attend to tokens with similar queries, and to similar keys.

    Source: SCLIP section 3.2, softmax(q q^T / sqrt(d)) + softmax(k k^T / sqrt(d)), whose rows sum
    to 2.
    """
    q, k, v = attention.qkv(x)
    scale = q.shape[-1] ** -0.5
    weights = [(y @ y.transpose(-2, -1) * scale).softmax(dim=-1) for y in (q, k)]
    return attention.merge((weights[0] + weights[1]) @ v)


def neighborhood_attention(attention: Attention, x: Tensor, bias: Tensor) -> Tensor:
    """NACLIP: patches (B, h * w, D) attend to similar keys and, by `bias`, to their neighbors.

    Source: NACLIP section 3, softmax(k k^T / sqrt(d) + Gaussian).
    """
    _, k, v = attention.qkv(x)
    scores = k @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
    return attention.merge((scores + bias.to(scores)).softmax(dim=-1) @ v)


def dense_features(
    visual: VisionTransformer, pixels: Tensor, variant: Variant, sigma: float = 5.0
) -> Tensor:
    """Return a unit vector (B, h * w, E) for each patch of normalized images (B, 3, H, W).

    Args:
        visual: CLIP's image tower; position embeddings are resized bicubically to the grid.
        pixels: images whose sides are multiples of the patch.
        variant: attention that replaces that of the last block.
        sigma: NACLIP's standard deviation of the Gaussian, in patches.

    What the papers leave open for a vision transformer, and what is chosen here:

    * MaskCLIP is written for attention pooling, behind which there is nothing. So nothing of the
      block is behind it here either: no residual connection, no MLP.
    * SCLIP changes the attention only, so residual connection and MLP stay, and the class token
      remains one of the tokens.
    * NACLIP drops residual connection and MLP, and its sums run over patches; where the class
      token would lie is not said, so it is left out of the last attention.
    """
    x, grid = visual.embed(pixels)
    *trunk, last = visual.blocks
    for block in trunk:
        x = block(x)
    if variant == "sclip":
        x = last.feed_forward(x + correlative_attention(last.attn, last.ln_1(x)))[:, 1:]
    elif variant == "naclip":
        bias = gaussian(grid, sigma)
        x = neighborhood_attention(last.attn, last.ln_1(x[:, 1:]), bias)
    else:
        x = value_path(last.attn, last.ln_1(x[:, 1:]))
    return F.normalize(visual.project(x).float(), dim=-1)
