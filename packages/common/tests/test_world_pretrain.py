"""The small CLIP: its stem and its few words, how it is trained, and what the shipped one can."""

from __future__ import annotations

import json

import pytest
import torch

from openvocab.clip import load_clip
from openvocab.clip.config import CLIPConfig, TextConfig, VisionConfig
from openvocab.clip.model import CLIP
from openvocab.clip.tokenizer import tokenize
from openvocab.clip.weights import choices_of, config_from_state_dict
from openvocab.errors import InputError
from openvocab.weights.shipped import read_shared, save_shared, world_file
from openvocab.weights.state_dict import save_state_dict
from openvocab.world import world_names
from openvocab.world.pretrain import (
    caption_loss,
    known_tokens,
    main,
    top1,
    with_batch_norms,
    with_image_size,
    without_batch_norms,
)

TINY = CLIPConfig(
    16,
    VisionConfig(32, 8, 16, 2, 2, 32, stem=(4, 6)),
    TextConfig(77, 49408, 16, 2, 2, 32),
    "gelu",
)


def random_clip(config=TINY, seed=0):
    torch.manual_seed(seed)
    return CLIP(config).eval()


def reduced(clip, tokens):
    """Return the same model with the rows of some tokens only."""
    from dataclasses import replace

    text = replace(clip.config.text, vocab_size=len(tokens), reduced=True)
    small = CLIP(replace(clip.config, text=text))
    tensors = dict(clip.state_dict())
    tensors["token_embedding.weight"] = tensors["token_embedding.weight"][tokens]
    small.load_state_dict({**tensors, "token_ids": tokens})
    return small.eval()


def test_a_stem_keeps_the_grid_and_is_known_by_its_tensors(tmp_path):
    clip = random_clip()
    patches, grid = clip.visual.patchify(torch.rand(2, 3, 40, 48))
    assert grid == (5, 6) and patches.shape == (2, 30, 16)
    assert config_from_state_dict(clip.state_dict(), "gelu", heads=(2, 2)) == TINY
    save_state_dict(tmp_path / "clip.safetensors", clip.state_dict(), choices_of(TINY))
    again = load_clip(tmp_path / "clip.safetensors")
    assert again.config == TINY
    images = torch.rand(1, 3, 32, 32)
    for key, value in clip.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    with torch.no_grad():  # weights mapped from a file lie elsewhere, so sums may round otherwise
        assert torch.allclose(again.encode_image(images), clip.encode_image(images), atol=1e-6)


def test_few_words_mean_the_same_as_in_the_whole_table():
    clip = random_clip()
    texts = tokenize(["a photo of a dog", "grass", "a dog on grass"])
    small = reduced(clip, texts[texts > 0].unique())
    with torch.no_grad():
        assert torch.equal(small.encode_text(texts), clip.encode_text(texts))


def test_an_unknown_word_is_named():
    texts = tokenize(["a photo of a dog"])
    small = reduced(random_clip(), texts[texts > 0].unique())
    with pytest.raises(InputError, match=r"'a photo of a zebra' .*'zebra'"):
        small.encode_text(tokenize(["a dog", "a photo of a zebra"]))


def test_every_name_and_caption_is_known():
    known = set(known_tokens().tolist())
    for name in world_names():
        for text in (f"a photo of {name.article} {name.name}.", f"{name.name}, {name.category}"):
            assert set(tokenize(text)[0].tolist()) - {0} <= known | {11}, text


def test_folded_norms_give_the_same_stem():
    torch.manual_seed(0)
    stem = with_batch_norms(random_clip().visual.stem)
    for _ in range(3):
        stem.train()(torch.randn(8, 3, 16, 16) * 3 + 1)
    for part in stem:
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.weight, 0.5, 2)
            torch.nn.init.normal_(part.bias)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = stem.eval()(images)
        torch.testing.assert_close(without_batch_norms(stem)(images), expected)


