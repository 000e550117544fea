"""A fully connected CRF with mean-field inference, which aligns masks with edges of the image.

Source: Krähenbühl and Koltun 2011, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", section 3; SPEC car 7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from car.lattice import PermutohedralLattice
from openvocab.computation import to_device

# What the original subtracts from blue, green and red.
MEAN_BGR = (104.008, 116.669, 122.675)
_COLUMNS, _PIXELS = 16, 1 << 16  # that are worked on at once
_FIELDS = 8  # CRFs of single names that are inferred together
_LONG_ROW = 16  # labels, from which on torch's own softmax is fast


@dataclass(frozen=True)
class CRFConfig:
    """The parameters of the energy.

    Attributes:
        iterations: number of mean-field iterations.
        smooth_deviation: standard deviation in pixels of the smoothness term, which depends only on
            positions.
        smooth_weight: weight of the smoothness term.
        bilateral_deviation: standard deviation in pixels of the bilateral term, which depends on
            positions and colors.
        color_deviation: standard deviation of the bilateral term in grey levels.
        bilateral_weight: weight of the bilateral term.
        smallest_probability: probabilities are clipped here before their logarithm is taken.
    """

    iterations: int = 10
    smooth_deviation: float = 1.0
    smooth_weight: float = 3.0
    bilateral_deviation: float = 67.0
    color_deviation: float = 3.0
    bilateral_weight: float = 4.0
    smallest_probability: float = 1e-5


class DenseCRF:
    """The CRF of one image; its lattices are built once, for all labels and all calls.

    Args:
        image: (H, W, 3) uint8, what `crf_image` makes of a photo.
        config: the terms of the energy.
        device: device to compute on.
    """

    def __init__(
        self,
        image: NDArray[np.uint8],
        config: CRFConfig | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config = config or CRFConfig()
        self.size, self.device = image.shape[:2], device
        color = torch.from_numpy(np.ascontiguousarray(image)).reshape(-1, 3)
        place = _positions(self.size, device) / config.bilateral_deviation
        color = to_device(color, device).float() / config.color_deviation
        bilateral = _kernel(torch.cat([place, color], dim=1))
        smooth = _smooth_kernel(self.size, config.smooth_deviation, device)
        self._terms = [
            (config.smooth_weight, *smooth),
            (config.bilateral_weight, *bilateral),
        ]

    def marginals(self, probability: Tensor) -> Tensor:
        """Return the probability of each label at each pixel.

        Several independent CRFs over the same image are inferred together.

        Args:
            probability: (..., L, H, W) of L labels before looking at the image, in 0..1; they need
                not sum to 1.

        Returns:
            (..., L, H, W), float32, sums to 1 over L.
        """
        shape, labels = probability.shape, probability.shape[-3]
        rows = probability.reshape(-1, labels, self.size[0] * self.size[1])  # (B, L, N)
        evidence = torch.empty(rows.shape[2], *rows.shape[:2], device=rows.device)
        evidence.copy_(rows.permute(2, 0, 1))  # (N, B, L)
        del probability, rows  # a caller that does not need it either has its memory back now
        evidence = evidence.clamp_(self.config.smallest_probability, 1).log_()
        q = evidence.softmax(dim=-1)
        for _ in range(self.config.iterations):
            self._exchange_messages(q.flatten(1))
            pairs = zip(torch.split(q, _PIXELS), torch.split(evidence, _PIXELS), strict=True)
            for logits, known in pairs:
                _softmax(logits + known, out=logits)
        return q.permute(1, 2, 0).reshape(shape)

    def _exchange_messages(self, q: Tensor) -> None:
        """Replace (N, B * L) probabilities by the Potts messages of both terms.

        Each kernel is normalized symmetrically. No label's messages need another label, so a few
        columns at a time are replaced, and there is never a second copy of all of them.
        """
        for values in torch.split(q, _COLUMNS, dim=1):
            total = torch.zeros_like(values)
            for weight, lattice, norm in self._terms:
                total.addcmul_(lattice.filter(values * norm), weight * norm)
            values.copy_(total)


def _softmax(logits: Tensor, out: Tensor) -> None:
    """Write the softmax of logits (N, B, L) over their last axis to `out`; logits are overwritten.

    torch works on rows that are shorter than its vectors number by number, which takes several
    times as long as these passes over all rows.
    """
    if logits.shape[-1] >= _LONG_ROW or not logits.is_cpu:
        torch.softmax(logits, dim=-1, out=out)
        return
    logits.sub_(logits.amax(dim=-1, keepdim=True)).exp_()
    torch.div(logits, logits.sum(dim=-1, keepdim=True), out=out)


def crf_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Prepare an image (H, W, 3) RGB as the original does: BGR minus a mean, modulo 256.

    Negative values are cut towards zero and wrap around, so that -1.2 becomes 255. This moves
    edges in dark images, and the published numbers were measured with it.

    Source: SPEC car 7.
    """
    centered = image[..., ::-1].astype(np.float32) - np.array(MEAN_BGR, dtype=np.float32)
    wrapped: NDArray[np.uint8] = np.trunc(centered).astype(np.int64).astype(np.uint8)
    return wrapped


