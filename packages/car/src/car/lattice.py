"""High-dimensional Gaussian filtering on the permutohedral lattice, in plain PyTorch.

The lattice is built once from the features of the pixels; after that a filter is three kinds of
sparse products with fixed indices: splat the pixels to the corners of their simplices, blur along
each of the lattice's axes, slice back.

Source: Adams, Baek and Davis 2010, "Fast High-Dimensional Filtering Using the Permutohedral
Lattice", section 3; SPEC car 7.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openvocab.computation import to_device
from openvocab.errors import InputError

# Rows of values are padded to this many numbers: gathered rows then start on 32-byte borders.
_ROW = 8


@dataclass(frozen=True)
class _Rows:
    """A sparse matrix as bags of weighted rows; row i holds entries offsets[i]..offsets[i + 1]."""

    columns: Tensor
    weights: Tensor
    offsets: Tensor

    def __matmul__(self, values: Tensor) -> Tensor:
        return F.embedding_bag(
            self.columns, values, self.offsets, mode="sum", per_sample_weights=self.weights
        )


class PermutohedralLattice:
    """A Gaussian filter with unit standard deviation in feature space.

    Args:
        features: (N, d) positions of N pixels, float32.

    Attributes:
        size: M, the number of lattice points that some pixel touches.
    """

    def __init__(self, features: Tensor) -> None:
        pixels, dims = features.shape
        corners, weights = _simplices(features.float())  # (N, d + 1, d + 1), (N, d + 1)
        codes, shifts = _encode(corners)
        order, group, starts, points = _group(codes.reshape(-1))
        self.size = len(starts)
        place = torch.empty_like(order)  # which lattice point every corner is
        place[order] = group
        index = torch.int32 if len(order) < 2**31 else torch.int64
        flat = weights.reshape(-1)
        every = torch.arange(0, pixels * (dims + 1), dims + 1, device=order.device)
        self._splat = _Rows(
            torch.div(order, dims + 1, rounding_mode="floor").to(index),
            flat[order],
            starts.to(index),
        )
        self._slice = _Rows(place.to(index), flat, every.to(index))
        self._blurs = [_axis_blur(points, shift, index) for shift in shifts]

    def filter(self, values: Tensor) -> Tensor:
        """Blur values (N, L) of the pixels, up to one constant factor: (N, L)."""
        channels = values.shape[1]
        padding = -channels % _ROW if channels > _ROW // 2 else 0
        points = self._splat @ F.pad(values, (0, padding))  # (M, L)
        for blur in self._blurs:
            points = blur @ points
        return (self._slice @ points)[:, :channels]


def _simplices(features: Tensor) -> tuple[Tensor, Tensor]:
    """Find the simplex around each of N points.

    Returns:
        The lattice coordinates of its corners, integers (N, d + 1 corners, d + 1 coordinates), and
        the barycentric weights (N, d + 1).
    """
    dims = features.shape[1]
    elevated = _elevate(features)  # (N, d + 1), rows sum to 0
    # The closest point whose coordinates are all multiples of d + 1.
    nearest = (elevated * (1 / (dims + 1))).round() * (dims + 1)
    surplus = (nearest.sum(dim=1) / (dims + 1)).round().long()
    # Rank of each coordinate's rounding error, the largest first; equal ones keep their order.
    order = torch.sort(elevated - nearest, dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(dims + 1, device=order.device).expand_as(order))
    rank = rank + surplus[:, None]
    # Bring the point back to the plane where coordinates sum to 0.
    too_low, too_high = rank < 0, rank > dims
    nearest = nearest + (dims + 1.0) * (too_low.float() - too_high.float())
    rank = rank + (dims + 1) * (too_low.long() - too_high.long())
    weights = _barycentric((elevated - nearest) * (1 / (dims + 1)), rank)
    # Corner k adds k to the d + 1 - k lowest ranks, and k - (d + 1) to the others.
    ranks = torch.arange(dims + 1, device=rank.device)
    corner = ranks[:, None]
    table = corner - (dims + 1) * (ranks > dims - corner).long()  # (corner, rank)
    offsets = table[:, rank]  # (corner, N, coordinate)
    corners = nearest.long()[:, None] + offsets.transpose(0, 1)
    return corners, weights


def _elevate(features: Tensor) -> Tensor:
    """Map (N, d) into the plane of R^(d + 1) in which the lattice lies: (N, d + 1).

    Scale and sums are rounded in the original's order: where the image is flat, mean field
    amplifies the last bit of a position a thousandfold.
    """
    dims = features.shape[1]
    # Splat, blur and slice together have a variance of 2/3 (d + 1)^2 per axis.
    unit = float(np.float32((2 / 3) ** 0.5 * (dims + 1)))
    columns, behind = [], torch.zeros_like(features[:, 0])
    for axis in range(dims, 0, -1):
        scaled = features[:, axis - 1] * float(np.float32(unit / (axis * (axis + 1)) ** 0.5))
        columns.append(behind - axis * scaled)
        behind = behind + scaled
    return torch.stack([behind, *reversed(columns)], dim=1)


def _barycentric(errors: Tensor, rank: Tensor) -> Tensor:
    """Weights of the corners (N, d + 1) from the differences of the sorted, scaled errors."""
    descending = torch.empty_like(errors).scatter_(1, rank, errors)
    first = 1 + (descending[:, -1:].double() - descending[:, :1].double())
    # Corner k has the difference between ranks d - k and d + 1 - k.
    others = (descending[:, :-1] - descending[:, 1:]).flip(1)
    return torch.cat([first.float(), others], dim=1)


def _encode(corners: Tensor) -> tuple[Tensor, list[int]]:
    """Number lattice points so that stepping along an axis adds a constant.

    The last coordinate follows from the others, since all sum to 0.

    Returns:
        Codes (N, d + 1), int64, and the d + 1 constants.
    """
    coordinates = corners[..., :-1]  # (N, d + 1, d)
    dims = coordinates.shape[-1]
    low = coordinates.amin(dim=(0, 1)) - (dims + 1)
    spans = (coordinates.amax(dim=(0, 1)) + (dims + 1) - low + 1).tolist()
    strides, total = [], 1
    for span in reversed(spans):
        strides.append(total)
        total *= span
    if total >= 2**62:
        raise InputError(
            f"the image's positions and colours span {spans} lattice cells, more than 64-bit "
            "numbers can count; make the image smaller (max_side)"
        )
    strides.reverse()
    codes = (coordinates - low) @ to_device(torch.tensor(strides), corners.device)
    step = sum(strides)
    shifts = [step - (dims + 1) * stride for stride in strides] + [step]
    return codes, shifts


def _group(codes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort codes (E,), of which M are distinct.

    Returns:
        The order (E,), which distinct code is at each place of it (E,), where each of them starts
        (M,), and the distinct codes (M,).
    """
    if codes.is_cpu:  # NumPy sorts integers several times faster
        order = torch.from_numpy(np.argsort(codes.numpy(), kind="stable"))
    else:
        order = codes.argsort(stable=True)
    ordered = codes[order]
    changes = torch.ones_like(ordered, dtype=torch.bool)
    changes[1:] = ordered[1:] != ordered[:-1]
    starts = changes.nonzero()[:, 0]
    return order, changes.cumsum(0) - 1, starts, ordered[starts]


def _axis_blur(points: Tensor, shift: int, index: torch.dtype) -> _Rows:
    """Build the filter [1/2, 1, 1/2] along one axis; missing neighbours count as 0."""
    size = len(points)
    wanted = points + shift
    found = torch.searchsorted(points, wanted).clamp_(max=size - 1)
    here = torch.arange(size, device=points.device)
    there = points[found] == wanted
    # (M + 1, 3): a missing neighbour has the weight 0; the last row takes what has no place.
    columns = torch.arange(size + 1, device=points.device)[:, None].repeat(1, 3)
    weights = torch.zeros(size + 1, 3, device=points.device)
    weights[:, 2] = 1  # the point itself comes last: the original adds it to the neighbours' sum
    columns[:-1, 0], weights[:-1, 0] = found.where(there, here), 0.5 * there
    target = found.where(there, size)
    columns[target, 1], weights[target, 1] = here, 0.5
    columns, weights = columns[:-1].reshape(-1), weights[:-1].reshape(-1)
    offsets = torch.arange(0, 3 * size, 3, device=points.device)
    return _Rows(columns.to(index), weights, offsets.to(index))
