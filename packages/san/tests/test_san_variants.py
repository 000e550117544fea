"""Switches that the two recorded sets do not use, against a plain reading of the specification."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from openvocab.clip import CLIPConfig, TextConfig, VisionConfig
from openvocab.clip.model import Block
from san import SAN, SANConfig
from san.recognition import recognize

CLIP = CLIPConfig(
    embed_dim=32,
    vision=VisionConfig(image_size=32, patch_size=8, width=48, layers=5, heads=4, mlp_width=96),
    text=TextConfig(context_length=77, vocab_size=99, width=32, layers=1, heads=2, mlp_width=64),
    activation="gelu",
)
BASE = SANConfig(
    clip=CLIP,
    split=3,
    fusion=((0, 0), (2, 1), (3, 2)),
    side_width=24,
    side_depth=3,
    side_heads=2,
    side_image_size=64,
    num_queries=7,
    supervised=(2, 3),
    bias_heads=4,
    embed_channels=16,
    mlp_channels=20,
    num_classes=5,
)


def network(**changes: object) -> SAN:
    torch.manual_seed(0)
    return SAN(replace(BASE, **changes)).eval().requires_grad_(False)


def recognize_with_full_mask(
    san: SAN, tokens: torch.Tensor, grid: tuple[int, int], biases: list[torch.Tensor]
) -> torch.Tensor:
    """SPEC san 5 to the letter: the full (Q + 1 + h * w)^2 additive mask."""
    queries, heads = san.config.num_queries, CLIP.vision.heads
    x = torch.cat([tokens[:, :1].expand(-1, queries, -1), tokens], dim=1)
    total = x.shape[1]
    for index, block in enumerate(san.deep_blocks):
        bias = biases[index if len(biases) > 1 else 0]
        pooled = F.adaptive_max_pool2d(bias.flatten(1, 2), grid)
        pooled = pooled.unflatten(1, bias.shape[1:3]).expand(-1, heads, -1, -1, -1)
        mask = torch.zeros(len(x), heads, total, total)
        mask[..., :queries] = -100
        mask[:, :, range(queries), range(queries)] = 0
        mask[:, :, :queries, queries] = -100
        mask[:, :, :queries, queries + 1 :] = pooled.flatten(3)
        assert isinstance(block, Block)
        x = block(x, mask)
    return F.normalize(san.clip.visual.project(x[:, :queries]), dim=-1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias_heads": 1},
        {"bias_layers": 2},
        {"bias_heads": 1, "bias_layers": 2, "rescale_bias": False},
        {"supervised": (1, 2, 3), "mlp_layers": 2},
        {"supervised": (2,)},
        {"fusion": ((1, 3),), "asymmetric_input": False},
        {"clip_resolution": 0.7},
    ],
)
def test_recognition_equals_the_full_mask(changes: dict) -> None:
    san = network(**changes)
    images = torch.randn(2, 3, 64, 96)
    features, tokens, grid = san.clip_features(images)
    decoded = san.side_adapter(images, features, grid, all_layers=True)
    assert len(decoded) == len(san.config.supervised)
    for _, biases in decoded:
        expected = recognize_with_full_mask(san, tokens, grid, biases)
        ours = recognize(
            san.clip.visual, san.deep_blocks, tokens, grid, biases, san.config.num_queries
        )
        assert (ours - expected).abs().max() < 1e-5


def test_bias_is_the_product_with_the_features_of_every_head() -> None:
    """The rearranged product against the features that the paper describes."""
    san = network(bias_layers=2)
    decoder = san.side_adapter.mask_decoder
    query, patches = torch.randn(2, 7, 24), torch.randn(2, 12, 24)
    _, biases = decoder(query, patches, (3, 4))
    q = decoder.query_mlp(query)
    features = decoder.attn_mlp(patches).unflatten(-1, (2, 4, -1))  # layer, head, channel
    plain = torch.einsum("bqc,blnhc->nbhql", q, features)
    plain = plain * decoder.bias_scaling.weight.item() + decoder.bias_scaling.bias.item()
    for bias, expected in zip(biases, plain, strict=True):
        assert torch.allclose(bias.flatten(3), expected, atol=1e-5)


def test_auxiliary_layers_do_not_change_the_last() -> None:
    san = network(supervised=(1, 3))
    images, classes = torch.randn(1, 3, 64, 64), torch.randn(6, 32)
    first, last = san(images, classes, all_layers=True)
    (alone,) = san(images, classes)
    assert torch.equal(alone.mask_logits, last.mask_logits)
    assert torch.equal(alone.class_logits, last.class_logits)
    assert not torch.equal(first.mask_logits, last.mask_logits)


def test_positions_of_a_grid_with_the_same_number_of_cells_stay_in_raster_order() -> None:
    vit = network().side_adapter.vit_model
    assert vit.positions((2, 8)) is vit.pos_embed  # 16 cells, as the native 4 x 4
    assert vit.positions((4, 8)).shape == (1, 32, 24)


def test_clip_input_floors_the_size_and_samples_by_the_factor() -> None:
    san = network(clip_resolution=0.7)
    assert san.clip_input(torch.zeros(1, 3, 672, 1440)).shape == (1, 3, 470, 1007)
    ramp = torch.arange(672.0).expand(1, 3, 8, 672)
    row = san.clip_input(ramp)[0, 0, 0]
    expected = (torch.arange(470) + 0.5) / 0.7 - 0.5
    assert (row - expected).abs()[1:-1].max() < 1e-3


def test_gradients_reach_exactly_what_is_trained() -> None:
    torch.manual_seed(0)
    san = SAN(BASE).requires_grad_(False)
    trained = san.trainable_parameters()
    for parameter in trained.values():
        parameter.requires_grad_(True)
    predictions = san(
        torch.randn(1, 3, 64, 64), san.classifier(F.normalize(torch.randn(5, 32))), all_layers=True
    )
    sum(
        p.class_logits.square().mean() + p.mask_logits.square().mean() for p in predictions
    ).backward()
    assert all(parameter.grad is not None for parameter in trained.values())
    others = {n: p for n, p in san.named_parameters() if n not in trained}
    assert others and all(p.grad is None for p in others.values())