def test_another_native_size_changes_positions_only():
    clip = random_clip()
    images = torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        wide = with_image_size(clip, 48)
        assert wide.config.vision.image_size == 48
        torch.testing.assert_close(wide.encode_image(images), clip.encode_image(images))


def test_caption_loss_wants_every_patch_in_the_caption_and_every_name_somewhere():
    present = torch.tensor([[True, True, False]])
    right = 9 * torch.tensor([[[1.0, 0, 0], [0, 1, 0], [1, 0, 0]]])
    absent = 9 * torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]])
    one_only = 9 * torch.tensor([[[1.0, 0, 0], [1, 0, 0], [1, 0, 0]]])
    best = caption_loss(right, present)
    assert best < 0.01
    assert caption_loss(absent, present) > best + 0.5
    assert caption_loss(one_only, present) > best + 0.5


TINY_RUN = [
    *("--model.stem", "8", "8", "--model.width", "32", "--model.layers", "2"),
    *("--model.text-layers", "1", "--model.head-width", "16", "--steps", "6", "--crops", "1"),
    *("--run.batch", "6", "--run.workers", "0", "--run.log-period", "1"),
    *("--run.checkpoint-period", "3", "--run.eval-period", "0"),
    *("--kinds", "scene", "lone", "crop", "--image-size", "64"),
]


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["iteration"]: line["loss"] for line in lines if "loss" in line}


def test_the_command_trains_resumes_and_writes_a_clip(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert main([*TINY_RUN, "--run.output", str(whole)]) == 0
    assert main([*TINY_RUN, "--run.output", str(part)]) == 0
    for name in ("model_0000005.pth", "model_final.pth", "model_final.safetensors"):
        (part / name).unlink()
    (part / "last_checkpoint").write_text("model_0000002.pth")
    assert main([*TINY_RUN, "--run.output", str(part), "--resume"]) == 0
    assert losses(part) == losses(whole)
    first, second = (load_clip(f / "model_final.safetensors") for f in (whole, part))
    assert first.fingerprint() == second.fingerprint()
    assert first.config.vision.stem == (8, 8)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--kinds", "crop", "film"], "film"),
        (["--steps", "0"], "steps is 0"),
        (["--eval-only"], "--weights"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, words, sentence):
    with pytest.raises(InputError, match=sentence):
        main(["--run.output", str(tmp_path / "run"), *words])


def test_shared_files_hold_the_difference_only(tmp_path):
    clip = load_clip("world")
    tensors = {f"clip.{name}": tensor for name, tensor in clip.state_dict().items()}
    tensors["clip.logit_scale"] = torch.tensor(1.5)
    tensors["own"] = torch.ones(3)
    save_shared(tmp_path / "some.safetensors", tensors, {}, prefix="clip.")
    read = read_shared(tmp_path / "some.safetensors")
    assert (tmp_path / "some.safetensors").stat().st_size < 2000
    assert set(read) == set(tensors) and float(read["clip.logit_scale"]) == 1.5
    for name, tensor in tensors.items():
        torch.testing.assert_close(read[name].to(tensor.dtype), tensor, atol=1e-3, rtol=1e-3)


def test_the_shipped_clip_names_what_segmentation_never_sees():
    scores = top1(load_clip("world"), "val", 4)
    assert scores["top1_unseen"] >= 90 and scores["top1_seen"] >= 90


def test_training_goes_on_from_the_shipped_clip_with_a_low_loss(tmp_path):
    words = ["--config-file", "world_clip_dense", "--weights", str(world_file("openvocab.clip"))]
    run = ["--steps", "4", "--run.batch", "10", "--run.workers", "0", "--run.log-period", "1"]
    main([*words, *run, "--run.output", str(tmp_path), "--run.eval-period", "0",
          "--optimizer.base-lr", "1e-5"])  # fmt: skip
    record = json.loads(world_file("openvocab.clip").with_suffix(".json").read_text())
    curve = record["stages"][-1]["losses"]["loss"]
    assert max(losses(tmp_path).values()) < curve[0]
    assert sum(losses(tmp_path).values()) / 4 < 2 * curve[-1]
