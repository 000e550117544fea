"""SAN: a side adapter predicts masks, and attention biases with which CLIP classifies them.

    image ──► side ViT ◄── shallow CLIP features
                 │
                 ├─► mask logits ───────────────────────────┐
                 └─► attention bias ─► deep CLIP blocks ─► class logits ─► scores

Source: Xu et al., "Side Adapter Network for Open-Vocabulary Semantic Segmentation", CVPR 2023,
section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openvocab.clip import CLIP, PIXEL_MEAN, PIXEL_STD
from openvocab.clip.model import Block, normal_parameter
from openvocab.computation import to_device
from san.config import SANConfig
from san.recognition import recognize
from san.side_adapter import SideAdapter


@dataclass(frozen=True)
class SANPrediction:
    """The prediction of one side block.

    Attributes:
        class_logits: Class logits (B, Q, K + 1). The last column is "no object".
        mask_logits: Mask logits (B, Q, hs, ws) on the grid of the side adapter, in which a cell
            stands for 16 x 16 pixels.
    """

    class_logits: Tensor
    mask_logits: Tensor


class SAN(nn.Module):
    """The network, which maps normalized images and class embeddings to mask and class logits."""

    def __init__(self, config: SANConfig, clip: CLIP | None = None) -> None:
        """Build with random weights, or around a given CLIP.

        Args:
            config: Architecture of the network.
            clip: CLIP model that the network uses without copying it. None for a new one with
                random weights.
        """
        super().__init__()
        self.config = config
        self.clip = clip or CLIP(config.clip)
        self.side_adapter = SideAdapter(config)
        # As in the original its size is the text tower's width, which equals the joint space's in
        # the published models; the joint space is what it lives in.
        width = config.clip.embed_dim
        self.bg_embed = normal_parameter(1, width, std=width**-0.5)
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Fill the buffers that no checkpoint holds: CLIP's pixel statistics, (3, 1, 1)."""
        for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
            value = 255 * torch.tensor(values, device="cpu")[:, None, None]
            self.register_buffer(name, value, persistent=False)

    def forward(
        self, images: Tensor, class_embeddings: Tensor, *, all_layers: bool = False
    ) -> list[SANPrediction]:
        """Predict masks and their classes.

        Args:
            images: Normalized and padded images (B, 3, H, W), see `preprocess`.
            class_embeddings: Class embeddings (K + 1, E), see `classifier`.
            all_layers: Whether to return the auxiliary predictions of earlier side blocks as well.

        Returns:
            One prediction for each of these side blocks, in order. The last one is the result.
        """
        shallow, tokens, clip_grid = self.clip_features(images)
        proposals = self.side_adapter(images, shallow, clip_grid, all_layers=all_layers)
        predictions = []
        for mask_logits, biases in proposals:
            mask_embeddings = recognize(
                self.clip.visual,
                self.deep_blocks,
                tokens,
                clip_grid,
                biases,
                self.config.num_queries,
            )  # (B, Q, E)
            class_logits = mask_embeddings.float() @ class_embeddings.T
            predictions.append(SANPrediction(class_logits, mask_logits.float()))
        return predictions

    def clip_features(self, images: Tensor) -> tuple[dict[int, Tensor], Tensor, tuple[int, int]]:
        """Run the shallow CLIP blocks on a smaller copy of (B, 3, H, W) images.

        Returns:
            Patch tokens (B, h * w, D) after each block that is fused into the side adapter, by the
            number of the block, where 0 stands for the input of the first block; all tokens
            (B, 1 + h * w, D) after the last shallow block; and the grid (h, w).
        """
        visual = self.clip.visual
        fused = {clip for clip, _ in self.config.fusion}
        x, grid = visual.embed(self.clip_input(images).to(visual.proj.dtype))
        features = {0: x[:, 1:]} if 0 in fused else {}
        for index, block in enumerate(visual.blocks[: self.config.split], start=1):
            x = block(x)
            if index in fused:
                features[index] = x[:, 1:]
        return features, x, grid

    def clip_input(self, images: Tensor) -> Tensor:
        """Shrink images (B, 3, H, W) to CLIP's resolution, (B, 3, floor(r H), floor(r W)).

        The factor itself, not the ratio of the sizes, sets the sampling positions (SPEC san 2.4).
        """
        if not self.config.asymmetric_input:
            return images
        ratio = self.config.clip_resolution
        return F.interpolate(images, scale_factor=ratio, mode="bilinear", align_corners=False)

    @property
    def deep_blocks(self) -> list[Block]:
        """CLIP's blocks after the split, which classify the masks."""
        return self.clip.visual.blocks[self.config.split :]

    def classifier(self, text_embeddings: Tensor) -> Tensor:
        """Turn unit-length text embeddings (K, E) of the names into class embeddings (K + 1, E).

        The last row is the learned "no object". All rows are multiplied by CLIP's logit scale.
        """
        weights = torch.cat([text_embeddings.to(self.bg_embed), self.bg_embed])
        scaled: Tensor = self.clip.logit_scale.exp() * F.normalize(weights, dim=-1)
        return scaled.float()

    def preprocess(self, images: Sequence[Tensor]) -> Tensor:
        """Normalize images and pad them to one size.

        Args:
            images: RGB images (3, h, w) with values 0..255, uint8 or float, of any sizes.

        Returns:
            Images (B, 3, H, W), padded with zeros on the right and at the bottom, where H and W
            are multiples of `size_divisibility`. Padding takes part in attention, as in the
            original code.
        """
        unit = self.config.size_divisibility
        sides = [max(image.shape[axis] for image in images) for axis in (1, 2)]
        height, width = (math.ceil(side / unit) * unit for side in sides)
        device = self.pixel_mean.device
        batch = torch.zeros(len(images), 3, height, width, device=device)
        for target, image in zip(batch, images, strict=True):
            h, w = image.shape[1:]
            pixels = to_device(image, device).float()
            target[:, :h, :w] = (pixels - self.pixel_mean) / self.pixel_std
        return batch

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return the side adapter, "no object" and CLIP's position embeddings (SPEC san 8)."""
        trained = ("side_adapter.", "bg_embed", "clip.visual.positional_embedding")
        return {name: p for name, p in self.named_parameters() if name.startswith(trained)}
