from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from car.affinity import box_mask, refine, salient_boxes
from car.mask_proposals import ImageFeatures, MaskProposalGenerator, prepare, rounded_positions


def test_positions_equal_the_recording(golden, recorded_clips) -> None:
    visual = recorded_clips[0].visual
    own = visual.positional_embedding
    with np.load(golden / "unit_posemb.npz") as file:
        table = torch.from_numpy(file["embed"])
        side = round((len(table) - 1) ** 0.5)
        assert side == visual.config.grid_size
        visual.positional_embedding = torch.nn.Parameter(table, requires_grad=False)
        try:
            for key in file.files:
                if key.startswith("out_"):
                    h, w = map(int, key.removeprefix("out_").split("x"))
                    found = rounded_positions(visual, (h, w))[:, :8].numpy()
                    # Within one step of fp16, where the last bit of the resize decides.
                    np.testing.assert_allclose(found, file[key], rtol=1e-3, atol=1e-7)
                    assert (found == file[key]).mean() > 0.99
        finally:
            visual.positional_embedding = own


@pytest.mark.parametrize("index", range(40))
def test_boxes_equal_the_recording(golden, index: int) -> None:
    with np.load(golden / "unit_boxes.npz") as file:
        score_map = file[f"{index}.scoremap"]
        boxes = salient_boxes(score_map, float(file[f"{index}.threshold"]), faithful=True)
        np.testing.assert_array_equal(boxes, file[f"{index}.boxes"])
        np.testing.assert_array_equal(box_mask(boxes, score_map.shape), file[f"{index}.mask"])


def test_boxes_reach_the_border_unless_faithful() -> None:
    score_map = np.zeros((4, 5), np.float32)
    score_map[2:, 3:] = 1
    inside = box_mask(salient_boxes(score_map, 0.5), score_map.shape)
    np.testing.assert_array_equal(inside, score_map > 0)
    old = box_mask(salient_boxes(score_map, 0.5, faithful=True), score_map.shape)
    assert old.sum() == 1


@pytest.mark.parametrize("index", [0, 1, 2])
def test_gradients_equal_the_recording(golden, recorded_clips, index: int) -> None:
    with np.load(golden / "unit_gradcam.npz") as file:
        data = {k.partition(".")[2]: file[k] for k in file.files if k.startswith(f"{index}.")}
    proposer = MaskProposalGenerator(recorded_clips[0])
    tokens = torch.from_numpy(data["tokens"]).transpose(0, 1)
    feature = proposer.mean_feature(tokens)
    count, *grid = data["cam"].shape
    activation = feature.activation[0, 1:].T
    np.testing.assert_allclose(activation.reshape(1, -1, *grid), data["act"], atol=1e-5)
    image = ImageFeatures((1, 1), tuple(grid), feature, torch.eye(grid[0] * grid[1]))
    text = F.normalize(torch.from_numpy(data["text"]), dim=-1)
    names, background = text[:count], text[count:]
    probability, gradients = proposer.gradients(feature, names, background)
    np.testing.assert_allclose(probability, data["prob"][0, :count], atol=1e-5)
    recorded = np.stack([data[f"grad{name}"][0].mean(axis=(1, 2)) for name in range(count)])
    assert np.abs(recorded).max() > 1e-6
    np.testing.assert_allclose(gradients, recorded, atol=1e-5 * np.abs(recorded).max())
    maps = proposer.propose(image, names, background, 0.4, faithful=True)
    np.testing.assert_allclose(maps.activation, data["cam"], atol=1e-5)


def test_first_step_equals_the_recording(golden, recorded_clips, case_name: str) -> None:
    proposer = MaskProposalGenerator(recorded_clips[0])
    with np.load(golden / f"case_{case_name}.npz") as file:
        image = proposer.encode(file["image"])
        np.testing.assert_array_equal(prepare(file["image"]), file["s0.vit_input"])
        tokens = file["s0.tokens_before_last_block"][:, 0]
        np.testing.assert_allclose(image.feature.tokens[0], tokens, atol=3e-5, rtol=1e-5)
        activation = image.feature.activation[0, 1:].T.reshape(file["s0.act0"].shape)
        np.testing.assert_allclose(activation, file["s0.act0"], atol=1e-5)


def test_refining_from_right_to_left_equals_the_matrix_product() -> None:
    generator = torch.Generator().manual_seed(0)
    affinity = torch.rand(12, 12, generator=generator)
    maps = torch.rand(3, 12, generator=generator)
    sources = torch.rand(3, 12, generator=generator) > 0.5
    half = (affinity + affinity.T) / 2
    expected = [((half @ half) * s) @ m for m, s in zip(maps, sources, strict=True)]
    torch.testing.assert_close(refine(affinity, maps, sources), torch.stack(expected))


def test_pieces_do_not_change_maps(photo, tiny_clips, monkeypatch) -> None:
    proposer = MaskProposalGenerator(tiny_clips[0])
    names = F.normalize(torch.randn(5, 32, generator=torch.Generator().manual_seed(3)), dim=-1)
    whole = proposer.propose(proposer.encode(photo), names, names[:0], 0.4)
    monkeypatch.setattr("car.mask_proposals.BUDGET", 500)
    pieces = proposer.propose(proposer.encode(photo), names, names[:0], 0.4)
    np.testing.assert_allclose(np.stack(pieces.proposals), whole.proposals, atol=1e-4)
    assert max(mask.max() for mask in whole.proposals) > 0.5


def test_76_patches_are_as_good_as_any(tiny_clips) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (4 * 16, 19 * 16, 3), dtype=np.uint8)
    proposer = MaskProposalGenerator(tiny_clips[0])
    features = proposer.encode(image)
    assert features.grid == (4, 19)
    names = F.normalize(torch.randn(2, 32), dim=-1)
    masks = proposer.propose(features, names, names, 0.4).proposals
    assert [mask.shape for mask in masks] == [(64, 304)] * 2
