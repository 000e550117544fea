"""The side adapter: a small ViT on the image and CLIP's features, and a decoder of masks.

Source: SAN paper section 3.2; SPEC san 4.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openvocab.clip.model import normal_parameter, resize_patch_positions
from san.config import SANConfig

Grid = tuple[int, int]


class SideAttention(nn.Module):
    """Self-attention of the side ViT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        qkv = torch.unflatten(self.qkv(x), -1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, d)
        out = F.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return projected


class SideMLP(nn.Module):
    """Feed-forward half of a side block, with the exact GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class SideBlock(nn.Module):
    """A pre-norm residual block of the side ViT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SideAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = SideMLP(width)

    def forward(self, x: Tensor) -> Tensor:
        """Update (B, T, D) tokens."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchEmbed(nn.Module):
    """The convolution that makes patch tokens."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)


class SideViT(nn.Module):
    """The side ViT: blocks, patches and their positions; `SideAdapter` adds the queries."""

    def __init__(self, width: int, depth: int, heads: int, patch: int, image_size: int) -> None:
        super().__init__()
        self.grid_size = image_size // patch
        self.patch_embed = PatchEmbed(width, patch)
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid_size**2, width))
        self.blocks = nn.ModuleList(SideBlock(width, heads) for _ in range(depth))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for block in self.blocks:
            for part in block.modules():
                if isinstance(part, nn.Linear):
                    nn.init.trunc_normal_(part.weight, std=0.02)
                    nn.init.zeros_(part.bias)

    def positions(self, grid: Grid) -> Tensor:
        """Return positions (1, h * w, D) for a grid.

        As in the original, a grid of another shape with the same number of cells gets the stored
        table in raster order, without resizing.
        """
        if grid[0] * grid[1] == self.pos_embed.shape[1]:
            return self.pos_embed
        native = (self.grid_size, self.grid_size)
        return resize_patch_positions(self.pos_embed[0], native, grid)[None]


class FusionLayer(nn.Module):
    """Brings CLIP's features to the width and the grid of the side ViT."""

    def __init__(self, clip_width: int, width: int) -> None:
        super().__init__()
        norm, conv = nn.LayerNorm(clip_width, eps=1e-6), nn.Conv2d(clip_width, width, 1)
        nn.init.kaiming_uniform_(conv.weight, a=1)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.input_proj = nn.Sequential(norm, conv)

    def forward(self, features: Tensor, clip_grid: Grid, grid: Grid) -> Tensor:
        """Map CLIP patch tokens (B, h * w, C) to side patch tokens (B, hs * ws, D)."""
        norm, conv = self.input_proj
        x = pointwise(conv, norm(features))  # (B, h * w, D)
        x = torch.unflatten(x.transpose(1, 2), 2, clip_grid)  # (B, D, h, w)
        x = F.interpolate(x, size=grid, mode="bilinear", align_corners=False)
        return x.flatten(2).transpose(1, 2)


class Perceptron(nn.Module):
    """Linear layers, or 1x1 convolutions, with ReLU between them, on (..., C) tokens."""

    def __init__(self, sizes: list[int], *, convolutional: bool) -> None:
        super().__init__()
        pairs = itertools.pairwise(sizes)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 1) if convolutional else nn.Linear(a, b) for a, b in pairs
        )

    def forward(self, x: Tensor, *, last: bool = True) -> Tensor:
        """Apply all layers, or with `last=False` all but the last one."""
        hidden, final = list(self.layers[:-1]), self.layers[-1]
        for layer in hidden:
            x = F.relu(pointwise(layer, x))
        return pointwise(final, x) if last else x


