"""Swin and ResNet against independent formulations, and against torchvision where they agree."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from ovseg.config import ResNetConfig, SwinConfig
from ovseg.resnet import Bottleneck, ResNet
from ovseg.swin import SwinTransformer, partition, relative_position_index, shift_mask, unpartition
from ovseg.transformer_decoder import sine_position


def copy_norm(target, source):
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(target, name).copy_(getattr(source, name))


def copy_block(target, source):
    for i in (1, 2, 3):
        conv = getattr(target, f"conv{i}")
        conv.weight.copy_(getattr(source, f"conv{i}").weight)
        copy_norm(conv.norm, getattr(source, f"bn{i}"))
    if source.downsample is not None:
        target.shortcut.weight.copy_(source.downsample[0].weight)
        copy_norm(target.shortcut.norm, source.downsample[1])


@torch.no_grad()
def test_resnet_stages_equal_torchvision():
    """res3 and res4 have the structure of torchvision's layer2 and layer3."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50().eval()
    for norm in (m for m in theirs.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 1.5)
    ours = ResNet(ResNetConfig(depths=(3, 4, 6, 3))).eval()
    for name, layer in (("res3", theirs.layer2), ("res4", theirs.layer3)):
        for target, source in zip(getattr(ours, name), layer, strict=True):
            copy_block(target, source)
    x = torch.randn(1, 256, 16, 12)
    torch.testing.assert_close(
        nn.Sequential(ours.res3, ours.res4)(x),
        nn.Sequential(theirs.layer2, theirs.layer3)(x),
        atol=1e-4,
        rtol=1e-4,
    )


@torch.no_grad()
def test_dilated_bottleneck_equals_torchvision():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet.Bottleneck(64, 16, dilation=4).eval()
    ours = Bottleneck(64, 64, stride=1, dilation=4)
    copy_block(ours, theirs)
    x = torch.randn(1, 64, 13, 9)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_resnet_shapes_dilations_and_frozen_stages():
    model = ResNet(ResNetConfig())
    features = model(torch.zeros(1, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [
        (1, 256, 16, 24),
        (1, 512, 8, 12),
        (1, 1024, 4, 6),
        (1, 2048, 2, 3),
    ]
    assert [block.conv2.dilation[0] for block in model.res5] == [1, 2, 4]
    first = model.get_submodule("res5.0")
    assert first.conv2.stride == (2, 2) and first.conv1.stride == (1, 1)
    frozen = {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "res2"}


@torch.no_grad()
def test_swin_equals_torchvision():
    """torchvision's Swin is an independent implementation of the same network."""
    torch.manual_seed(0)
    theirs = torchvision.models.swin_transformer.SwinTransformer(
        [4, 4], 16, [2, 2], [2, 4], [4, 4], stochastic_depth_prob=0.0
    ).eval()
    ours = SwinTransformer(SwinConfig(16, (2, 2), (2, 4), 4, 0.0)).eval()
    ours.patch_embed.proj.load_state_dict(theirs.features[0][0].state_dict())
    ours.patch_embed.norm.load_state_dict(theirs.features[0][2].state_dict())
    for stage, layer in ((0, theirs.features[1]), (1, theirs.features[3])):
        for target, source in zip(ours.layers[stage].blocks, layer, strict=True):
            target.norm1.load_state_dict(source.norm1.state_dict())
            target.norm2.load_state_dict(source.norm2.state_dict())
            table = source.attn.relative_position_bias_table.normal_()
            target.attn.relative_position_bias_table.copy_(table)
            target.attn.qkv.load_state_dict(source.attn.qkv.state_dict())
            target.attn.proj.load_state_dict(source.attn.proj.state_dict())
            target.mlp.fc1.load_state_dict(source.mlp[0].state_dict())
            target.mlp.fc2.load_state_dict(source.mlp[3].state_dict())
    merge = theirs.features[2]
    ours.layers[0].downsample.reduction.load_state_dict(merge.reduction.state_dict())
    ours.layers[0].downsample.norm.load_state_dict(merge.norm.state_dict())
    images = torch.randn(2, 3, 64, 96)  # both maps are multiples of the window
    expected = F.layer_norm(theirs.features(images), (32,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours(images)[1], expected, atol=1e-5, rtol=1e-4)


def test_window_attention_gives_the_bias_table_a_gradient():
    model = SwinTransformer(SwinConfig(16, (2, 1), (2, 4), 4, 0.1)).train()
    sum(f.square().sum() for f in model(torch.randn(2, 3, 40, 56))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_windows_come_back_together():
    x = torch.arange(2 * 8 * 12 * 3.0).view(2, 8, 12, 3)
    windows = partition(x, 4)
    assert windows.shape == (12, 16, 3)
    assert torch.equal(unpartition(windows, 4, (8, 12), 2), x)


def test_relative_positions_depend_on_the_offset_only():
    index = relative_position_index(3)
    assert index.shape == (9, 9) and index.min() == 0 and index.max() == 24
    assert (index.diagonal() == 12).all()
    assert index[0, 1] == index[3, 4] and index[0, 3] != index[0, 1]


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (7, 12)])
def test_shift_mask_separates_what_the_roll_joined(size):
    window, shift = 4, 2
    padded = [-(-s // window) * window for s in size]
    rows, columns = torch.meshgrid(*(torch.arange(p) for p in padded), indexing="ij")
    place = torch.stack([rows, columns], -1)[None].roll((-shift, -shift), (1, 2))
    tokens = partition(place, window)  # where each token of each window came from
    distance = (tokens[:, :, None] - tokens[:, None]).abs().amax(-1)
    mask = shift_mask(*size, window, shift)  # type: ignore[call-arg]
    assert torch.equal(mask == 0, distance < window)


def test_a_single_window_is_shifted_all_the_same():
    mask = shift_mask(3, 3, 4, 2)  # SPEC ovseg 17.2
    assert mask.shape == (1, 16, 16) and mask[0, 0].tolist()[:4] == [0, 0, -100, -100]


def test_sine_position():
    position = sine_position(2, 3, 8)
    assert position.shape == (6, 8)
    y = 2 * torch.pi * torch.tensor([1.0, 2.0]) / (2 + 1e-6)
    torch.testing.assert_close(position[0, 0], y[0].sin())
    torch.testing.assert_close(position[3, 1], y[1].cos())
    torch.testing.assert_close(position[0, 2], (y[0] / 100).sin())
