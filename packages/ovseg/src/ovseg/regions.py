"""The way from mask probabilities to the crops that CLIP sees.

A proposal is thresholded, boxed, cut out of the image with its background painted over, and
stretched to CLIP's square input; the same is done to its mask. Every proposal has another box, and
still all are resized in one operation: resizing is linear along each axis, so a crop and its
bicubic kernel are one matrix for the rows and one for the columns.

Source: OVSeg paper section 3.2; SPEC ovseg 6 and 17.6-8.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_CUBIC = -0.75  # the "a" of torch's bicubic kernel


class Regions(NamedTuple):
    """Resized crops of V proposals."""

    images: Tensor
    """Normalised crops (V, 3, S, S)."""
    masks: Tensor
    """Foreground of each crop (V, 1, S, S), 0..1."""


def binarize(probability: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Threshold mask probabilities.

    Args:
        probability: (Q, h, w), 0..1.
        threshold: strictly above this is foreground; compared in float32.

    Returns:
        Binary masks (Q, h, w) and, per proposal, whether it has any foreground (Q,).
    """
    binary = probability > threshold
    return binary, binary.flatten(1).any(1)


def tight_boxes(masks: Tensor) -> Tensor:
    """Return the boxes of non-empty binary masks.

    Args:
        masks: (V, h, w) bool, each with at least one pixel.

    Returns:
        (V, 4) int64 `x1, y1, x2, y2`, the far ends exclusive.
    """
    columns, rows = masks.any(1), masks.any(2)  # (V, w), (V, h)
    x1, x2 = _ends(columns)
    y1, y2 = _ends(rows)
    return torch.stack([x1, y1, x2, y2], 1)


def expand_boxes(boxes: Tensor, ratio: float, size: tuple[int, int]) -> Tensor:
    """Grow boxes about their centres, truncate toward zero and clamp to the image.

    Args:
        boxes: (V, 4) int64 `x1, y1, x2, y2`.
        ratio: factor by which the sides grow.
        size: height and width of the image.
    """
    low, high = boxes[:, :2].double(), boxes[:, 2:].double()
    center, half = (low + high) / 2, (high - low) * 0.5 * ratio
    corners = [(center - half).long(), (center + half).long()]
    ends = [c[:, axis].clamp(0, size[1 - axis]) for c in corners for axis in (0, 1)]
    return torch.stack(ends, 1)


def extract_regions(
    image: Tensor,
    masks: Tensor,
    boxes: Tensor,
    *,
    size: int,
    background: Tensor,
) -> Regions:
    """Cut regions out of an image and resize them all at once.

    For each region, this equals blending the background in, cropping, and `F.interpolate` to
    `size`: bicubic without antialiasing for the image, legacy nearest for the mask.

    Args:
        image: normalised for CLIP (3, h, w).
        masks: foreground (V, h, w), bool or 0..1.
        boxes: (V, 4) int64 `x1, y1, x2, y2`, not empty.
        size: side S of the result.
        background: normalised colour of the background (3,).
    """
    height, width = image.shape[-2:]
    x1, y1, x2, y2 = boxes.unbind(1)
    columns, rows = _cubic_matrix(x1, x2, size, width), _cubic_matrix(y1, y2, size, height)
    # Blending and resizing are linear: resize mask·(image - background), then add the background.
    color = background[:, None, None]
    blended = (image - color) * masks[:, None]  # (V, 3, h, w)
    regions = rows[:, None] @ (blended @ columns[:, None].transpose(-2, -1)) + color
    nearest = _nearest(y1, y2, size)[:, :, None] * width + _nearest(x1, x2, size)[:, None]
    region_masks = masks.flatten(1).gather(1, nearest.flatten(1)).view(-1, 1, size, size)
    return Regions(regions, region_masks.to(image.dtype))


def _ends(hit: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first true position of each row, and one past the last true position."""
    index = hit.byte()
    first = index.argmax(1)
    last = hit.shape[1] - index.flip(1).argmax(1)
    return first, last


def _cubic_matrix(start: Tensor, end: Tensor, size: int, limit: int) -> Tensor:
    """Return the matrices that resize crops bicubically along one axis of the whole image.

    Args:
        start: first position of each crop (V,).
        end: one past its last (V,).
        size: number of output pixels S.
        limit: length of the image's axis.

    Returns:
        (V, S, limit) float32, four taps in each row, all within the crop.
    """
    length = (end - start)[:, None]  # (V, 1)
    scale = length.float() / size
    source = scale * (torch.arange(size, device=start.device) + 0.5) - 0.5  # (V, S)
    base = source.floor()
    t = source - base
    taps = torch.arange(-1, 3, device=start.device)
    inside = (base.long()[..., None] + taps).clamp(min=0).minimum(length[..., None] - 1)
    weights = torch.stack([_far(t + 1), _near(t), _near(1 - t), _far(2 - t)], -1)  # (V, S, 4)
    matrix = weights.new_zeros(len(start), size, limit)
    return matrix.scatter_add_(2, start[:, None, None] + inside, weights)


def _near(x: Tensor) -> Tensor:
    """Cubic convolution kernel for distances up to 1."""
    return ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1


def _far(x: Tensor) -> Tensor:
    """Cubic convolution kernel for distances from 1 to 2."""
    return ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC


def _nearest(start: Tensor, end: Tensor, size: int) -> Tensor:
    """Return the positions (V, S) that legacy nearest resizing reads along one axis."""
    length = (end - start)[:, None]
    scale = length.float() / size
    inside = (torch.arange(size, device=start.device) * scale).floor().long()
    return start[:, None] + inside.minimum(length - 1)
