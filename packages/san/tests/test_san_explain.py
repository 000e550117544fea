"""The pictures of SAN's steps come from the running network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import san.model
from openvocab.methods import available_methods
from openvocab.world import scene, world_vocabulary
from san.explain import explain, look_inside
from san.recognition import pool_bias
from san.segmenter import SANSegmenter, load_san


@pytest.fixture(scope="module")
def world() -> SANSegmenter:
    return load_san("world", device="cpu")


@pytest.mark.parametrize("size", [(128, 128), (70, 128)])
def test_the_bias_is_what_the_network_adds_to_attention(world, monkeypatch, size) -> None:
    image = np.ascontiguousarray(scene(3, "val").image[: size[0], : size[1]])
    given = []
    recognize = san.model.recognize  # type: ignore[attr-defined]

    def spy(visual, blocks, tokens, grid, biases, queries):
        given.append((grid, biases))
        return recognize(visual, blocks, tokens, grid, biases, queries)

    monkeypatch.setattr(san.model, "recognize", spy)
    prediction, geometry = world.predict(image, world_vocabulary())
    (grid, biases) = given[-1]
    inside = look_inside(world, image, world_vocabulary())
    pooled = torch.stack([pool_bias(bias, grid)[0] for bias in biases]).unflatten(-1, grid)
    rows, columns = inside.biases.shape[-2:]
    for cells, axis in ((rows, 0), (columns, 1)):  # padding is left out
        share = geometry.valid[axis] / geometry.padded[axis]
        assert cells / grid[axis] == pytest.approx(share, abs=0.5 / grid[axis])
    np.testing.assert_allclose(inside.biases, pooled[..., :rows, :columns], atol=1e-5)
    class_prob = prediction.class_logits[0].softmax(-1)
    np.testing.assert_allclose(inside.class_prob, class_prob, atol=1e-6)
    masks = prediction.mask_logits[0].sigmoid()
    np.testing.assert_allclose(
        inside.masks, masks[:, : inside.masks.shape[1], : inside.masks.shape[2]], atol=1e-6
    )


def test_the_most_important_proposals_come_first_and_no_object_apart(world) -> None:
    image = scene(3, "val").image
    before = world.segment(image, world_vocabulary())
    shown = available_methods()["san"].explain(world, image, world_vocabulary())
    after = world.segment(image, world_vocabulary())
    np.testing.assert_array_equal(before.labels, after.labels)
    inside = look_inside(world, image, world_vocabulary())
    nothing = inside.class_prob.argmax(axis=1) == inside.class_prob.shape[1] - 1
    proposals = [one for one in shown if one.group.startswith("Mask proposals")]
    assert f"{(~nothing).sum()} of {len(nothing)}" in proposals[0].group
    first = int(np.where(nothing, -1, inside.importance()).argmax())
    name = world_vocabulary().words[int(inside.class_prob[first, :-1].argmax())]
    assert proposals[0].title.startswith(f"1. {name} ")
    rejected = [one for one in shown if "No object" in one.group]
    assert f"{nothing.sum()} of {len(nothing)}" in rejected[0].group
    assert {one.title for one in rejected} <= {f"proposal {i}" for i in np.flatnonzero(nothing)}
    biases = [one.group for one in shown if one.group.startswith("Attention bias")]
    names = [group.partition(": ")[2].rpartition(" ")[0] for group in dict.fromkeys(biases)]
    assert names and len(set(names)) == len(names)  # one proposal for each name
    for one in shown:
        assert one.picture.dtype == np.uint8 and max(one.picture.shape) < 1000


def test_padding_is_not_shown(world) -> None:
    image = np.ascontiguousarray(scene(3, "val").image[:40])
    inside = look_inside(world, image, world_vocabulary())
    height, width = inside.masks.shape[1:]
    assert height / width == pytest.approx(40 / 128, rel=0.2)
    assert all(one.picture.size for one in explain(world, image, world_vocabulary()))
