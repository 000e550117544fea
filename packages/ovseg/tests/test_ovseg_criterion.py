"""The recorded losses, matches and gradients of the original's first stage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from openvocab.training.losses import Targets, targets_of, totals_of
from ovseg.criterion import OVSegCriterion
from ovseg.model import OVSeg, Proposals
from ovseg.train_config import OVSegCriterionConfig

CRITERION = OVSegCriterion(OVSegCriterionConfig())


def _layers(recorded) -> list[str]:
    names = [k.removesuffix("__pred_masks") for k in recorded if k.endswith("__pred_masks")]
    return [*sorted(n for n in names if n != "last"), "last"]


def _targets(recorded) -> list[Targets]:
    count = sum(key.startswith("target") and key.endswith("_labels") for key in recorded)
    return [
        Targets(recorded.tensor(f"target{i}_labels"), recorded.tensor(f"target{i}_masks"))
        for i in range(count)
    ]


def _proposals(recorded) -> Proposals:
    layers = _layers(recorded)
    logits = torch.stack([recorded.tensor(f"{n}__pred_logits") for n in layers])
    masks = torch.stack([recorded.tensor(f"{n}__pred_masks") for n in layers])
    return Proposals(logits, logits, masks)


def _totals(targets: list[Targets], queries: int):
    return totals_of([len(t.labels) for t in targets], queries, 0.1)


def test_matches_equal_the_recorded(golden) -> None:
    recorded = golden.arrays("criterion.npz")
    proposals, targets = _proposals(recorded), _targets(recorded)
    for index, name in enumerate(_layers(recorded)):
        matches = CRITERION.match(
            proposals.class_logits[index], proposals.mask_logits[index], targets
        )
        for image, match in enumerate(matches):
            assert match.queries.tolist() == recorded[f"{name}__match{image}_pred"].tolist()
            assert match.targets.tolist() == recorded[f"{name}__match{image}_gt"].tolist()


def test_losses_and_gradients_equal_the_recorded(golden) -> None:
    recorded = golden.arrays("criterion.npz")
    proposals, targets = _proposals(recorded), _targets(recorded)
    for part in (proposals.class_logits, proposals.mask_logits):
        part.requires_grad_()
    losses = CRITERION(proposals, targets, _totals(targets, proposals.class_logits.shape[2]))
    names = [str(n) for n in recorded["weight_names"]]
    weights = dict(zip(names, recorded["weight_values"].tolist(), strict=True))
    expected = {k.removeprefix("loss__"): v for k, v in recorded.items() if k.startswith("loss__")}
    assert losses.keys() == expected.keys() <= weights.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(weights[name] * value.item(), rel=1e-5), name
    total = sum(losses.values())
    assert total.item() == pytest.approx(recorded["total_weighted"].item(), rel=1e-5)
    total.backward()
    for index, name in enumerate(_layers(recorded)):
        for kind, part in (("logits", proposals.class_logits), ("masks", proposals.mask_logits)):
            wanted = recorded.tensor(f"{name}__grad_{kind}")
            assert torch.allclose(part.grad[index], wanted, rtol=1e-3, atol=1e-6), (name, kind)


def test_an_image_without_targets_counts_only_for_classes(golden) -> None:
    recorded = golden.arrays("criterion.npz")
    if "empty_target_loss__loss_ce" not in recorded:
        pytest.skip("not recorded in this set")
    targets = _targets(recorded)
    targets[1] = Targets(targets[1].labels[:0], targets[1].masks[:0])
    last = Proposals(*(part[-1:] for part in _proposals(recorded)))
    losses = CRITERION(last, targets, _totals(targets, last.class_logits.shape[2]))
    weight = {"loss_ce": 1, "loss_mask": 20, "loss_dice": 1}
    for name, factor in weight.items():
        expected = factor * recorded[f"empty_target_loss__{name}"].item()
        assert losses[name].item() == pytest.approx(expected, rel=1e-5), name


def test_a_batch_without_targets_has_mask_losses_of_zero() -> None:
    logits, masks = torch.randn(1, 2, 3, 5), torch.randn(1, 2, 3, 4, 4, requires_grad=True)
    targets = [targets_of(torch.full((16, 16), 255), 4)] * 2
    losses = CRITERION(Proposals(logits, logits, masks), targets, _totals(targets, 3))
    sum(losses.values()).backward()
    assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0
    assert np.isfinite(losses["loss_ce"].item()) and not masks.grad.any()


def test_the_recorded_training_step(golden) -> None:
    from ovseg.task import mark_trainable, stack_targets

    recorded = golden.arrays("train_step.npz")
    model = OVSeg(golden.configs()[0])
    model.load_state_dict(golden.state_dict())
    mark_trainable(model)
    _switch_dropout_off(model)
    model.train()
    images = [recorded.tensor(f"image{i}").permute(2, 0, 1) for i in range(2)]
    targets = [
        Targets(recorded.tensor(f"labels{i}"), recorded.tensor(f"masks{i}")) for i in range(2)
    ]
    targets = stack_targets(targets, model.preprocess(images).shape[-2:])
    classifier = model.clip_adapter.classifier(golden.class_names())
    losses = CRITERION(
        model(images, classifier), targets, _totals(targets, golden.configs()[0].num_queries)
    )
    for key in (k for k in recorded if k.startswith("weighted_loss__")):
        name = key.removeprefix("weighted_loss__")
        assert losses[name].item() == pytest.approx(recorded[key].item(), rel=2e-4), name
    total = sum(losses.values())
    assert total.item() == pytest.approx(recorded["total"].item(), rel=1e-4)
    total.backward()
    _compare_gradients(model, recorded)


def _switch_dropout_off(model: OVSeg) -> None:
    for module in model.modules():
        for name in ("p", "rate", "dropout", "drop_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _compare_gradients(model: OVSeg, recorded) -> None:
    parameters = dict(model.named_parameters())
    names = [str(n) for n in recorded["grad_names"]]
    norms = dict(zip(names, recorded["grad_norms"].tolist(), strict=True))
    frozen = {str(n) for n in recorded["params_without_grad_required"]}
    assert {n for n, p in parameters.items() if not p.requires_grad} == frozen
    assert {n for n, p in parameters.items() if p.requires_grad} == set(names)
    zero = "decoder.layers.0.self_attn.in_proj_weight"  # recorded as rounding noise
    for name, expected in norms.items():
        if zero in name:
            continue
        found = parameters[name].grad.norm().item()
        assert found == pytest.approx(expected, rel=2e-3, abs=1e-5 * max(norms.values())), name
    full = {
        "sem_seg_head.predictor.class_embed.layers": "class_embed_last_w",
        "clip_adapter.non_object_embedding": "non_object_embedding",
        "backbone.patch_embed.proj.weight": "patch_embed_w",
    }
    for prefix, key in full.items():
        name = [n for n in norms if n.startswith(prefix) and not n.endswith("bias")][-1]
        wanted = recorded.tensor(f"grad__{key}")
        error = (parameters[name].grad - wanted).norm()
        assert error <= 2e-3 * wanted.norm(), name
