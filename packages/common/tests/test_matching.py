from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openvocab.training.matching import (
    assign,
    class_cost,
    cross_entropy_cost,
    dice_cost,
    focal_cost,
)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 10_000))
def test_assignment_is_the_cheapest_of_all(queries: int, targets: int, seed: int) -> None:
    cost = torch.rand(queries, targets, generator=torch.Generator().manual_seed(seed))
    match = assign(cost)
    size = min(queries, targets)
    assert len(match.queries) == len(set(match.targets.tolist())) == size
    assert match.queries.tolist() == sorted(set(match.queries.tolist()))
    best = min(
        (
            sum(cost[q, t].item() for q, t in zip(rows, columns, strict=True))
            for rows in itertools.permutations(range(queries), size)
            for columns in itertools.combinations(range(targets), size)
        ),
        default=0.0,
    )
    assert cost[match.queries, match.targets].sum().item() == pytest.approx(best, abs=1e-5)


def test_costs_that_are_no_numbers_are_matched_last() -> None:
    cost = torch.tensor([[float("nan"), 1.0], [2.0, float("inf")], [float("nan"), float("nan")]])
    match = assign(cost)
    assert match.queries.tolist() == [0, 1] and match.targets.tolist() == [1, 0]


def test_costs_follow_their_formulas_pair_by_pair() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 50), torch.rand(2, 50)
    for q, t in itertools.product(range(3), range(2)):
        x, y = logits[q], targets[t]
        p = x.sigmoid()
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(x, y)
        assert cross_entropy_cost(logits, targets)[q, t] == pytest.approx(entropy.item(), rel=1e-5)
        dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
        assert dice_cost(logits, targets)[q, t] == pytest.approx(dice.item(), rel=1e-5)
        focal = -0.25 * y * (1 - p) ** 2 * p.log() - 0.75 * (1 - y) * p**2 * (1 - p).log()
        assert focal_cost(logits, targets)[q, t] == pytest.approx(focal.mean().item(), rel=1e-4)
    classes = torch.randn(3, 6)
    expected = -classes.softmax(-1)[:, [4, 0]]
    assert torch.equal(class_cost(classes, torch.tensor([4, 0])), expected)
