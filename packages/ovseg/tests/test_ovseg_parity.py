"""The recordings, in three steps: image to masks, masks to scores, image to scores.

Thresholding is discontinuous, so the strict half starts from the recorded mask probabilities.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from openvocab.semantic import semantic_scores
from openvocab.vocabulary import Vocabulary
from ovseg.ensemble import demo_names
from ovseg.mask_clip import LOGIT_SCALE, patch_masks
from ovseg.model import mask_probability, vote
from ovseg.regions import binarize, tight_boxes
from ovseg.segmenter import ImageBranches, OVSegSegmenter, Painting

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def with_region(model, region):
    model.clip_adapter.region = region
    return model


def network_image(case):
    return case.tensor("image_resized").permute(2, 0, 1)


def labels_of(scores):
    labels = scores.argmax(0).numpy()
    labels[scores[0].numpy() == 0] = 255
    return labels


def vocabulary_of(names):
    return Vocabulary(tuple(names))


def painted(segmenter, branches, prob, names):
    """Let the segmenter paint what both branches say, from recorded mask probabilities."""
    box = tuple(prob.shape[1:])
    logits = prob.logit().clamp(-200, 200)  # whose sigmoid gives the probabilities back
    found = ImageBranches(branches, torch.zeros(len(prob)), logits, box, box)
    return segmenter.paint(found, vocabulary_of(names))


def scores_of(painting: Painting, size):
    """The scores of a painting, as `OVSegSegmenter` returns them."""
    return semantic_scores(painting.weights, painting.mask_logits, painting.geometry(size))


def end_to_end(golden, inference, case, names):
    segmenter = OVSegSegmenter(golden.model(), inference)
    size = case["image"].shape[:2]
    return segmenter.scores_at(case["image_resized"], vocabulary_of(names), size)


def test_text_classifier(golden):
    text = golden.arrays("text.npz")
    adapter = golden.model().clip_adapter
    classifier = adapter.classifier(golden.class_names(), [str(t) for t in text["templates"]])
    assert_allclose(classifier, text["classifier"], atol=1e-6)
    others = adapter.embed_names(["others"])
    assert_allclose(others, text["others_feature"].reshape(1, -1), atol=1e-6)


def test_prompt_ensembles(golden):
    variants = golden.arrays("variants*.npz")
    names, adapter = golden.class_names(), golden.model().clip_adapter
    assert_allclose(adapter.embed_names(names, "imagenet"), variants["text_imagenet"], atol=1e-6)
    single = adapter.embed_names(names, ["a photo of a {}."])
    assert_allclose(single, variants["text_predefined"], atol=1e-6)


def test_image_to_masks(golden):
    model = golden.model()
    for case in golden.cases("eval"):
        image = network_image(case)
        classifier = golden.arrays("text.npz").tensor("classifier")
        batch = model.preprocess([image])
        features = model.backbone(batch)
        predictions = model.sem_seg_head(features, all_layers=True)
        out = model([image], classifier)
        if "feat_res2" in case:
            for feature, name in zip(features, ("res2", "res3", "res4", "res5"), strict=True):
                assert_allclose(feature, case[f"feat_{name}"], atol=2e-4)
            pixels = model.sem_seg_head.pixel_decoder(features)
            assert_allclose(pixels, case["mask_features"], atol=2e-4)
            assert_allclose(predictions.hidden, case["decoder_hs"], atol=2e-4)
        assert_allclose(predictions.class_embeddings[-1], case["pred_embed"], atol=2e-4)
        assert_allclose(out.class_logits[-1], case["pred_logits"], atol=5e-3)
        assert_allclose(out.mask_logits[-1], case["pred_masks"], atol=1e-3)
        prob = mask_probability(out.mask_logits[-1, 0], batch.shape[-2:], image.shape[1:])
        assert_allclose(prob, case["mask_prob"], atol=2e-4)


def test_masks_to_scores(golden):
    inference = golden.configs()[1]
    model = with_region(golden.model(), inference.region)
    segmenter = OVSegSegmenter(model, inference)
    classifier = golden.arrays("text.npz").tensor("classifier")
    for case in golden.cases("eval"):
        image, prob = network_image(case), case.tensor("mask_prob")
        features, valid = model.clip_adapter.encode_proposals(image, prob)
        assert_allclose(valid, case["valid"])
        assert_allclose(features, case["clip_features"], atol=1e-4)
        assert_allclose(LOGIT_SCALE * features @ classifier.T, case["clip_logits"], atol=5e-3)
        branches = model.branches(image, case.tensor("pred_logits")[0], prob, classifier)
        assert_allclose(branches.class_prob, case["mf_prob"], atol=1e-4)
        assert_allclose(branches.clip_prob, case["clip_prob"], atol=1e-4)
        votes = vote(branches, inference, golden.class_names())
        assert_allclose(votes.weights, case["ensembled"], atol=1e-4)
        painting = painted(segmenter, branches, prob, golden.class_names())
        assert_allclose(painting.weights, case["ensembled"], atol=1e-4)
        scores = scores_of(painting, case["image"].shape[:2])
        assert_allclose(scores, case["sem_seg"], atol=1e-4)


def test_masks_to_demo(golden):
    inference = golden.demo_config()
    model = with_region(golden.model(), inference.region)
    segmenter = OVSegSegmenter(model, inference)
    classifier = golden.arrays("text.npz").tensor("classifier")
    names = golden.class_names()
    for case, demo in zip(golden.cases("eval"), golden.cases("demo"), strict=True):
        image, prob = network_image(case), case.tensor("mask_prob")
        branches = model.branches(image, case.tensor("pred_logits")[0], prob, classifier)
        assert_allclose(branches.valid, demo["valid"])
        votes = vote(branches, inference, names)
        best = demo["best_proposal_per_class"]  # counts the valid proposals
        rows = np.flatnonzero(demo["valid"])[np.unique(best)]
        assert_allclose(votes.rows, rows)
        painting, size = painted(segmenter, branches, prob, names), case["image"].shape[:2]
        scores = scores_of(painting, size)
        assert_allclose(scores, demo["sem_seg"], atol=1e-4)
        assert (labels_of(scores) == demo["label_map"]).mean() >= 0.999
        labels = segmenter.label(painting, size, vocabulary_of(names))
        assert (np.where(labels < 0, 255, labels) == demo["label_map"]).mean() >= 0.999


def test_end_to_end(golden):
    inference, demo_inference = golden.configs()[1], golden.demo_config()
    names = golden.class_names()
    for case, demo in zip(golden.cases("eval"), golden.cases("demo"), strict=True):
        scores = end_to_end(golden, inference, case, names)
        agreement = (scores.argmax(0).numpy() == case["sem_seg"].argmax(0)).mean()
        assert agreement >= 0.99
        scores = end_to_end(golden, demo_inference, case, names)
        assert (labels_of(scores) == demo["label_map"]).mean() >= 0.99


VARIANTS = {
    "clip_ensemble_false": {"clip_ensemble": False},
    "weight_0.0": {"ensemble_weight": 0.0},
    "weight_0.3": {"ensemble_weight": 0.3},
    "mask_prompt_fwd_false": {"region": {"mask_prompts": False}},
    "mask_matting": {"region": {"matting": True}},
    "expand_1.5": {"region": {"expand_ratio": 1.5}},
    "fill_zero": {"region": {"mask_fill": "zero"}},
    "thr_high": {"region": {}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(golden, variant):
    arrays = golden.arrays("variants*.npz")
    if f"sem_seg__{variant}" not in arrays:
        pytest.skip(f"{golden.name} keeps no {variant}")
    changes = dict(VARIANTS[variant])  # type: ignore[call-overload]
    region_changes = changes.pop("region", {})
    if variant == "thr_high":
        threshold = golden.json("variants.json")[variant]["MASK_THR"]
        region_changes = {"mask_threshold": threshold}
    inference = golden.configs()[1]
    inference = replace(inference, **changes, region=replace(inference.region, **region_changes))
    case = golden.cases("eval")[0]
    scores, branches = from_recorded_masks(golden, inference, case, golden.class_names())
    assert_allclose(scores, arrays[f"sem_seg__{variant}"], atol=2e-3)
    if variant == "thr_high":
        assert_allclose(branches.valid, arrays["thr_high_valid"])
        expected = arrays.tensor("thr_high_clip_logits")[:, :-1].softmax(-1)
        assert_allclose(branches.clip_prob, expected, atol=1e-4)
        assert not branches.valid.all()  # else the variant tests nothing


def from_recorded_masks(golden, inference, case, names):
    model = with_region(golden.model(), inference.region)
    classifier = model.clip_adapter.classifier(names)
    image, prob = network_image(case), case.tensor("mask_prob")
    embed = case.tensor("pred_embed")[0]
    logits = LOGIT_SCALE * embed / embed.norm(dim=-1, keepdim=True) @ classifier.T
    branches = model.branches(image, logits, prob, classifier)
    painting = painted(OVSegSegmenter(model, inference), branches, prob, names)
    return scores_of(painting, case["image"].shape[:2]), branches


@pytest.mark.parametrize("variant", ["demo_0", "demo_1_others", "demo_0_1"])
def test_demo_with_few_names(golden, variant):
    arrays = golden.arrays("variants*.npz")
    names = golden.json("variants.json")[variant]["class_names"]
    case = golden.cases("eval")[0]
    scores, _ = from_recorded_masks(golden, golden.demo_config(), case, names)
    assert_allclose(scores, arrays[f"sem_seg__{variant}"], atol=2e-3)
    if names[-1] == "others":
        assert demo_names(names[:1]) == tuple(names)


def test_two_images_in_one_padded_batch(golden):
    arrays = golden.arrays("variants*.npz")
    if "sem_seg__batch2_img0" not in arrays:
        pytest.skip(f"{golden.name} keeps no batch2")
    inference = golden.configs()[1]
    model = with_region(golden.model(), inference.region)
    names, segmenter = golden.class_names(), OVSegSegmenter(model, inference)
    classifier = model.clip_adapter.classifier(names)
    cases = golden.cases("eval")[:2]
    images = [network_image(case) for case in cases]
    out = model(images, classifier)
    padded = [4 * s for s in out.mask_logits.shape[-2:]]
    for index, (case, image) in enumerate(zip(cases, images, strict=True)):
        prob = mask_probability(out.mask_logits[-1, index], padded, image.shape[1:])
        branches = model.branches(image, out.class_logits[-1, index], prob, classifier)
        painting = painted(segmenter, branches, prob, names)
        scores = scores_of(painting, case["image"].shape[:2])
        expected = arrays[f"sem_seg__batch2_img{index}"]
        assert (scores.argmax(0).numpy() == expected.argmax(0)).mean() >= 0.99
        assert np.median(np.abs(scores.numpy() - expected)) < 1e-4


REGION_NAMES = {
    "mask_thr": "mask_threshold",
    "mask_expand_ratio": "expand_ratio",
    "mask_matting": "matting",
}


def test_regions(golden):
    arrays = golden.arrays("regions.npz")
    image, prob = arrays.tensor("image").permute(2, 0, 1), arrays.tensor("mask_prob")
    meta = json.loads(str(arrays["meta"]))
    base = replace(golden.configs()[1].region, mask_threshold=meta.pop("default_thr"))
    adapter = golden.model().clip_adapter
    tested = 0
    for variant, overrides in meta.items():
        if f"{variant}__valid" not in arrays:
            continue
        tested += 1
        changes = {REGION_NAMES[k]: v for k, v in overrides.items() if k in REGION_NAMES}
        if "mask_fill" in overrides:
            changes["mask_fill"] = "zero"
        adapter.region = replace(base, **changes)
        binary, valid = binarize(prob, adapter.region.mask_threshold)
        assert_allclose(valid, arrays[f"{variant}__valid"])
        boxes = tight_boxes(binary[valid])
        assert_allclose(boxes, arrays[f"{variant}__bbox_xyxy_tight"])
        regions = adapter.cut(adapter.normalize(image), prob[valid], binary[valid])
        assert_allclose(regions.images, arrays[f"{variant}__regions_norm"], atol=2e-5)
        exact = 1e-6 if adapter.region.matting else 0
        assert_allclose(regions.masks, arrays[f"{variant}__region_masks"], atol=exact)
    assert tested


def test_regions_of_a_case(golden):
    inference = golden.configs()[1]
    adapter = with_region(golden.model(), inference.region).clip_adapter
    case, recorded = golden.cases("eval")[0], golden.arrays("case0_regions.npz")
    prob, expected = case.tensor("mask_prob"), recorded["regions_first"]
    first = torch.from_numpy(np.flatnonzero(case["valid"])[: len(expected)])
    binary = prob[first] > inference.region.mask_threshold
    regions = adapter.cut(adapter.normalize(network_image(case)), prob[first], binary)
    assert_allclose(regions.images, expected, atol=2e-5)
    assert_allclose(regions.masks, recorded["region_masks_first"], atol=0)


def test_mask_prompted_tower(golden):
    arrays = golden.arrays("clip_visual.npz")
    visual = golden.model().clip_adapter.clip_model.visual
    images, masks = arrays.tensor("images").float(), arrays.tensor("masks").float()
    kept = patch_masks(masks, visual.config.patch_size)[..., 0]
    assert_allclose(kept, arrays["patch_mask"])
    assert_allclose(visual(images, masks), arrays["features_masked"], atol=2e-4)
    assert_allclose(visual(images), arrays["features_nomask"], atol=2e-4)
    ones, zeros = torch.ones_like(masks), torch.zeros_like(masks)
    assert_allclose(visual(images, ones), arrays["features_allones"], atol=2e-4)
    assert_allclose(visual(images, zeros), arrays["features_allzeros"], atol=2e-4)
    assert torch.equal(visual(images, ones), visual(images))


def test_mask_prompts_of_less_depth(golden):
    arrays = golden.arrays("clip_visual.npz")
    depths = [n for n in arrays if n.startswith("features_depth")]
    assert depths
    visual = golden.model().clip_adapter.clip_model.visual
    images, masks = arrays.tensor("images").float(), arrays.tensor("masks").float()
    whole = visual.mask_embedding
    try:
        for name in depths:
            depth = int(name.removeprefix("features_depth"))
            visual.mask_embedding = torch.nn.Parameter(whole[:depth])
            assert_allclose(visual(images, masks), arrays[name], atol=2e-4)
    finally:
        visual.mask_embedding = whole
