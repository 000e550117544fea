"""Swin Transformer, the backbone of OVSeg's larger model.

Windows of `window` x `window` tokens attend within themselves; every second block shifts the
windows by half their side, so that neighbours meet. Four stages at strides 4, 8, 16 and 32.

Source: Liu et al., "Swin Transformer" (ICCV 2021), sections 3.1 and 3.2; SPEC ovseg 3.1 and 17.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.config import SwinConfig

_OTHER_REGION = -100.0  # added to the logits of pairs that only the cyclic shift brought together


class SwinTransformer(nn.Module):
    """Swin backbone with one normalised output per stage.

    Source: SPEC ovseg 3.1.
    """

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.channels = config.channels
        self.patch_embed = SwinPatchEmbed(config.embed_dim)
        blocks = sum(config.depths)
        rates = [config.drop_path * i / max(blocks - 1, 1) for i in range(blocks)]
        last = len(config.depths) - 1
        self.layers = nn.ModuleList()
        for index, (depth, heads, dim) in enumerate(
            zip(config.depths, config.heads, self.channels, strict=True)
        ):
            start = sum(config.depths[:index])
            self.layers.append(
                SwinStage(
                    dim=dim,
                    heads=heads,
                    window=config.window,
                    drop_paths=rates[start : start + depth],
                    downsample=index < last,
                )
            )
            self.add_module(f"norm{index}", nn.LayerNorm(dim))
        self.apply(_initialize)

    def lower(self, dtype: torch.dtype) -> None:
        """Convert the weights of the linear layers, in place.

        Tokens are normalised, and summed from block to block, in fp32: rounded after each block,
        they would lose more than all products together.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the four feature maps, finest first.

        Args:
            images: normalised images (B, 3, H, W).

        Returns:
            `[res2, res3, res4, res5]`, each (B, C·2^i, ceil(H / 4 / 2^i), ceil(W / 4 / 2^i)).
        """
        x = self.patch_embed(images)  # (B, h, w, C)
        features = []
        for index, layer in enumerate(self.layers):
            x, downsampled = layer(x)
            normalized = self.get_submodule(f"norm{index}")(x)  # for the output only
            features.append(normalized.permute(0, 3, 1, 2).contiguous())
            x = downsampled
        return features


class SwinPatchEmbed(nn.Module):
    """Cut the image into 4 x 4 patches and embed each."""

    def __init__(self, dim: int, patch: int = 4) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, dim, patch, stride=patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed (B, 3, H, W) as (B, ceil(H/4), ceil(W/4), C)."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.patch, 0, -height % self.patch))
        x: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return x


class SwinStage(nn.Module):
    """Blocks at one resolution, then a 2 x 2 merge (except after the last stage)."""

    def __init__(
        self, *, dim: int, heads: int, window: int, drop_paths: Sequence[float], downsample: bool
    ) -> None:
        super().__init__()
        self.window = window
        self.shift = window // 2
        self.blocks = nn.ModuleList(
            SwinBlock(
                dim=dim,
                heads=heads,
                window=window,
                shift=self.shift if index % 2 else 0,
                drop_path=rate,
            )
            for index, rate in enumerate(drop_paths)
        )
        self.downsample = PatchMerging(dim) if downsample else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return this stage's tokens (B, h, w, C) and the merged (B, h/2, w/2, 2C) for the next."""
        mask = shift_mask(x.shape[1], x.shape[2], self.window, self.shift, x.device).to(x)
        for block in self.blocks:
            x = block(x, mask)
        return x, x if self.downsample is None else self.downsample(x)


