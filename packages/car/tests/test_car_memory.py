"""Memory is bounded: many names on a large photo must not need many large tensors at once.

What a run holds is counted tensor by tensor, so that small sizes tell as much as large ones, and
neither an allocator nor another process is measured.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from car.config import CaRConfig
from car.mask_proposals import MaskProposalGenerator
from car.recurrence import CaR, Recurrence

SIDE, PATCHES, WIDTH = 160, 100, 64  # of the image, its grid, the proposer's tokens
FLOAT = 4  # bytes


class Held(TorchDispatchMode):
    """Adds up the memory of all tensors that were made and are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.storages = {k: v for k, v in self.storages.items() if not v[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return result


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most that tensors held during some work."""
    with Held() as held:
        work()
    return held.peak


def growth(work: Callable[[int], object], few: int, many: int) -> float:
    """Return how many bytes each further name costs."""
    work(many)  # texts are embedded here, and remembered
    return (peak_bytes(lambda: work(many)) - peak_bytes(lambda: work(few))) / (many - few)


def unit_vectors(count: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, 32, generator=torch.Generator().manual_seed(0)), dim=-1)


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)


def test_the_counter_counts() -> None:
    def work() -> None:
        for _ in range(3):
            ones = torch.ones(1000)  # the one before is still there when this one is made
        del ones

    assert peak_bytes(work) == 2 * 1000 * FLOAT


def test_a_mask_is_not_made_before_it_is_looked_at(tiny_clips, picture) -> None:
    proposer = MaskProposalGenerator(tiny_clips[0])
    texts = unit_vectors(8)
    image = proposer.encode(picture)
    tracemalloc.start()  # NumPy reports its arrays
    try:
        masks = proposer.propose(image, texts, texts[:0], 0.4).proposals
        assert masks.any()
        assert max(mask.max() for mask in masks) > 0.5
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(masks) == 8
    assert peak < 4 * SIDE**2 * FLOAT


def test_the_gradients_of_a_name_are_not_kept(tiny_clips, picture, monkeypatch) -> None:
    monkeypatch.setattr("car.mean_gradient.BUDGET", 1)  # one name at a time
    proposer = MaskProposalGenerator(tiny_clips[0])
    image, texts = proposer.encode(picture), unit_vectors(24)
    each = growth(lambda k: proposer.propose(image, texts[:k], texts[:0], 0.4), 8, 24)
    gradients = PATCHES * WIDTH * FLOAT
    assert 0 < each < gradients / 2


def test_gradients_take_what_the_budget_allows(tiny_clips, picture, monkeypatch) -> None:
    proposer = MaskProposalGenerator(tiny_clips[0])
    texts = unit_vectors(32)

    def numbers(budget: int) -> float:
        monkeypatch.setattr("car.mean_gradient.BUDGET", budget)
        feature = proposer.encode(picture).feature
        return peak_bytes(lambda: proposer.gradients(feature, texts, texts[:0])) / FLOAT

    least, one = numbers(1), proposer.last.mlp.c_fc.out_features * WIDTH  # weights of a name
    for names in (2, 4, 8):
        assert least < numbers(names * one) < least + 3 * names * one
    assert numbers(1 << 30) > least + 25 * one  # all at once are more


@pytest.mark.parametrize(("mode", "most"), [("semantic", 2.5), ("refer", 0.5)])
def test_a_name_costs_its_evidence_and_its_marginal_where_names_compete(
    tiny_clips, picture, mode, most: float
) -> None:
    """Names that do not compete pass the CRF in groups, and cost next to nothing."""
    config = CaRConfig(mode=mode, confidence_threshold=0.0, mask_threshold=0.4)
    car = CaR(*tiny_clips, config, cache_dir=False)  # type: ignore[misc]
    names = [f"name {number}" for number in range(32)]
    each = growth(lambda k: Recurrence(car, car.prepare(picture), names[:k]).run(), 16, 32)
    assert each < most * SIDE**2 * FLOAT
