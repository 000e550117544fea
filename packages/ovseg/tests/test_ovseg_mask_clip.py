"""The mask-adapted CLIP on its own, and masks that come from elsewhere."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from openvocab.errors import InputError
from openvocab.evaluation.oracle import masks_of_labels
from openvocab.weights.state_dict import save_state_dict
from ovseg._convert import CLIP_PREFIX
from ovseg.config import RegionConfig
from ovseg.mask_clip import MaskCLIP
from ovseg.segmenter import OVSegSegmenter


@pytest.fixture
def clip_tensors(tiny):
    return {
        k.removeprefix(CLIP_PREFIX): v
        for k, v in tiny.state_dict().items()
        if k.startswith(CLIP_PREFIX)
    }


def test_three_lines_name_regions_like_the_whole_model(tiny, tmp_path):
    case = tiny.cases("eval")[0]
    threshold = tiny.configs()[1].region.mask_threshold
    masks = case["mask_prob"] > threshold
    save_state_dict(tmp_path / "ovseg.pth", tiny.state_dict())

    clip = MaskCLIP.load(tmp_path / "ovseg.pth")
    embeddings = clip.embed(case["image_resized"], masks)
    probabilities = clip.classify(case["image_resized"], masks, tiny.class_names())

    np.testing.assert_allclose(embeddings, case["clip_features"], atol=1e-4)
    np.testing.assert_allclose(probabilities, case["clip_prob"], atol=1e-4)


def test_soft_masks_are_thresholded(tiny):
    case = tiny.cases("eval")[0]
    adapter = tiny.model().clip_adapter
    adapter.region = tiny.configs()[1].region
    soft = adapter.embed(case["image_resized"], case["mask_prob"])
    np.testing.assert_allclose(soft, case["clip_features"], atol=1e-4)


def test_empty_masks_have_no_embedding_and_no_opinion(tiny):
    adapter = tiny.model().clip_adapter
    adapter.region = RegionConfig()
    masks = np.zeros((3, 20, 30), bool)
    masks[1, 5:9, 3:20] = True
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    embeddings = adapter.embed(image, masks)
    assert not embeddings[[0, 2]].any()
    assert embeddings[1].norm().item() == pytest.approx(1, abs=1e-5)
    probabilities = adapter.classify(image, masks, ["cat", "dog", "sky"])
    torch.testing.assert_close(probabilities[0], torch.full((3,), 1 / 3))
    assert adapter.embed(image, masks[:0]).shape == (0, 32)


@pytest.mark.parametrize("shape", [(3, 20, 31), (20, 30), (1, 3, 20, 30)])
def test_masks_must_fit_the_image(tiny, shape):
    with pytest.raises(InputError, match="20, 30"):
        tiny.model().clip_adapter.embed(np.zeros((20, 30, 3), np.uint8), np.ones(shape, bool))


def test_the_batch_size_does_not_change_the_result(tiny):
    case = tiny.cases("eval")[0]
    adapter = tiny.model().clip_adapter
    image = case.tensor("image_resized").permute(2, 0, 1)
    results = []
    for memory_mb in (1, 64):
        adapter.region = RegionConfig(memory_mb=memory_mb)
        features, _ = adapter.encode_proposals(image, case.tensor("mask_prob"))
        results.append((adapter.regions_per_batch, features))
    assert results[0][0] < 10 < results[1][0]
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-5, rtol=0)


def test_a_fine_tuned_clip_alone(clip_tensors, tmp_path):
    """As open_clip's training writes it: with a prefix, beside the optimizer's state."""
    wrapped = {f"module.{k}": v for k, v in clip_tensors.items()}
    torch.save({"epoch": 5, "state_dict": wrapped, "optimizer": {}}, tmp_path / "epoch_5.pt")
    clip = MaskCLIP.load(tmp_path / "epoch_5.pt")
    assert clip.region.mask_prompts
    for name, tensor in clip.clip_model.state_dict().items():
        assert torch.equal(tensor, clip_tensors[name]), name


def test_a_plain_clip_gets_no_prompts(clip_tensors):
    prompts = clip_tensors.pop("visual.mask_embedding")
    with pytest.raises(InputError, match="activation"):
        MaskCLIP.load(clip_tensors)
    clip = MaskCLIP.load(clip_tensors, activation="quick_gelu", heads=(1, 1))
    assert not clip.region.mask_prompts and len(prompts) == 2
    image = np.full((16, 16, 3), 200, np.uint8)
    mask = np.ones((1, 16, 16), bool)
    normalized = clip.normalize(torch.from_numpy(image).permute(2, 0, 1))
    regions = clip.cut(normalized, torch.from_numpy(mask).float(), torch.from_numpy(mask))
    plain = clip.clip_model.encode_image(regions.images)
    torch.testing.assert_close(
        clip.embed(image, mask), plain / plain.norm(dim=-1, keepdim=True), atol=1e-5, rtol=0
    )


def test_shared_prompts_are_the_same_everywhere(clip_tensors):
    shared = clip_tensors["visual.mask_embedding"][:, :1]
    clip = MaskCLIP.load({**clip_tensors, "visual.mask_embedding": shared})
    prompts = clip.clip_model.visual.mask_embedding
    assert prompts.shape == (2, 49, 64) and (prompts == shared).all()


def test_a_model_of_something_else_is_refused(tmp_path):
    save_state_dict(tmp_path / "x.safetensors", {"weight": torch.zeros(2)})
    with pytest.raises(InputError, match="no CLIP"):
        MaskCLIP.load(tmp_path / "x.safetensors")


def test_any_callable_can_propose(tiny):
    seen = []

    def halves(image):
        seen.append(image.shape)
        masks = np.zeros((2, 60, 80), bool)  # of another size than the image
        masks[0, :, :40], masks[1, :, 40:] = True, True
        return masks

    image = tiny.cases("eval")[0]["image"]
    segmenter = OVSegSegmenter(tiny.model(), tiny.configs()[1], proposals=halves)
    found = segmenter.segment(image, ["cat", "dog", "sky"], return_scores=True)
    assert seen == [(96, 128, 3)]
    left, right = found.labels[:, :75], found.labels[:, 85:]
    assert len(np.unique(left)) == len(np.unique(right)) == 1
    np.testing.assert_allclose(found.scores.sum(0), 1, atol=1e-5)
    assert segmenter.describe()["proposals"] == "function"


def test_ground_truth_masks():
    labels = np.array([[0, 0, 3], [255, 3, 3]])
    masks = masks_of_labels(labels, (255,))
    assert masks.tolist() == [
        [[True, True, False], [False, False, False]],
        [[False, False, True], [False, True, True]],
    ]
    assert masks_of_labels(np.full((2, 2), 255), (255,)).shape == (0, 2, 2)


def test_tta_equals_the_recording(golden):
    arrays = golden.arrays("variants*.npz")
    if "sem_seg__tta" not in arrays:
        pytest.skip(f"{golden.name} keeps no tta")
    from openvocab.evaluation.augmentation import TestTimeAugmentation

    settings, inference = golden.json("variants.json")["tta"], golden.configs()[1]
    segmenter = TestTimeAugmentation(
        OVSegSegmenter(golden.model(), inference),
        sizes=settings["MIN_SIZES"],
        max_size=settings["MAX_SIZE"],
        flip=settings["FLIP"],
        short=inference.min_size,
        max_short=inference.max_size,
    )
    image, expected = golden.cases("eval")[0]["image"], arrays["sem_seg__tta"]
    found = segmenter.segment(image, golden.class_names(), return_scores=True)
    assert (found.labels == expected.argmax(0)).mean() >= 0.99
    assert np.median(np.abs(found.scores - expected)) < 1e-4


def test_segmenting_equals_the_recording(golden):
    """From the original image to labels, through resizing and streamed labels."""
    for mode, inference in (("eval", golden.configs()[1]), ("demo", golden.demo_config())):
        segmenter = OVSegSegmenter(golden.model(), inference)
        for case, recorded in zip(golden.cases("eval"), golden.cases(mode), strict=True):
            found = segmenter.segment(case["image"], golden.class_names(), return_scores=True)
            expected = recorded["sem_seg"]
            if mode == "eval":
                labels = expected.argmax(0)
            else:
                labels = recorded["label_map"].astype(int)
                labels[labels == 255] = -1
            assert (found.labels == labels).mean() >= 0.99
            if mode == "eval":
                assert (found.scores.argmax(0) == found.labels).mean() >= 0.9999


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_gives_nearly_the_same_scores(tiny, precision):
    """Labels are compared on trained weights: random ones leave names too close to each other."""
    from ovseg.weights import load_model

    model = load_model(tiny.configs()[0], tiny.state_dict(), source="test")
    segmenter = OVSegSegmenter(model, tiny.configs()[1], precision=precision)
    for case in tiny.cases("eval"):
        found = segmenter.segment(case["image"], tiny.class_names(), return_scores=True)
        assert np.corrcoef(found.scores.ravel(), case["sem_seg"].ravel())[0, 1] > 0.95
    assert model.clip_adapter.clip_model.visual.proj.dtype != torch.float32
    assert model.sem_seg_head.pixel_decoder.mask_features.weight.dtype != torch.float32
    assert model.sem_seg_head.predictor.query_embed.weight.dtype == torch.float32  # are cut at 0.4
    assert model.clip_adapter.clip_model.text_projection.dtype == torch.float32


def test_a_description_is_plain_data(tiny):
    described = OVSegSegmenter(tiny.model(), tiny.configs()[1]).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["thresholds"] == {"mask_threshold": 0.4, "ensemble_weight": 0.7}
