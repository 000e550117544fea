"""Inputs on which the original crashes, and what they give here; SPEC ovseg 16.1."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from openvocab.errors import InputError
from openvocab.semantic import semantic_scores
from openvocab.vocabulary import Vocabulary
from openvocab.world import open_world
from ovseg._convert import config_from_detectron2
from ovseg.ensemble import Branches, best_proposals, demo_names, ensemble
from ovseg.model import vote
from ovseg.segmenter import ImageBranches, OVSegSegmenter
from ovseg.weights import load_ovseg


@pytest.fixture
def parts(tiny):
    """Model, inference configuration, image, logits and mask probabilities of a recorded case."""
    case = tiny.cases("eval")[0]
    inference = tiny.configs()[1]
    image = case.tensor("image_resized").permute(2, 0, 1)
    classifier = tiny.arrays("text.npz").tensor("classifier")
    return tiny.model(), inference, image, case, classifier


def branches_of(parts, prob, inference):
    model, _, image, case, classifier = parts
    model.clip_adapter.region = inference.region
    return model.branches(image, case.tensor("pred_logits")[0], prob, classifier)


def scores_of(parts, branches, prob, inference):
    """The scores of six names at 30 x 40 pixels, as `OVSegSegmenter` returns them."""
    box = tuple(prob.shape[1:])
    found = ImageBranches(branches, torch.zeros(len(prob)), prob.logit(), box, box)
    segmenter = OVSegSegmenter(parts[0], inference)
    painting = segmenter.paint(found, Vocabulary(tuple("abcdef")))
    return semantic_scores(painting.weights, painting.mask_logits, painting.geometry((30, 40)))


def empty_some(case, rows):
    prob = case.tensor("mask_prob").clone()
    prob[rows] = 0.01
    return prob


def test_no_valid_proposal_leaves_maskformer_to_the_power(parts):
    inference, case = parts[1], parts[3]
    prob = torch.full_like(case.tensor("mask_prob"), 0.01)
    branches = branches_of(parts, prob, inference)
    assert not branches.valid.any() and branches.clip_prob.shape == (0, 6)
    votes = vote(branches, inference, ["a"] * 6)
    expected = branches.class_prob ** (1 - inference.ensemble_weight)
    torch.testing.assert_close(votes.weights, expected)
    assert len(votes.rows) == len(prob)


@pytest.mark.parametrize("mode", ["eval", "demo"])
def test_no_valid_proposal_and_clip_alone_gives_zeros(parts, mode):
    inference = replace(parts[1], ensemble_weight=0.0, mode=mode)
    prob = torch.full_like(parts[3].tensor("mask_prob"), 0.01)
    scores = scores_of(parts, branches_of(parts, prob, inference), prob, inference)
    assert scores.shape == (6, 30, 40) and not scores.any()


def test_demo_with_weight_and_no_valid_proposal_gives_zeros(parts):
    inference = replace(parts[1], ensemble_weight=0.7, mode="demo")
    prob = torch.full_like(parts[3].tensor("mask_prob"), 0.01)
    assert not scores_of(parts, branches_of(parts, prob, inference), prob, inference).any()


def test_one_valid_proposal_equals_its_row_among_many(parts):
    model, inference, image, case, _ = parts
    model.clip_adapter.region = inference.region
    several, _ = model.clip_adapter.encode_proposals(image, case.tensor("mask_prob"))
    others = [i for i in range(len(case["mask_prob"])) if i != 3]
    alone, valid = model.clip_adapter.encode_proposals(image, empty_some(case, others))
    assert valid.nonzero().tolist() == [[3]]
    torch.testing.assert_close(alone, several[3:4], atol=1e-5, rtol=0)


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_demo_selects_among_valid_proposals_only(parts, weight):
    inference = replace(parts[1], ensemble_weight=weight, mode="demo")
    prob = empty_some(parts[3], [0, 4, 7])
    branches = branches_of(parts, prob, inference)
    assert branches.valid.sum() == len(prob) - 3
    votes = vote(branches, inference, ["a"] * 6)
    assert branches.valid[votes.rows].all()
    assert not set(votes.rows.tolist()) & {0, 4, 7}
    assert scores_of(parts, branches, prob, inference).any()


def test_demo_without_clip_chooses_among_all_proposals(parts):
    inference = replace(parts[1], clip_ensemble=False, mode="demo")
    branches = branches_of(parts, parts[3].tensor("mask_prob"), inference)
    votes = vote(branches, inference, ["a"] * 6)
    assert sorted(votes.rows.tolist()) == sorted(set(branches.class_prob.argmax(0).tolist()))
    torch.testing.assert_close(votes.weights, branches.class_prob[votes.rows])


def test_weight_zero_in_evaluation_uses_valid_proposals_only(parts):
    inference = replace(parts[1], ensemble_weight=0.0)
    branches = branches_of(parts, empty_some(parts[3], [2, 5]), inference)
    votes = vote(branches, inference, ["a"] * 6)
    assert votes.rows.tolist() == [0, 1, 3, 4, 6, 7, 8, 9]
    torch.testing.assert_close(votes.weights, branches.clip_prob)


def test_unseen_proposals_count_as_one():
    branches = Branches(
        torch.tensor([[0.2, 0.3], [0.4, 0.1]]),
        torch.tensor([[0.9, 0.1]]),
        torch.tensor([False, True]),
    )
    votes = ensemble(branches, 0.5)
    expected = torch.tensor([[0.2**0.5, 0.3**0.5], [0.36**0.5, 0.01**0.5]])
    torch.testing.assert_close(votes.weights, expected)


def test_others_may_not_choose_of_two_names():
    branches = Branches(torch.zeros(2, 2), torch.eye(2), torch.ones(2, dtype=torch.bool))
    votes = ensemble(branches, 0.0)
    assert best_proposals(votes, ["cat", "others"]).rows.tolist() == [0]
    assert best_proposals(votes, ["cat", "dog"]).rows.tolist() == [0, 1]


def test_a_single_name_gets_others_without_changing_the_callers_list(tiny):
    names = ["cat"]
    assert demo_names(names) == ("cat", "others") and names == ["cat"]
    segmenter = OVSegSegmenter(tiny.model(), tiny.demo_config())
    found = segmenter.segment(tiny.cases("eval")[0]["image"], names)
    assert found.vocabulary.names == ("cat", "others") and names == ["cat"]


def test_a_single_name_is_found_by_a_clip_that_does_not_know_others() -> None:
    image = open_world("val", 1).samples[0].image
    world = load_ovseg("world", device="cpu")
    demo = world.with_inference(replace(world.inference, mode="demo"))
    with pytest.warns(UserWarning, match="does not know the word 'others'"):
        found = demo.segment(image, ["duck"])
    assert found.vocabulary.names == ("duck",) and set(np.unique(found.labels)) <= {-1, 0}
    with warnings.catch_warnings(action="error"):  # it is said once
        demo.segment(image, ["duck"])
    demo = world.with_inference(demo.inference)
    with (
        pytest.warns(UserWarning, match="others"),
        pytest.raises(InputError, match="'xylophone'"),
    ):
        demo.segment(image, ["xylophone"])


def test_blank_image_in_demo_is_nothing_everywhere(tiny):
    inference = tiny.demo_config()
    region = replace(inference.region, mask_threshold=1.0)  # nothing is above
    segmenter = OVSegSegmenter(tiny.model(), replace(inference, region=region))
    found = segmenter.segment(np.zeros((20, 30, 3), np.uint8), ["cat", "dog"], return_scores=True)
    assert (found.labels == -1).all() and not found.scores.any()


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (300, 2)])
def test_images_of_extreme_shapes(tiny, size):
    segmenter = OVSegSegmenter(tiny.model(), tiny.configs()[1])
    found = segmenter.segment(np.full((*size, 3), 90, np.uint8), ["cat", "dog"])
    assert found.labels.shape == size and set(np.unique(found.labels)) <= {0, 1}


def test_max_regions_says_what_it_drops(tiny, capsys):
    inference = tiny.configs()[1]
    region = replace(inference.region, max_regions=4)
    segmenter = OVSegSegmenter(tiny.model(), replace(inference, region=region))
    image = tiny.cases("eval")[0]["image"]
    vocabulary = segmenter.vocabulary(["cat", "dog"])
    found = segmenter.look(segmenter.resize(image), vocabulary)
    assert found.branches.valid.sum() == 4
    kept = set(found.branches.class_prob.amax(1).topk(4).indices.tolist())
    assert set(found.branches.valid.nonzero().flatten().tolist()) == kept
    assert "6 of 10 proposals are not shown to CLIP" in capsys.readouterr().out
    assert segmenter.describe()["max_regions"] == 4


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("CLIP_ADAPTER.REGION_RESIZED", False, "REGION_RESIZED"),
        ("MASK_FORMER.TEST.PANOPTIC_ON", True, "PANOPTIC_ON"),
        ("MASK_FORMER.ENC_LAYERS", 2, "ENC_LAYERS"),
        ("META_ARCHITECTURE", "MaskRCNN", "META_ARCHITECTURE"),
        ("BACKBONE.NAME", "VGG", "BACKBONE"),
        ("CLIP_ADAPTER.MASK_THR", 1.5, "mask_threshold"),
    ],
)
def test_options_that_cannot_run_are_refused(tiny, key, value, word):
    import yaml

    data = yaml.safe_load(tiny.json("config.json")["cfg_yaml"])
    *path, last = key.split(".")
    section = data["MODEL"]
    for part in path:
        section = section[part]
    section[last] = value
    with pytest.raises(InputError, match=word):
        config_from_detectron2(data, clip=tiny.configs()[0].clip)
