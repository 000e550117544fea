"""ResNet-101c, the backbone of OVSeg's smaller model: a deep stem and a multi-grid last stage.

Source: He et al., "Deep Residual Learning" (CVPR 2016); Chen et al., "Rethinking Atrous
Convolution" (2017), section 3.2 for the multi-grid; SPEC ovseg 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.config import ResNetConfig


class ResNet(nn.Module):
    """ResNet with frozen batch norm and the 3 x 3 stem of DeepLab.

    Source: SPEC ovseg 3.2.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.channels = config.channels
        self.stem = Stem(2 * config.stem_channels, config.stem_channels)
        incoming = 2 * config.stem_channels
        for index, (blocks, outgoing) in enumerate(zip(config.depths, self.channels, strict=True)):
            last = index == len(config.depths) - 1
            dilations = config.res5_dilations if last else (1,) * blocks
            stage = _stage(incoming, outgoing, stride=1 if index == 0 else 2, dilations=dilations)
            self.add_module(f"res{index + 2}", stage)
            incoming = outgoing
        self._freeze(config.freeze_at)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the four feature maps, finest first.

        Args:
            images: normalised images (B, 3, H, W).

        Returns:
            `[res2, res3, res4, res5]` at strides 4, 8, 16, 32 with 256 to 2048 channels.
        """
        x = self.stem(images)  # (B, 128, H/4, W/4)
        features = []
        for name in ("res2", "res3", "res4", "res5"):
            x = self.get_submodule(name)(x)
            features.append(x)
        return features

    def _freeze(self, freeze_at: int) -> None:
        """Stop training the stem (1) and the stages up to `freeze_at` (2 is res2)."""
        frozen = ["stem"] * (freeze_at >= 1) + [f"res{i}" for i in range(2, freeze_at + 1)]
        for name in frozen:
            self.get_submodule(name).requires_grad_(False)


class Stem(nn.Module):
    """Three 3 x 3 convolutions and a max pool: stride 4."""

    def __init__(self, outgoing: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = FrozenNormConv(3, hidden, 3, stride=2)
        self.conv2 = FrozenNormConv(hidden, hidden, 3)
        self.conv3 = FrozenNormConv(hidden, outgoing, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, C, H/4, W/4)."""
        x = F.relu(self.conv1(images))
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))
        return F.max_pool2d(x, 3, stride=2, padding=1)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (with the stride and the dilation), 1 x 1, and a residual."""

    def __init__(self, incoming: int, outgoing: int, *, stride: int, dilation: int) -> None:
        super().__init__()
        hidden = outgoing // 4
        self.conv1 = FrozenNormConv(incoming, hidden, 1)
        self.conv2 = FrozenNormConv(hidden, hidden, 3, stride=stride, dilation=dilation)
        self.conv3 = FrozenNormConv(hidden, outgoing, 1)
        changes = incoming != outgoing
        self.shortcut = FrozenNormConv(incoming, outgoing, 1, stride=stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C', h / stride, w / stride)."""
        residual = x if self.shortcut is None else self.shortcut(x)
        y = F.relu(self.conv1(x))
        y = F.relu(self.conv2(y))
        return F.relu(self.conv3(y) + residual)


class FrozenNormConv(nn.Conv2d):
    """A convolution without bias whose frozen batch norm is its child `norm`."""

    def __init__(
        self, incoming: int, outgoing: int, kernel: int, *, stride: int = 1, dilation: int = 1
    ) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(incoming, outgoing, kernel, stride, padding, dilation=dilation, bias=False)
        self.norm = FrozenBatchNorm(outgoing)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise (B, C, H, W)."""
        normed: Tensor = self.norm(super().forward(x))
        return normed


class FrozenBatchNorm(nn.Module):
    """Batch norm with fixed statistics and affine parameters, all four of them buffers."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels) - eps)

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift (B, C, H, W) per channel."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def _stage(incoming: int, outgoing: int, *, stride: int, dilations: Sequence[int]) -> nn.Sequential:
    blocks = []
    for index, dilation in enumerate(dilations):
        blocks.append(
            Bottleneck(
                incoming if index == 0 else outgoing,
                outgoing,
                stride=stride if index == 0 else 1,
                dilation=dilation,
            )
        )
    return nn.Sequential(*blocks)
