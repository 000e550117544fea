"""The symmetric contrastive loss over all crops and nouns of all processes.

Source: OVSeg paper section 3.2; SPEC ovseg 11.3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from openvocab.training.distributed import Processes, gather_with_gradient
from ovseg.train_config import Duplicates


def contrastive_loss(
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    *,
    groups: Tensor | None = None,
    duplicates: Duplicates = "negative",
    processes: Processes | None = None,
) -> Tensor:
    """Return the symmetric cross-entropy between this process's crops and nouns and those of all.

    The mean over processes is the loss of the global batch, and so is its gradient.

    Args:
        images: unit length (N, E).
        texts: unit length (N, E), row i belongs to crop i.
        scale: factor of the cosines.
        groups: numbers of the titles (N,); equal numbers are duplicates. None: there are none.
        duplicates: treatment of crops that share a noun, see `FinetuneConfig`.
        processes: the processes.

    Source: SPEC ovseg 11.3.
    """
    processes = processes or Processes()
    all_images, all_texts = (gather_with_gradient(x, processes) for x in (images, texts))
    own = torch.arange(len(images), device=images.device) + processes.rank * len(images)
    same = None if groups is None else groups[:, None] == _gather_numbers(groups, processes)[None]
    parts = [
        _cross_entropy(scale * left @ right.T, own, same, duplicates)
        for left, right in ((images, all_texts), (texts, all_images))
    ]
    return (parts[0] + parts[1]) / 2


def _cross_entropy(
    logits: Tensor, own: Tensor, same: Tensor | None, duplicates: Duplicates
) -> Tensor:
    """Cross-entropy of rows (N, M) whose own column is `own`, and duplicates are `same`."""
    if same is None or duplicates == "negative":
        return F.cross_entropy(logits, own)
    others = same.clone()
    others[torch.arange(len(own), device=own.device), own] = False
    return F.cross_entropy(logits.masked_fill(others, float("-inf")), own)


def _gather_numbers(numbers: Tensor, processes: Processes) -> Tensor:
    if processes.size == 1:
        return numbers
    parts = [torch.empty_like(numbers) for _ in range(processes.size)]
    dist.all_gather(parts, numbers)
    return torch.cat(parts)


class Cached(NamedTuple):
    """The loss of a whole batch, and its gradient by the embeddings of one micro-batch.

    Attributes:
        loss: a number.
        features: gradient by the unit-length embeddings of the micro-batch's crops (B, E).
        scale: gradient by the temperature's logarithm, from the whole batch.
        parts: micro-batches of this process.
    """

    loss: Tensor
    features: Tensor
    scale: Tensor
    parts: int

    def replay(self, features: Tensor, logit_scale: Tensor) -> Tensor:
        """Return the loss with the cached gradient, for embeddings that are computed a second time.

        The engine divides by the number of parts; all give the same temperature its gradient, and
        each its own embeddings theirs.
        """
        surrogate = self.parts * (self.features * features).sum() + self.scale * logit_scale
        return self.loss + (surrogate - surrogate.detach())
