"""The mask proposal generator, which finds where in an image CLIP sees a name.

Class activation maps from the last block, spread along CLIP's own attention.

Source: Lin et al. 2023 (CLIP-ES), section 3; CaR paper section 3.2; SPEC car 2 and 3.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from car.affinity import balance, box_mask, refine, salient_boxes
from car.mean_gradient import MeanFeature
from openvocab.clip.config import PIXEL_MEAN, PIXEL_STD
from openvocab.clip.model import CLIP, Block, VisionTransformer, resize_patch_positions
from openvocab.clip.prompts import TextEncoder
from openvocab.computation import to_device
from openvocab.image import ImageArray, resample_image

MULTIPLE = 16  # of the input's sides, whatever the patch size
LAST_MAPS = 8  # attention maps that are averaged
EPSILON = 1e-15
# Attention weights stay below this many numbers.
BUDGET = 1 << 26


@dataclass(frozen=True)
class ImageFeatures:
    """The features of an image for all steps; T = 1 + n tokens on a grid (h, w), n = h * w.

    Attributes:
        size: (H, W) of the image.
        grid: (h, w).
        feature: the mean feature of the patches, with what the last block was given: `tokens`
            (1, T, D), and `activation` (1, T, D) behind its first layer norm.
        affinity: balanced mean attention between patches (n, n).
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    feature: MeanFeature
    affinity: Tensor


class MaskProposals(Sequence[NDArray[np.float32]]):
    """K soft masks (H, W), each of which is enlarged only when it is needed.

    At full size they would take more memory than anything else in CaR, and no step needs all of
    them at once.

    Args:
        coarse: (K, h, w) float32 in 0..1.
        size: (H, W).
    """

    def __init__(self, coarse: NDArray[np.float32], size: tuple[int, int]) -> None:
        self.coarse, self.size = coarse, size

    def __len__(self) -> int:
        return len(self.coarse)

    @overload
    def __getitem__(self, place: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, place: slice) -> MaskProposals: ...
    def __getitem__(self, place: int | slice) -> NDArray[np.float32] | MaskProposals:
        if isinstance(place, slice):
            return MaskProposals(self.coarse[place], self.size)
        height, width = self.size
        coarse = self.coarse[place]
        return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR))

    def keep(self, places: Sequence[int]) -> MaskProposals:
        """Return the masks at some places."""
        return MaskProposals(self.coarse[list(places)], self.size)

    def any(self) -> bool:
        """Return whether any pixel of any mask is above 0."""
        return any(mask.any() for mask in self)


@dataclass(frozen=True)
class SaliencyMaps:
    """The intermediate maps of K names, on the way to mask proposals.

    Attributes:
        activation: class activation (K, h, w) in 0..1.
        foreground_only: (K,) bool, which had to be computed without the background names.
        refined: the maps (K, h, w) after spreading by attention, unscaled.
        proposals: K masks (H, W) in 0..1.
    """

    activation: Tensor
    foreground_only: NDArray[np.bool_]
    refined: Tensor
    proposals: MaskProposals


