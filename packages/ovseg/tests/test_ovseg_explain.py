"""The pictures of OVSeg's steps come from the running model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from openvocab.methods import available_methods
from openvocab.world import scene, world_vocabulary
from ovseg.explain import crop_pictures, crops_of, explain, look_inside
from ovseg.segmenter import OVSegSegmenter
from ovseg.weights import load_ovseg


@pytest.fixture(scope="module")
def world() -> OVSegSegmenter:
    return load_ovseg("world", device="cpu")


def test_crops_are_what_clip_sees(world, monkeypatch) -> None:
    image = scene(3, "val").image
    seen = []
    adapter = world.model.clip_adapter
    encode = adapter.encode_regions
    monkeypatch.setattr(adapter, "encode_regions", lambda r: seen.append(r) or encode(r))
    world.segment(image, world_vocabulary())
    monkeypatch.undo()
    inside = look_inside(world, image, world_vocabulary())
    valid = inside.found.branches.valid.nonzero()[:, 0].tolist()
    crops = crops_of(world, inside, valid)
    torch.testing.assert_close(crops.images, torch.cat([one.images for one in seen]))
    torch.testing.assert_close(crops.masks, torch.cat([one.masks for one in seen]))
    pictures = crop_pictures(world, crops)
    back = (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) - adapter.pixel_mean) / (
        adapter.pixel_std
    )
    inner = (crops.images * adapter.pixel_std + adapter.pixel_mean).clamp(0, 255)
    again = back * adapter.pixel_std + adapter.pixel_mean
    torch.testing.assert_close(again, inner, atol=0.51, rtol=0)


def test_opinions_are_those_that_vote(world) -> None:
    image = scene(3, "val").image
    before = world.segment(image, world_vocabulary())
    shown = available_methods()["ovseg"].explain(world, image, world_vocabulary())
    after = world.segment(image, world_vocabulary())
    np.testing.assert_array_equal(before.labels, after.labels)
    inside = look_inside(world, image, world_vocabulary())
    painting = world.paint(inside.found, world_vocabulary())
    torch.testing.assert_close(painting.weights, inside.votes.weights)
    masks = inside.found.mask_prob().mean((1, 2))
    importance = inside.votes.weights.amax(1) * masks[inside.votes.rows]
    first = int(inside.votes.rows[importance.argmax()])
    assert inside.order[0] == first
    name = world_vocabulary().words[int(inside.votes.weights[importance.argmax()].argmax())]
    proposals = [one for one in shown if one.group.startswith("Mask proposals")]
    assert proposals[0].title == f"1. {name}"
    titles = [one.title for one in shown if one.group.startswith(f"Proposal 1: {name}")]
    assert titles == ["the region", "the crop that CLIP sees", "both opinions, and their ensemble"]
    assert shown[0].title == "The photo" and shown[-1].title == "The label map"
    for one in shown:
        assert one.picture.dtype == np.uint8 and max(one.picture.shape) < 1000


def test_every_way_of_running_is_explained(world) -> None:
    image = scene(3, "val").image
    weight = world.inference.ensemble_weight
    for changes, words in (
        ({"mode": "demo"}, f"times CLIP's to the power {weight:g}"),
        ({"ensemble_weight": 0.0}, "CLIP decides alone"),
    ):
        other = world.with_inference(replace(world.inference, **changes))
        assert any(words in one.text for one in explain(other, image, world_vocabulary()))
    alone = world.with_inference(replace(world.inference, clip_ensemble=False))
    shown = explain(alone, image, world_vocabulary())
    assert not [one for one in shown if "CLIP sees" in one.title]
    halves = np.zeros((2, *image.shape[:2]), bool)
    halves[0, :64], halves[1, 64:] = True, True
    told = world.with_proposals(lambda seen: halves)
    assert [one for one in explain(told, image, world_vocabulary()) if "alone" in one.text]
