"""The recorded losses, matches and optimiser step of the original."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from openvocab.training.losses import Losses, PerImageDraws, Targets, targets_of, totals_of
from san._convert import official_name
from san.criterion import SANCriterion
from san.model import SAN, SANPrediction
from san.task import make_optimizer
from san.train_config import SANCriterionConfig, SANOptimizerConfig


class RecordedDraws:
    """Replays the original's random numbers in the order of its calls.

    For each layer: one array for every image (matching), then candidates, then other points.
    """

    def __init__(self, recorded: dict[str, Tensor]) -> None:
        self.arrays = [recorded[key] for key in sorted(recorded) if key.startswith("rand_")]
        self.calls = 0

    def __call__(self, counts: Sequence[int], points: int) -> Tensor:
        arrays = len(counts) if self.calls % 3 == 0 else 1
        self.calls += 1
        drawn = torch.cat([self.arrays.pop(0) for _ in range(arrays)])
        assert drawn.shape == (sum(counts), points, 2)
        return drawn


def _layers(recorded: dict[str, Tensor]) -> list[str]:
    names = sorted(k.removeprefix("pred_masks_") for k in recorded if k.startswith("pred_masks_"))
    return [*(n for n in names if n != "final"), "final"]


def _targets(recorded: dict[str, Tensor]) -> list[Targets]:
    count = sum(key.startswith("target_labels") for key in recorded)
    return [
        Targets(recorded[f"target_labels{i}"], recorded[f"target_masks{i}"]) for i in range(count)
    ]


def _points(recorded: dict[str, Tensor]) -> int:
    return recorded["rand_00"].shape[1]


def _predictions(recorded: dict[str, Tensor]) -> list[SANPrediction]:
    return [
        SANPrediction(recorded[f"pred_logits_{n}"], recorded[f"pred_masks_{n}"])
        for n in _layers(recorded)
    ]


def _criterion(recorded: dict[str, Tensor]) -> SANCriterion:
    return SANCriterion(SANCriterionConfig(points=_points(recorded)))


def test_targets_equal_the_recorded(recording) -> None:
    recorded = recording.load("train_criterion")
    for i, expected in enumerate(_targets(recorded)):
        found = targets_of(recorded[f"gt{i}"].long(), recording.config.num_classes)
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.masks, expected.masks)


def test_costs_and_matches_equal_the_recorded(recording) -> None:
    recorded = recording.load("train_criterion")
    criterion, targets = _criterion(recorded), _targets(recorded)
    draws = [recorded[k] for k in sorted(recorded) if k.startswith("rand_")]
    per_layer = len(targets) + 2
    layers = _layers(recorded)
    for call, name in enumerate(["final", *layers[:-1]]):
        for image, target in enumerate(targets):
            cost = criterion.cost(
                recorded[f"pred_logits_{name}"][image],
                recorded[f"pred_masks_{name}"][image],
                target,
                draws[call * per_layer + image],
            )
            expected = recorded[f"cost_{name}_img{image}"]
            assert torch.allclose(cost, expected, rtol=1e-4, atol=1e-5)
        prediction = SANPrediction(recorded[f"pred_logits_{name}"], recorded[f"pred_masks_{name}"])
        points = torch.cat(draws[call * per_layer : call * per_layer + len(targets)])
        matches = criterion.match(prediction, targets, lambda *_, p=points: p)
        for image, match in enumerate(matches):
            assert torch.equal(match.queries, recorded[f"match_query_{name}_img{image}"])
            assert torch.equal(match.targets, recorded[f"match_target_{name}_img{image}"])


def test_losses_equal_the_recorded(recording) -> None:
    recorded = recording.load("train_criterion")
    targets = _targets(recorded)
    predictions = _predictions(recorded)
    totals = totals_of([len(t.labels) for t in targets], predictions[0].class_logits.shape[1], 0.1)
    losses = _criterion(recorded)(predictions, targets, totals, RecordedDraws(recorded))
    expected = {k.removeprefix("loss_weighted_"): v for k, v in recorded.items() if "weighted" in k}
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name
    assert sum(losses.values()).item() == pytest.approx(recorded["loss_total"].item(), rel=1e-5)


def _training_losses(network: SAN, recording, recorded: dict[str, Tensor]) -> Losses:
    """Losses of the recorded batch through the whole network."""
    text = recording.load("text")["text_embed"]
    count = len(_targets(recorded))
    images = network.preprocess([recorded[f"image{i}"].permute(2, 0, 1) for i in range(count)])
    targets = _targets(recorded)
    totals = totals_of([len(t.labels) for t in targets], recording.config.num_queries, 0.1)
    predictions = network(images, network.classifier(text), all_layers=True)
    return _criterion(recorded)(predictions, targets, totals, RecordedDraws(recorded))


def test_gradients_equal_the_recorded_step(recording) -> None:
    recorded, arrays = recording.load("train_criterion"), recording.load("train_step")
    expected = json.loads((recording.path / "train_step.json").read_text())
    network = recording.network()
    optimizer = make_optimizer(network, SANOptimizerConfig())
    losses = _training_losses(network, recording, recorded)
    for name, value in expected["losses"].items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4), name
    sum(losses.values()).backward()
    trained = {
        official_name(name, recording.config.split): parameter
        for name, parameter in network.trainable_parameters().items()
    }
    assert set(trained) == {p["name"] for p in expected["params"]}
    group_of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    largest = max(p["grad_norm"] for p in expected["params"])
    for line in expected["params"]:
        parameter = trained[line["name"]]
        norm = parameter.grad.norm().item()
        assert norm == pytest.approx(line["grad_norm"], rel=1e-3, abs=1e-6 * largest), line["name"]
        group = group_of[id(parameter)]
        assert group["weight_decay"] == line["weight_decay"], line["name"]
        assert group["lr"] == line["lr"], line["name"]
    for key in (k for k in arrays if k.startswith("grad::")):
        found, wanted = trained[key.removeprefix("grad::")].grad, arrays[key]
        error = (found.reshape(wanted.shape) - wanted).norm()
        assert error <= 1e-3 * wanted.norm() + 1e-6 * largest, key
    norm = torch.nn.utils.clip_grad_norm_(list(trained.values()), expected["clip"])
    assert norm.item() == pytest.approx(expected["total_grad_norm_before_clip"], rel=1e-3)
    optimizer.step()
    for key in (k for k in arrays if k.startswith("after::")):
        name = key.removeprefix("after::")
        gradient = arrays[f"grad::{name}"] * expected["clip"] / norm
        clear = gradient.abs() > 1e-6  # the first step of AdamW is lr x sign(gradient)
        found = trained[name].detach().reshape(arrays[key].shape)
        assert torch.allclose(found[clear], arrays[key][clear], atol=2e-6), name


def test_frozen_parts_of_clip_get_no_gradient(recording) -> None:
    network = recording.network()
    make_optimizer(network, SANOptimizerConfig())
    recorded = recording.load("train_criterion")
    sum(_training_losses(network, recording, recorded).values()).backward()
    trained = network.trainable_parameters()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name


@pytest.mark.parametrize("empty", [(0, 1), (1,)])
def test_images_without_labels_give_finite_losses(recording, empty: tuple[int, ...]) -> None:
    recorded = recording.load("train_criterion")
    targets = _targets(recorded)
    for index in empty:
        void = torch.full(recorded[f"gt{index}"].shape, 255)
        targets[index] = targets_of(void, recording.config.num_classes)
    predictions = [
        SANPrediction(p.class_logits.requires_grad_(), p.mask_logits.requires_grad_())
        for p in _predictions(recorded)
    ]
    totals = totals_of([len(t.labels) for t in targets], recording.config.num_queries, 0.1)
    losses = _criterion(recorded)(predictions, targets, totals, PerImageDraws([0, 1]))
    total = sum(losses.values())
    total.backward()
    assert np.isfinite(total.item())
    assert all(p.mask_logits.grad is not None for p in predictions)
    if len(empty) == len(targets):
        assert losses["loss_mask"].item() == losses["loss_dice_0"].item() == 0