class MaskDecoder(nn.Module):
    """Decodes queries and patches into mask logits and attention biases.

    Source: SAN paper section 3.2 ("mask prediction", "attention bias prediction").
    """

    def __init__(self, config: SANConfig) -> None:
        super().__init__()
        embed = config.embed_channels
        hidden = [config.side_width] + [config.mlp_channels] * (config.mlp_layers - 1)
        self.layers, self.heads = config.bias_layers, config.bias_heads
        self.query_mlp = Perceptron([*hidden, embed], convolutional=False)
        self.pix_mlp = Perceptron([*hidden, embed], convolutional=True)
        self.attn_mlp = Perceptron([*hidden, embed * self.heads * self.layers], convolutional=True)
        self.bias_scaling = nn.Linear(1, 1) if config.rescale_bias else None

    def forward(self, query: Tensor, patches: Tensor, grid: Grid) -> tuple[Tensor, list[Tensor]]:
        """Decode.

        Args:
            query: (B, Q, D).
            patches: (B, hs * ws, D).
            grid: (hs, ws).

        Returns:
            Mask logits (B, Q, hs, ws), and for each layer its bias (B, heads, Q, hs, ws).
        """
        query = self.query_mlp(query)  # (B, Q, E)
        mask_logits = query @ self.pix_mlp(patches).transpose(1, 2)  # (B, Q, L)
        bias = self._attention_bias(query, patches)  # (B, layers, heads, Q, L)
        biases = torch.unflatten(bias, -1, grid).unbind(1)
        return torch.unflatten(mask_logits, -1, grid), list(biases)

    def _attention_bias(self, query: Tensor, patches: Tensor) -> Tensor:
        """Return biases (B, layers, heads, Q, L).

        q . (W x + b) is computed as (q W) . x + q . b: the same product, without the features of
        every head at every position. The learned scale and offset act on q W and q . b, which are
        smaller than the biases.
        """
        hidden = self.attn_mlp(patches, last=False)  # (B, L, M)
        weight, offset = weight_and_bias(self.attn_mlp.layers[-1])
        split = (self.layers * self.heads, -1)
        weight = torch.unflatten(weight, 0, split)  # (N, E, M)
        offset = torch.unflatten(offset, 0, split)  # (N, E)
        projected = torch.einsum("bqe,nem->bnqm", query, weight)
        shift = torch.einsum("bqe,ne->bnq", query, offset)
        if self.bias_scaling is not None:
            scale = self.bias_scaling.weight.view(())
            projected, shift = projected * scale, shift * scale + self.bias_scaling.bias
        rows = projected.flatten(1, 2)  # (B, N * Q, M)
        bias = torch.baddbmm(shift.flatten(1)[..., None], rows, hidden.transpose(1, 2))
        return torch.unflatten(bias, 1, (self.layers, self.heads, query.shape[1]))


class SideAdapter(nn.Module):
    """The side ViT with queries and patches, into which CLIP's shallow features are fused."""

    def __init__(self, config: SANConfig) -> None:
        super().__init__()
        width, queries = config.side_width, config.num_queries
        self.supervised = config.supervised
        self.query_embed = normal_parameter(1, queries, width, std=0.02)
        self.query_pos_embed = normal_parameter(1, queries, width, std=0.02)
        self.vit_model = SideViT(
            width, config.side_depth, config.side_heads, config.side_patch, config.side_image_size
        )
        self.sources = {side: clip for clip, side in config.fusion}
        self.fusion_layers = nn.ModuleDict(
            {f"layer_{side}": FusionLayer(config.clip.vision.width, width) for side in self.sources}
        )
        self.mask_decoder = MaskDecoder(config)

    def forward(
        self, images: Tensor, features: dict[int, Tensor], clip_grid: Grid, *, all_layers: bool
    ) -> list[tuple[Tensor, list[Tensor]]]:
        """Predict masks and attention biases.

        Args:
            images: normalised (B, 3, H, W).
            features: CLIP patch tokens (B, h * w, C) behind the fused blocks, by block.
            clip_grid: (h, w).
            all_layers: decode every supervised block, not only the last.

        Returns:
            For each decoded block, in order, what `MaskDecoder` returns.
        """
        return [
            self.mask_decoder(query, patches, grid)
            for query, patches, grid in self.encode(
                images, features, clip_grid, all_layers=all_layers
            )
        ]

    def encode(
        self, images: Tensor, features: dict[int, Tensor], clip_grid: Grid, *, all_layers: bool
    ) -> list[tuple[Tensor, Tensor, Grid]]:
        """Return queries (B, Q, D), patches (B, hs * ws, D) and (hs, ws) behind decoded blocks."""
        images = images.to(self.query_embed.dtype)
        patches = self.vit_model.patch_embed.proj(images)  # (B, D, hs, ws)
        grid = (patches.shape[2], patches.shape[3])
        position = torch.cat([self.query_pos_embed, self.vit_model.positions(grid)], dim=1)
        queries = self.query_embed.expand(len(images), -1, -1)
        x = torch.cat([queries, patches.flatten(2).transpose(1, 2)], dim=1) + position
        x = self._fuse(x, 0, features, clip_grid, grid)
        decoded = []
        last = max(self.supervised)
        for index, block in enumerate(self.vit_model.blocks[:last], start=1):
            x = self._fuse(block(x), index, features, clip_grid, grid)
            if index in self.supervised and (all_layers or index == last):
                split = self.query_embed.shape[1]
                decoded.append((x[:, :split], x[:, split:], grid))
            if index < last:
                x = x + position
        return decoded

    def _fuse(
        self, x: Tensor, index: int, features: dict[int, Tensor], clip_grid: Grid, grid: Grid
    ) -> Tensor:
        """Add the CLIP features that belong to side block `index` to the patch tokens."""
        if index not in self.sources:
            return x
        fused = self.fusion_layers[f"layer_{index}"](features[self.sources[index]], clip_grid, grid)
        split = x.shape[1] - math.prod(grid)
        return torch.cat([x[:, :split], x[:, split:] + fused], dim=1)


def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer or a 1x1 convolution to (..., C) tokens."""
    return F.linear(x, *weight_and_bias(layer))


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight (D, C) and bias (D,) of a linear layer or a 1x1 convolution."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    return weight.flatten(1), bias
