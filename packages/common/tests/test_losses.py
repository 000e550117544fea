from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openvocab.training.losses import (
    PerImageDraws,
    Targets,
    class_loss,
    cross_entropy_loss,
    dice_loss,
    focal_loss,
    layer_suffixes,
    matched_masks,
    sample_points,
    targets_of,
    totals_of,
    uncertain_points,
)
from openvocab.training.matching import Match


def _match(queries: list[int], targets: list[int]) -> Match:
    return Match(torch.tensor(queries, dtype=torch.long), torch.tensor(targets, dtype=torch.long))


def test_targets_are_the_classes_present_without_void() -> None:
    label = torch.tensor([[5, 5, 255], [0, 2, 7], [-1, 0, 0]])
    targets = targets_of(label, num_classes=7)
    assert targets.labels.tolist() == [0, 2, 5]
    assert targets.masks.dtype == torch.bool and targets.masks.shape == (3, 3, 3)
    assert targets.masks.sum((1, 2)).tolist() == [3, 1, 2]
    empty = targets_of(torch.full((4, 4), 255), 7)
    assert empty.labels.shape == (0,) and empty.masks.shape == (0, 4, 4)


def test_points_are_sampled_at_pixel_centers_and_vanish_outside() -> None:
    maps = torch.arange(12.0).reshape(1, 3, 4)
    x, y = torch.meshgrid((torch.arange(4) + 0.5) / 4, (torch.arange(3) + 0.5) / 3, indexing="xy")
    points = torch.stack([x, y], -1).reshape(1, 12, 2)
    assert torch.allclose(sample_points(maps, points)[0], maps.flatten(), atol=1e-5)
    corner = sample_points(maps + 1, torch.tensor([[[0.0, 0.0]]]))
    assert corner.item() == pytest.approx(0.25)  # a quarter of pixel (0, 0), zeros around it
    many = sample_points(maps.expand(5, 3, 4), points)
    assert torch.allclose(many, sample_points(maps.expand(5, 3, 4), points.expand(5, 12, 2)))


def test_uncertain_points_lie_where_the_mask_is_undecided() -> None:
    ramp = torch.linspace(-10, 10, 64).expand(1, 64, 64)  # undecided at x = 0.5
    points = uncertain_points(
        ramp, [1], 200, oversample=3.0, importance=0.75, draw=PerImageDraws([0])
    )
    assert points.shape == (1, 200, 2)
    distance = (points[0, :, 0] - 0.5).abs()
    assert distance[:150].max() < 0.2 and distance[150:].max() > 0.3


def test_draws_of_an_image_do_not_depend_on_its_company() -> None:
    together = PerImageDraws([11, 12])
    first, second = together([2, 3], 7), together([1, 0], 4)
    alone = PerImageDraws([12])
    assert torch.equal(first[2:], alone([3], 7))
    assert second.shape == (1, 4, 2) and alone([0], 4).shape == (0, 4, 2)
    other = PerImageDraws([11])
    assert torch.equal(first[:2], other([2], 7)) and torch.equal(second, other([1], 4))


def test_class_loss_is_the_weighted_mean_of_torch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 6)
    empty = torch.zeros(2, 3, 3, dtype=torch.bool)
    targets = [Targets(torch.tensor([1, 4]), empty), Targets(torch.tensor([0, 3]), empty)]
    matches = [_match([0, 2], [1, 0]), _match([3], [0])]
    wanted = torch.tensor([4, 5, 1, 5, 5, 5, 5, 0])
    weight = torch.tensor([1, 1, 1, 1, 1, 0.1])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted, weight)
    total = 3 + 0.1 * 5
    assert torch.allclose(class_loss(logits, targets, matches, 0.1, total), expected)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=6), st.integers(1, 5))
def test_totals_make_the_mean_over_parts_the_loss_of_the_whole(
    counts: list[int], queries: int
) -> None:
    whole, parts = totals_of(counts, queries, 0.1), totals_of(counts, queries, 0.1, shares=2)
    matched = sum(min(queries, count) for count in counts)
    nothing = len(counts) * queries - matched
    assert whole.class_weight == pytest.approx(matched + 0.1 * nothing)
    assert whole.masks == max(sum(counts), 1)
    assert parts.class_weight == pytest.approx(whole.class_weight / 2)
    assert parts.masks == max(sum(counts) / 2, 1)


def test_mask_losses_of_perfect_and_wrong_masks() -> None:
    target = torch.tensor([[1.0, 1, 0, 0]])
    good, bad = 20 * (2 * target - 1), -20 * (2 * target - 1)
    for loss in (cross_entropy_loss, focal_loss, dice_loss):
        assert loss(good, target, 1.0).item() == pytest.approx(0, abs=1e-4)
        assert loss(bad, target, 1.0) > 0.5
        assert loss(bad.repeat(4, 1), target.repeat(4, 1), 2.0) == pytest.approx(
            2 * loss(bad, target, 1.0).item()
        )


def test_losses_without_targets_are_zero_and_connected() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    target = targets_of(torch.full((8, 8), 255), 5)
    found, masks = matched_masks(logits, [target, target], [_match([], [])] * 2)
    assert found.shape == (0, 4, 4) and masks.shape == (0, 8, 8)
    points = uncertain_points(
        found, [0, 0], 8, oversample=3.0, importance=0.75, draw=PerImageDraws([0, 1])
    )
    sampled = sample_points(found, points)
    loss = cross_entropy_loss(sampled, sample_points(masks, points), 1.0)
    loss = loss + dice_loss(sampled, sample_points(masks, points), 1.0)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_layers_are_named_as_in_the_originals_logs() -> None:
    assert layer_suffixes(1) == [""]
    assert layer_suffixes(3) == ["_0", "_1", ""]