def add_background(
    masks: Sequence[NDArray[np.float32]], bg_factor: float, device: torch.device | str = "cpu"
) -> Tensor:
    """Put the background in front of K soft masks (H, W) in 0..1: (K + 1, H, W).

    It is `(1 - the highest mask) ** bg_factor`; the results do not sum to 1.

    Source: SPEC car 7.
    """
    probability = torch.empty(1 + len(masks), *masks[0].shape, device=device)
    for label, mask in zip(probability[1:], masks, strict=True):
        label.copy_(to_device(torch.from_numpy(mask), device))
    rest = (1 - probability[1:].amax(dim=0)).clamp(min=0)
    probability[0] = rest**bg_factor
    return probability


def crf_input(
    proposals: Sequence[NDArray[np.float32]],
    bg_factor: float,
    *,
    together: bool,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the input of the CRF: one field (K + 1, H, W), or one for each name (K, 2, H, W).

    Args:
        proposals: K soft masks (H, W) in 0..1.
        bg_factor: factor of the background, see `add_background`.
        together: whether the names compete with each other, or each only with the background.
        device: device of the result.
    """
    if together:
        return add_background(proposals, bg_factor, device)
    return torch.stack([add_background([mask], bg_factor, device) for mask in proposals])


def masks_along_edges(
    crf: DenseCRF,
    proposals: Sequence[NDArray[np.float32]],
    bg_factor: float,
    *,
    together: bool,
) -> Iterator[tuple[NDArray[np.bool_], Tensor]]:
    """Run the CRF, and yield the mask (H, W) and the marginal (H, W) of each of K names.

    Names that do not compete with each other need not be in memory at once.
    """
    if together:
        q = crf.marginals(crf_input(proposals, bg_factor, together=True, device=crf.device))
        labels = q.argmax(dim=0).cpu().numpy()
        for label in range(1, len(q)):
            yield labels == label, q[label]
        return
    for start in range(0, len(proposals), _FIELDS):
        some = proposals[start : start + _FIELDS]
        for q in crf.marginals(crf_input(some, bg_factor, together=False, device=crf.device)):
            yield q.argmax(dim=0).cpu().numpy() == 1, q[1]


def _positions(size: tuple[int, int], device: torch.device | str) -> Tensor:
    """Return the positions (H * W, 2) of all pixels, x first, as float32."""
    axes = [torch.arange(side, device=device) for side in size]
    y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2).float()


def _kernel(features: Tensor) -> tuple[PermutohedralLattice, Tensor]:
    """Return the lattice of (N, F) features, and the factors that normalize its filter."""
    lattice = PermutohedralLattice(features)
    ones = torch.ones(len(features), 1, device=features.device)
    return lattice, (lattice.filter(ones) + 1e-20).rsqrt()


@lru_cache(maxsize=1)
def _smooth_kernel(
    size: tuple[int, int], deviation: float, device: torch.device | str
) -> tuple[PermutohedralLattice, Tensor]:
    """Return the kernel of the smoothness term, which is the same for all images of a size."""
    return _kernel(_positions(size, device) / deviation)