class SwinBlock(nn.Module):
    """Window attention and MLP, each behind a LayerNorm and a residual."""

    def __init__(self, *, dim: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim=dim, heads=heads, window=window)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = SwinMLP(dim, 4 * dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (B, h, w, C) to the same shape; `mask` (windows, N, N) is used when shifted."""
        dtype = self.mlp.fc1.weight.dtype  # may be lower than that of the tokens
        x = x + self.drop_path(self._attend(self.norm1(x).to(dtype), mask))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x).to(dtype)))
        return out

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        # Padding comes after the norm: padded tokens are zero, and attended to where not shifted.
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        padded = x.shape[1:3]
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        windows = partition(x, self.window)  # (B·windows, N, C)
        windows = self.attn(windows, mask if self.shift else None)
        x = unpartition(windows, self.window, padded, batch)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a learned bias per relative position.

    Source: SPEC ovseg 17.2.
    """

    relative_position_index: Tensor

    def __init__(self, *, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within each of the (B·windows, N, C) windows; `mask` is (windows, N, N)."""
        total, n, dim = x.shape
        qkv = self.qkv(x).view(total, n, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B·windows, heads, N, d)
        bias = self.bias(n)  # (1, heads, N, N)
        if mask is not None:
            bias = bias + mask.unsqueeze(1)  # (windows, heads, N, N)
            if total > len(mask):  # several images
                bias = bias.repeat(total // len(mask), 1, 1, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(x.dtype))
        merged: Tensor = self.proj(out.transpose(1, 2).reshape(total, n, dim))
        return merged

    def bias(self, n: int) -> Tensor:
        """Return the relative position bias as (1, heads, N, N)."""
        table = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        return table.view(n, n, self.heads).permute(2, 0, 1).unsqueeze(0)


class PatchMerging(nn.Module):
    """Concatenate 2 x 2 neighbours and project 4C to 2C."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, h, w, C) to (B, ceil(h/2), ceil(w/2), 2C)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
        normalized = self.norm(torch.cat(corners, -1)).to(self.reduction.weight.dtype)
        merged: Tensor = self.reduction(normalized).to(x.dtype)
        return merged


class SwinMLP(nn.Module):
    """Two linears with an exact GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to the same shape."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class DropPath(nn.Module):
    """Drop a residual branch for whole samples while training (stochastic depth)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Zero the branch of each sample with probability `rate`; scale the others up."""
        if not self.training or self.rate == 0:
            return x
        kept = 1 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * x.new_empty(shape).bernoulli_(kept).div_(kept)


def partition(x: Tensor, window: int) -> Tensor:
    """Cut (B, H, W, C) into windows (B·windows, window², C)."""
    batch, height, width, dim = x.shape
    x = x.view(batch, height // window, window, width // window, window, dim)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, dim)


def unpartition(windows: Tensor, window: int, size: Sequence[int], batch: int) -> Tensor:
    """Put windows (B·windows, window², C) back together as (B, H, W, C)."""
    height, width = size
    x = windows.view(batch, height // window, width // window, window, window, -1)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, -1)


def relative_position_index(window: int) -> Tensor:
    """Return, for each pair of tokens in a window, its row of the bias table (N, N)."""
    y, x = np.indices((window, window)).reshape(2, -1)  # each (N,)
    dy, dx = (axis[:, None] - axis + window - 1 for axis in (y, x))
    return torch.as_tensor(dy * (2 * window - 1) + dx)


def shift_mask(
    height: int, width: int, window: int, shift: int, device: torch.device | None = None
) -> Tensor:
    """Return the additive mask that keeps a shifted window's regions apart.

    Args:
        height: height of the token map before padding.
        width: width of the token map before padding.
        window: side of a window.
        shift: number of tokens by which the map is rolled.
        device: device of the result; None for the CPU.

    Returns:
        (windows, N, N) of 0 and -100, windows in row order over the padded map.
    """
    rows = _region_ids(height + -height % window, window, shift, device)
    columns = _region_ids(width + -width % window, window, shift, device)
    ids = partition((3 * rows[:, None] + columns)[None, :, :, None], window).squeeze(-1)
    different = ids[:, :, None] != ids[:, None, :]  # (windows, N, N)
    return different.float() * _OTHER_REGION


def _region_ids(length: int, window: int, shift: int, device: torch.device | None) -> Tensor:
    """Return 0, 1 or 2 per position: untouched, last window's kept part, wrapped part."""
    position = torch.arange(length, device=device)
    return (position >= length - window).long() + (position >= length - shift).long()


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
