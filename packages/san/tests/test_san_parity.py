"""SAN against what the original computed, intermediate by intermediate."""

from __future__ import annotations

import pytest
import torch

from openvocab.clip.prompts import TextEncoder
from openvocab.clip.tokenizer import tokenize
from openvocab.image import resize_shortest_edge
from openvocab.semantic import MaskGeometry, semantic_labels, semantic_scores
from san.recognition import pool_bias, recognize


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    """Within 1e-4 of the largest magnitude."""
    assert ours.shape == theirs.shape, what
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert error < 1e-4, f"{what}: relative error {error:.1e}"


def scores(network, prediction, row, geometry) -> torch.Tensor:
    prob = prediction.class_logits[row].softmax(-1)[:, :-1]
    return semantic_scores(prob, prediction.mask_logits[row], geometry)


def test_resizing_is_exact(recording) -> None:
    for index in recording.images:
        inputs = recording.load(f"infer_{index}_input")
        resized = resize_shortest_edge(
            inputs["image_uint8"].numpy(),
            recording.inference.short_side,
            recording.inference.max_side,
        )
        assert (torch.from_numpy(resized) == inputs["resized_uint8"]).all()


def test_text(recording) -> None:
    network, recorded = recording.network(), recording.load("text")
    names = recording.meta["vocabulary"]
    encoder = TextEncoder(network.clip, cache_dir=False)
    assert (
        tokenize([f"a photo of a {name}." for name in names]).shape
        == recorded["tokens_template0"].shape
    )
    per_template = encoder.names_per_template(names, recording.inference.templates)
    assert_close(per_template, recorded["per_template_normalized"], "per template")
    embeddings = encoder.encode_names(names, recording.inference.templates)
    assert_close(embeddings, recorded["text_embed"], "text embedding")
    with torch.no_grad():
        assert_close(network.classifier(embeddings), recorded["classifier_scaled"], "classifier")


@torch.no_grad()
def test_every_intermediate(recording) -> None:
    network = recording.network()
    classifier = network.classifier(recording.load("text")["text_embed"])
    for index in recording.images:
        inputs = recording.load(f"infer_{index}_input")
        expected = recording.load(f"infer_{index}_intermediate")
        images = network.preprocess([inputs["resized_uint8"].permute(2, 0, 1)])
        assert_close(images, inputs["padded_side_input"], "padded input")
        assert_close(network.clip_input(images), expected["clip_input"], "clip input")

        features, tokens, grid = network.clip_features(images)
        for block, feature in features.items():
            image = feature.transpose(1, 2).unflatten(2, grid)
            assert_close(image, expected[f"clip_{block}"], f"CLIP block {block}")
        split = recording.config.split
        assert_close(tokens[:, 0], expected[f"clip_{split}_cls_token"][0], "class token")

        (query, patches, side_grid) = network.side_adapter.encode(
            images, features, grid, all_layers=False
        )[0]
        assert_close(query, expected["side_query_0"], "side query")
        side_feature = patches.transpose(1, 2).unflatten(2, side_grid)
        assert_close(side_feature, expected["side_feat_0"], "side feature")
        masks, biases = network.side_adapter.mask_decoder(query, patches, side_grid)
        assert_close(masks, expected["mask_preds_0"], "mask logits")
        for layer, bias in enumerate(biases):
            assert_close(bias, expected[f"attn_bias_0_layer{layer}"], f"bias {layer}")

        embeddings = recognize(
            network.clip.visual, network.deep_blocks, tokens, grid, biases, query.shape[1]
        )
        assert_close(embeddings, expected["mask_embs_0"], "mask embeddings")
        prediction = network(images, classifier)[-1]
        assert_close(prediction.class_logits, expected["class_logits"], "class logits")


@torch.no_grad()
def test_bias_is_the_one_in_the_full_mask(recording) -> None:
    """The mask over Q + 1 + h * w tokens that the original builds holds our pooled bias."""
    network = recording.network()
    queries = recording.config.num_queries
    heads = recording.config.clip.vision.heads
    for index in recording.images:
        inputs = recording.load(f"infer_{index}_input")
        expected = recording.load(f"infer_{index}_intermediate")
        images = network.preprocess([inputs["resized_uint8"].permute(2, 0, 1)])
        features, _, grid = network.clip_features(images)
        _, biases = network.side_adapter(images, features, grid, all_layers=False)[0]
        pooled = pool_bias(biases[0], grid).expand(-1, heads, -1, -1)[0]
        mask = expected["attn_mask_full_layer0"]
        assert_close(pooled, mask[:, :queries, queries + 1 :], "bias in the full mask")


@torch.no_grad()
def test_scores_and_labels(recording) -> None:
    network = recording.network()
    classifier = network.classifier(recording.load("text")["text_embed"])
    for index in recording.images:
        inputs = recording.load(f"infer_{index}_input")
        resized = inputs["resized_uint8"].permute(2, 0, 1)
        images = network.preprocess([resized])
        prediction = network(images, classifier)[-1]
        geometry = MaskGeometry(
            tuple(images.shape[2:]),
            tuple(resized.shape[1:]),
            tuple(inputs["image_uint8"].shape[:2]),
            recording.inference.resize_masks_first,
        )
        ours = scores(network, prediction, 0, geometry)
        assert (ours - inputs["sem_seg"]).abs().max() < 5e-5
        labels = semantic_labels(
            prediction.class_logits[0].softmax(-1)[:, :-1], prediction.mask_logits[0], geometry
        )
        assert (labels == inputs["argmax"]).float().mean() >= 0.9999


@torch.no_grad()
def test_batch_of_two_sizes(recording) -> None:
    network, expected = recording.network(), recording.load("batch2")
    classifier = network.classifier(recording.load("text")["text_embed"])
    raw = [expected[f"image{i}"] for i in range(2)]
    raw = [image if image.shape[0] == 3 else image.permute(2, 0, 1) for image in raw]
    images = network.preprocess(raw)
    prediction = network(images, classifier)[-1]
    assert_close(prediction.mask_logits, expected["mask_preds"], "mask logits")
    for row, image in enumerate(raw):
        output = tuple(expected[f"sem_seg{row}"].shape[1:])
        geometry = MaskGeometry(
            tuple(images.shape[2:]),
            tuple(image.shape[1:]),
            output,
            recording.inference.resize_masks_first,
        )
        ours = scores(network, prediction, row, geometry)
        assert (ours - expected[f"sem_seg{row}"]).abs().max() < 5e-5


def test_golden_sets_are_there(pytestconfig: pytest.Config) -> None:
    """A wrong --golden-root must not pass because it holds nothing."""
    from pathlib import Path

    chosen = pytestconfig.getoption("--golden-root")
    roots = [Path(chosen), Path(chosen) / "san"] if chosen else [Path(__file__).parent / "golden"]
    assert any(list(root.glob("*/infer_0_input.npz")) for root in roots)
