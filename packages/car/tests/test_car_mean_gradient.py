"""The written-out gradient against automatic differentiation of the same forward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from car.mask_proposals import MaskProposalGenerator
from car.mean_gradient import MeanFeature
from openvocab.clip.model import CLIP, Block


def make_block(width: int, heads: int, activation: str) -> tuple[Block, nn.LayerNorm]:
    block, after = Block(width, heads, 2 * width, activation), nn.LayerNorm(width)
    for parameter in (*block.parameters(), *after.parameters()):
        if parameter.dim() == 1:  # layer norms and biases are plain until they are trained
            nn.init.normal_(parameter, mean=0.5, std=0.5)
        else:
            nn.init.normal_(parameter, std=width**-0.5)
    return block, after


def differentiated(feature: MeanFeature, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value (D,) and its mean gradients (K, D) by automatic differentiation."""
    block = feature.block
    with torch.enable_grad():
        leaf = feature.activation.detach().requires_grad_()
        out = block.feed_forward(feature.tokens + block.attn(leaf))
        value = feature.ln_post(out)[0, 1:].mean(dim=0)
        answers = [
            torch.autograd.grad(value @ direction, leaf, retain_graph=True)[0]
            for direction in directions
        ]
    return value.detach(), torch.cat(answers)[:, 1:].mean(dim=1)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize(
    ("length", "width", "heads", "names"),
    [(2, 8, 1, 1), (10, 16, 4, 3), (65, 24, 3, 40), (17, 32, 32, 5)],
)
@torch.no_grad()
def test_it_equals_automatic_differentiation(
    length: int, width: int, heads: int, names: int, activation: str, monkeypatch
) -> None:
    torch.manual_seed(length)
    block, after = make_block(width, heads, activation)
    tokens = 3 * torch.randn(1, length, width)
    directions = torch.randn(names, width)
    feature = MeanFeature(block, after, tokens, block.ln_1(tokens))
    value, expected = differentiated(feature, directions)
    torch.testing.assert_close(feature.value, value)
    found = feature.mean_gradients(directions)
    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * largest)
    for budget in (1, 3 * length, 5 * 2 * width * width):
        monkeypatch.setattr("car.mean_gradient.BUDGET", budget)
        in_pieces = MeanFeature(block, after, tokens, block.ln_1(tokens))
        again = in_pieces.mean_gradients(directions)
        torch.testing.assert_close(again, found, rtol=0, atol=1e-6 * largest)


def of_names(
    clip: CLIP, feature: MeanFeature, names: Tensor, background: Tensor, together: bool
) -> tuple[Tensor, Tensor]:
    """Return probabilities and mean gradients of names by automatic differentiation."""
    scale = clip.logit_scale.exp()

    def probabilities(value: Tensor) -> Tensor:
        seen = F.normalize(value @ clip.visual.proj, dim=-1)
        logits, rivals = scale * (names @ seen), scale * (background @ seen)
        if together:
            return torch.cat([logits, rivals]).softmax(dim=0)[: len(names)]
        return torch.cat([logits[:, None], rivals.expand(len(names), -1)], 1).softmax(1)[:, 0]

    with torch.enable_grad():
        directions = torch.func.jacrev(probabilities)(feature.value)
    return probabilities(feature.value), differentiated(feature, directions)[1]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("rivals", [0, 1, 7])
@torch.no_grad()
def test_probabilities_are_differentiated_too(tiny_clips, together: bool, rivals: int) -> None:
    clip = tiny_clips[0]
    proposer, width = MaskProposalGenerator(clip), clip.visual.config.width
    generator = torch.Generator().manual_seed(rivals)
    tokens = torch.randn(1, 21, width, generator=generator)
    texts = F.normalize(torch.randn(5 + rivals, 32, generator=generator), dim=-1)
    names, background = texts[:5], texts[5:]
    feature = proposer.mean_feature(tokens)
    expected = of_names(clip, feature, names, background, together)
    found = proposer.gradients(feature, names, background, together=together)
    torch.testing.assert_close(found[0], expected[0])
    atol = 1e-5 * float(expected[1].abs().max())
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=atol)
    some = proposer.gradients(feature, names, background, together=together, chosen=[3, 1])
    torch.testing.assert_close(some[1], found[1][[3, 1]], rtol=0, atol=1e-9 + atol)


@torch.no_grad()
def test_a_name_without_rivals_has_no_gradient(tiny_clips) -> None:
    """Its probability is 1 whatever the image: exactly, or its map would be noise made large."""
    proposer = MaskProposalGenerator(tiny_clips[0])
    feature = proposer.mean_feature(torch.randn(1, 21, tiny_clips[0].visual.config.width))
    text = F.normalize(torch.randn(1, 32), dim=-1)
    for together in (True, False):
        found = proposer.gradients(feature, text, text[:0], together=together)
        assert found[0] == 1 and not found[1].any()
