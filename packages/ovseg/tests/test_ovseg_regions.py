"""Region extraction equals cropping and torch's own resizing, one region at a time."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ovseg.regions import binarize, expand_boxes, extract_regions, tight_boxes


def one_by_one(image, masks, boxes, size, background):
    regions, region_masks = [], []
    for mask, (x1, y1, x2, y2) in zip(masks.float(), boxes.tolist(), strict=True):
        blended = image * mask + (1 - mask) * background[:, None, None]
        crop, cut = blended[None, :, y1:y2, x1:x2], mask[None, None, y1:y2, x1:x2]
        regions.append(F.interpolate(crop, (size, size), mode="bicubic", align_corners=False))
        region_masks.append(F.interpolate(cut, (size, size), mode="nearest"))
    return torch.cat(regions), torch.cat(region_masks)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 5),
    st.integers(4, 40),
    st.booleans(),
    st.floats(1, 3),
    st.integers(0, 10_000),
)
def test_equals_cropping_and_interpolating(height, width, count, size, soft, ratio, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(3, height, width, generator=generator)
    prob = torch.rand(count, height, width, generator=generator)
    binary = prob > torch.rand(count, 1, 1, generator=generator).sqrt()
    binary[:, seed % height, seed % width] = True
    boxes = expand_boxes(tight_boxes(binary), ratio, (height, width))
    masks = prob if soft else binary
    background = torch.randn(3, generator=generator)
    got = extract_regions(image, masks, boxes, size=size, background=background)
    regions, region_masks = one_by_one(image, masks, boxes, size, background)
    torch.testing.assert_close(got.images, regions, atol=2e-4, rtol=0)
    assert torch.equal(got.masks, region_masks)


def test_nearest_is_torchs_legacy_rule_for_every_length():
    size = 224
    for length in range(1, 700):
        mask = torch.zeros(1, 1, length, dtype=torch.bool)
        mask[0, 0, ::2] = True
        mask[0, 0, -1] = True
        image = torch.zeros(3, 1, length)
        box = torch.tensor([[0, 0, length, 1]])
        got = extract_regions(image, mask, box, size=size, background=torch.zeros(3)).masks
        expected = F.interpolate(mask[None].float(), (1, size), mode="nearest")
        assert torch.equal(got[:, :, :1], expected), length
        if length > 40:  # every length once is enough for short ones
            size = 223 if size == 224 else 224


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 10_000))
def test_tight_boxes_hold_the_mask_and_nothing_more(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(1, height, width, generator=generator) > 0.9
    mask[0, seed % height, seed // 7 % width] = True
    x1, y1, x2, y2 = tight_boxes(mask)[0].tolist()
    assert mask[0, y1:y2, x1:x2].sum() == mask.sum()
    inside = mask[0, y1:y2, x1:x2]
    assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_boxes_grow_about_their_center_and_stay_inside():
    boxes = torch.tensor([[10, 20, 20, 40], [0, 0, 5, 5]])
    assert torch.equal(expand_boxes(boxes, 1.0, (100, 100)), boxes)
    grown = expand_boxes(boxes, 1.5, (100, 18))
    assert grown.tolist() == [[7, 15, 18, 45], [0, 0, 6, 6]]


def test_threshold_is_strict():
    prob = torch.tensor([0.4, 0.5]).view(2, 1, 1)
    binary, valid = binarize(prob, 0.4)
    assert valid.tolist() == [False, True] and binary.flatten().tolist() == [False, True]
