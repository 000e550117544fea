"""The pixel decoder: a feature pyramid that ends in per-pixel mask features at stride 4.

Source: Cheng et al., "MaskFormer" (NeurIPS 2021), section 3.3; SPEC ovseg 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

_GROUPS = 32


class PixelDecoder(nn.Module):
    """Top-down pyramid: `layer_4` on res5, then res4, res3, res2 are added one by one.

    Source: SPEC ovseg 3.3.
    """

    def __init__(self, channels: Sequence[int], *, convs_dim: int, mask_dim: int) -> None:
        super().__init__()
        self.levels = len(channels)
        for index, incoming in enumerate(channels[:-1], start=1):  # res2, res3, res4
            self.add_module(f"adapter_{index}", GroupNormConv(incoming, convs_dim, 1, relu=False))
            self.add_module(f"layer_{index}", GroupNormConv(convs_dim, convs_dim, 3, relu=True))
        top = GroupNormConv(channels[-1], convs_dim, 3, relu=True)
        self.add_module(f"layer_{self.levels}", top)
        self.mask_features = nn.Conv2d(convs_dim, mask_dim, 3, padding=1)
        _xavier(self.mask_features)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Turn `[res2, ..., res5]`, each (B, C_i, h_i, w_i), into mask features (B, M, h, w)."""
        y: Tensor = self.get_submodule(f"layer_{self.levels}")(features[-1])
        for index in range(self.levels - 1, 0, -1):
            lateral = self.get_submodule(f"adapter_{index}")(features[index - 1])
            y = lateral + F.interpolate(y, size=lateral.shape[-2:], mode="nearest")
            y = self.get_submodule(f"layer_{index}")(y)
        out: Tensor = self.mask_features(y)
        return out


class GroupNormConv(nn.Conv2d):
    """A convolution without bias, GroupNorm as its child `norm`, and a ReLU if asked for."""

    def __init__(self, incoming: int, outgoing: int, kernel: int, *, relu: bool) -> None:
        super().__init__(incoming, outgoing, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(_GROUPS, outgoing)
        self.relu = relu
        _xavier(self)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise (B, C, H, W)."""
        x = self.norm(super().forward(x))
        return F.relu(x) if self.relu else x


def _xavier(conv: nn.Conv2d) -> None:
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
