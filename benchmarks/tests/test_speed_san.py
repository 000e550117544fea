"""SAN beside its plain formulation and its products alone: equal results, honest counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.speed import formulations, roofline
from benchmarks.speed.plain_san import PlainSAN

from san.config import san_world
from san.model import SAN


@pytest.fixture(scope="module")
def networks() -> tuple[SAN, PlainSAN]:
    """A SAN with random weights and a strong attention bias, and the plain one with the same."""
    torch.manual_seed(0)
    ours, plain = SAN(san_world()), PlainSAN(san_world())
    scaling = ours.side_adapter.mask_decoder.bias_scaling
    assert scaling is not None
    torch.nn.init.constant_(scaling.weight, 5)
    torch.nn.init.constant_(scaling.bias, -2)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def test_the_plain_formulation_is_the_same_network(networks: tuple[SAN, PlainSAN]) -> None:
    ours, _ = networks
    images = torch.randn(2, 3, 64, 96)
    classes = torch.randn(4, ours.config.clip.embed_dim)
    found = [network(images, classes, all_layers=True) for network in networks]
    assert len(found[0]) == len(ours.config.supervised)
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine.class_logits, other.class_logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mine.mask_logits, other.mask_logits, atol=1e-5, rtol=1e-5)
    for network, predictions in zip(networks, found, strict=True):
        network.zero_grad()
        sum(p.class_logits.square().sum() for p in predictions).backward()
    gradients = [dict(network.named_parameters()) for network in networks]
    for name, parameter in gradients[0].items():
        if parameter.grad is not None:
            other = gradients[1][name].grad
            scale = float(parameter.grad.abs().max()) + 1e-6
            assert float((parameter.grad - other).abs().max()) < 1e-3 * scale, name


def test_all_formulations_paint_the_same_labels() -> None:
    works = formulations.image_works(san_world(), 96, 7, "cpu")
    plain = works["plain"]().numpy()
    assert len(np.unique(plain)) > 3
    for precision in formulations.PRECISIONS:
        assert (works[precision]().labels == plain).mean() > 0.999


def test_the_products_of_a_stage_are_all_that_was_counted() -> None:
    stages = roofline.san_stages(san_world(), 64, "bf16", "cpu")
    parts = {}
    for name, stage in stages.items():
        with torch.inference_mode(), roofline.ProductRecorder() as recorder:
            stage()
        with torch.inference_mode(), roofline.ProductRecorder() as again:
            roofline._run(recorder.products)
        assert recorder.total == again.total > 0
        parts[name] = recorder.total
    assert parts["network"] == parts["shallow"] + parts["side"] + parts["deep"]