class MaskProposalGenerator:
    """A CLIP whose last block is differentiated to find where it sees each name.

    The last block and all that follows it always run in fp32, where gradients do not underflow.

    Args:
        clip: any CLIP; the image tower may be in lower precision.
        text: encodes names with the same CLIP; None for one with the user's cache.
    """

    def __init__(self, clip: CLIP, text: TextEncoder | None = None) -> None:
        self.clip, self.visual = clip, clip.visual
        self.text = TextEncoder(clip) if text is None else text
        self.scale = float(clip.logit_scale.float().exp())
        *self.trunk, last = clip.visual.blocks
        self.last: Block = last
        self.ln_post = clip.visual.ln_post
        self.proj: Tensor = clip.visual.proj
        if self.proj.dtype != torch.float32:
            self.last = copy.deepcopy(last).float()
            self.ln_post, self.proj = copy.deepcopy(self.ln_post).float(), self.proj.float()

    @torch.no_grad()
    def encode(self, image: ImageArray) -> ImageFeatures:
        """Run all blocks but the last one once on an image (H, W, 3) RGB."""
        weight = self.visual.conv1.weight
        pixels = to_device(prepare(image), weight.device).to(weight.dtype)
        patches, grid = self.visual.patchify(pixels)
        tokens = self.visual.add_positions(patches, grid, rounded_positions(self.visual, grid))
        first_map = len(self.trunk) - (LAST_MAPS - 1)
        total: Tensor | float = 0.0
        for index, block in enumerate(self.trunk):
            if index < first_map:
                tokens = block(tokens)
            else:
                tokens, attention = _with_mean_attention(block, tokens)
                total = total + attention
        feature = self.mean_feature(tokens.float())
        total = total + _mean_attention(*feature.qkv[:2])
        affinity = balance(total / min(LAST_MAPS, len(self.trunk) + 1))
        return ImageFeatures(image.shape[:2], grid, feature, affinity)

    def mean_feature(self, tokens: Tensor) -> MeanFeature:
        """Run the last block and all that follows it on (1, T, D) tokens."""
        return MeanFeature(self.last, self.ln_post, tokens, self.last.ln_1(tokens))

    def propose(
        self,
        image: ImageFeatures,
        names: Tensor,
        background: Tensor,
        threshold: float,
        *,
        together: bool = True,
        faithful: bool = False,
    ) -> SaliencyMaps:
        """Compute the mask proposals of K names.

        Args:
            image: the encoded image, as `encode` returns it.
            names: unit text embeddings (K, E).
            background: unit text embeddings (C, E) that compete with the names.
            threshold: threshold of the salient boxes.
            together: whether names compete with each other (semantic mode), or each only with the
                background (referring mode).
            faithful: whether boxes end where the original's do, see `salient_boxes`.
        """
        count = len(names)
        activation = self._activations(image, names, background, together, range(count))
        anywhere = activation.flatten(1).any(dim=1).tolist()
        empty = [place for place, found in enumerate(anywhere) if not found]
        if empty and len(background):
            alone = self._activations(image, names, background[:0], together, empty)
            for place, own in zip(empty, alone, strict=True):
                activation[place] = own
        return _spread(image, activation, empty, threshold, faithful)

    def gradients(
        self,
        feature: MeanFeature,
        names: Tensor,
        background: Tensor,
        *,
        together: bool = True,
        chosen: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Differentiate the probabilities of names by the normalized input of the last block.

        Args:
            feature: feature of the image.
            names: (K, E).
            background: (C, E).
            together: whether names compete, see `propose`.
            chosen: the C' names that are wanted; None for all.

        Returns:
            Probabilities (C',), and their gradients averaged over the patches (C', D).
        """
        wanted = torch.tensor(list(range(len(names)) if chosen is None else chosen))
        places = to_device(wanted.long(), names.device)
        embedding = feature.value @ self.proj  # (E,)
        length = embedding.norm()
        direction = embedding / length
        logits = self.scale * (names @ direction)  # (K,)
        rivals = self.scale * (background @ direction)  # (C,)
        if together:
            texts = torch.cat([names, background])
            all_of_them = torch.cat([logits, rivals]).softmax(dim=0)
            probability = all_of_them[places]
            # As a softmax is differentiated step by step: where p rounds to 1, 1 - p is 0 and the
            # rivals' part is left.
            slopes = -probability[:, None] * all_of_them
            rows = torch.arange(len(places), device=names.device)
            slopes[rows, places] = probability * (1 - probability)
            by_direction = slopes @ texts
        else:
            own = logits[places, None]
            each = torch.cat([own, rivals.expand(len(places), -1)], dim=1).softmax(dim=1)
            probability = each[:, 0]
            by_direction = (probability * (1 - probability))[:, None] * names[places]
            by_direction -= probability[:, None] * (each[:, 1:] @ background)
        by_direction *= self.scale
        across = by_direction - (by_direction @ direction)[:, None] * direction
        return probability, feature.mean_gradients(across / length @ self.proj.t())

    def _activations(
        self,
        image: ImageFeatures,
        names: Tensor,
        background: Tensor,
        together: bool,
        chosen: range | list[int],
    ) -> Tensor:
        """Return class activation maps (C', h, w) of the chosen names, in 0..1."""
        _, weights = self.gradients(
            image.feature, names, background, together=together, chosen=chosen
        )
        maps = (weights @ image.feature.activation[0, 1:].T).relu()  # (C', n)
        # Twice: where the maximum is near EPSILON the first pass does not reach 1.
        return _unit_range(_unit_range(maps)).view(-1, *image.grid)


def _spread(
    image: ImageFeatures, activation: Tensor, empty: list[int], threshold: float, faithful: bool
) -> SaliencyMaps:
    """Spread class activation (K, h, w) along attention, and scale the result to masks."""
    maps = activation.cpu().numpy()
    sources = [
        box_mask(salient_boxes(one, threshold, faithful=faithful), image.grid) for one in maps
    ]
    allowed = to_device(torch.from_numpy(np.stack(sources)), activation.device)
    refined = refine(image.affinity, activation.flatten(1), allowed.flatten(1))  # (K, n)
    scaled = _unit_range(refined).view_as(activation).cpu().numpy()
    foreground_only = np.zeros(len(maps), dtype=bool)
    foreground_only[empty] = True
    refined, proposals = refined.view_as(activation), MaskProposals(scaled, image.size)
    return SaliencyMaps(activation, foreground_only, refined, proposals)


def prepare(image: ImageArray) -> Tensor:
    """Resize an image up to multiples of 16 and normalize it: (1, 3, h, w)."""
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in image.shape[:2])
    resized = resample_image(Image.fromarray(image), (width, height), Image.Resampling.BICUBIC)
    return normalize(np.asarray(resized))[None]


def normalize(image: ImageArray) -> Tensor:
    """Turn (H, W, 3) uint8 into CLIP's (3, H, W) float32."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor(PIXEL_MEAN).view(3, 1, 1), torch.tensor(PIXEL_STD).view(3, 1, 1)
    return (pixels - mean) / std


def rounded_positions(visual: VisionTransformer, grid: tuple[int, int]) -> Tensor:
    """Resize the position table (1 + n * n, D) bilinearly to (1 + h * w, D), rounded to fp16.

    Always resized, even to its own size; the original rounds on every device.

    Source: SPEC car 2.1.
    """
    table = visual.positional_embedding.detach().float()
    side = visual.config.grid_size
    patches = resize_patch_positions(table[1:], (side, side), grid, mode="bilinear")
    rounded = torch.cat([table[:1], patches]).half()
    return rounded.to(visual.positional_embedding.dtype)


def _mean_attention(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the mean over heads of the attention between patches: (n, n) float32.

    Args:
        queries: (1, heads, T, d).
        keys: (1, heads, T, d).
    """
    _, heads, tokens, width = queries.shape
    total = torch.empty(tokens - 1, tokens - 1, device=queries.device)
    step = max(1, BUDGET // (heads * tokens))
    queries = queries[:, :, 1:] * width**-0.5  # the class token's row is not needed
    for start in range(0, len(total), step):
        weights = (queries[:, :, start : start + step] @ keys.transpose(-2, -1)).softmax(dim=-1)
        total[start : start + step] = weights.float().mean(dim=1)[0, :, 1:]
    return total


def _with_mean_attention(block: Block, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Run a block on (1, T, D) tokens, and return its mean attention between patches (n, n)."""
    queries, keys, values = block.attn.qkv(block.ln_1(tokens))
    attended = block.attn.merge(F.scaled_dot_product_attention(queries, keys, values))
    return block.feed_forward(tokens + attended), _mean_attention(queries, keys)


def _unit_range(maps: Tensor) -> Tensor:
    """Scale each of (K, n) maps so that its minimum is 0 and its maximum is 1."""
    maps = maps - maps.amin(dim=1, keepdim=True)
    return maps / (EPSILON + maps.amax(dim=1, keepdim=True))
