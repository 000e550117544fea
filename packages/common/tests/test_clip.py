"""Our CLIP against open_clip at random weights, and the pieces that the methods recompose."""

from typing import Any

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import nn

from openvocab.clip import CLIP, CLIPConfig, TextConfig, VisionConfig, load_clip
from openvocab.clip.model import resize_positions

TINY = CLIPConfig(
    embed_dim=24,
    vision=VisionConfig(image_size=32, patch_size=8, width=32, layers=3, heads=2, mlp_width=64),
    text=TextConfig(context_length=77, vocab_size=49408, width=32, layers=2, heads=2, mlp_width=64),
    activation="quick_gelu",
)


@pytest.fixture(scope="module")
def tiny() -> CLIP:
    torch.manual_seed(0)
    return CLIP(TINY).eval().requires_grad_(False)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < tolerance, f"relative error {error:.1e}"


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("ViT-B-32", "gelu"),  # the architecture of LAION's models
        ("ViT-B-16-quickgelu", "quick_gelu"),
        ("ViT-L-14-336", "gelu"),
    ],
)
def test_encoders_equal_open_clip(name: str, activation: str) -> None:
    torch.manual_seed(1)
    theirs = open_clip.create_model(name).eval()
    check_encoders(theirs, activation)
    if name == "ViT-L-14-336":  # building it takes seconds; OpenAI's differs in nothing else
        config = open_clip.get_model_config(name) | {"quick_gelu": True}
        assert open_clip.get_model_config(f"{name}-quickgelu") == config
        for block in (*theirs.visual.transformer.resblocks, *theirs.transformer.resblocks):
            block.mlp.gelu = QuickGELU()
        check_encoders(theirs, "quick_gelu")


def check_encoders(theirs: Any, activation: str) -> None:
    """Compare both encoders of a model with ours."""
    ours = load_clip(theirs)
    assert ours.config.activation == activation
    side = ours.config.vision.image_size
    images = torch.randn(1, 3, side, side)
    tokens = open_clip.tokenize(["a photo of a cat.", "a " + "very " * 30 + "long story"])
    with torch.no_grad():
        assert_close(ours.encode_image(images), theirs.encode_image(images))
        assert_close(ours.encode_text(tokens), theirs.encode_text(tokens))


def test_custom_text_tower_of_open_clip_is_accepted() -> None:
    theirs = open_clip.create_model("ViT-B-32", force_custom_text=True).eval()
    tokens = open_clip.tokenize(["a dog"])
    with torch.no_grad():
        assert_close(load_clip(theirs).encode_text(tokens), theirs.encode_text(tokens))


def test_state_dict_names_are_openai_s(tiny: CLIP) -> None:
    names = set(tiny.state_dict())
    assert {
        "visual.class_embedding", "visual.positional_embedding", "visual.proj",
        "visual.conv1.weight", "visual.ln_pre.weight", "visual.ln_post.bias",
        "visual.transformer.resblocks.2.attn.in_proj_weight",
        "visual.transformer.resblocks.0.mlp.c_fc.bias",
        "transformer.resblocks.1.attn.out_proj.weight", "token_embedding.weight",
        "positional_embedding", "ln_final.weight", "text_projection", "logit_scale",
    } <= names  # fmt: skip


def test_any_input_size(tiny: CLIP) -> None:
    images = torch.randn(2, 3, 45, 70)  # 5 x 8 patches, the rest dropped
    tokens, grid = tiny.visual.embed(images)
    assert grid == (5, 8) and tokens.shape == (2, 41, 32)
    assert tiny.visual.encode_dense(images).shape == (2, 24, 5, 8)
    cropped = tiny.encode_image(images[:, :, :40, :64])
    assert torch.equal(cropped, tiny.encode_image(images))


def test_images_of_a_batch_do_not_see_each_other(tiny: CLIP) -> None:
    images = torch.randn(3, 3, 32, 32)
    single = torch.cat([tiny.encode_image(image[None]) for image in images])
    assert_close(tiny.encode_image(images), single)


def test_text_behind_the_end_changes_nothing(tiny: CLIP) -> None:
    short = open_clip.tokenize(["a cat"])
    long = open_clip.tokenize(["a very very very long and detailed description of a cat"])
    together = tiny.encode_text(torch.cat([short, long]))
    assert_close(together[:1], tiny.encode_text(short))
    assert_close(together[1:], tiny.encode_text(long))
    assert tiny.encode_text(short[:0]).shape == (0, 24)


def test_a_forbidding_bias_cuts_tokens_off(tiny: CLIP) -> None:
    block = tiny.visual.blocks[0]
    x = torch.randn(1, 6, 32)
    bias = torch.zeros(6, 6)
    bias[:, 4:] = float("-inf")
    assert_close(block(x, bias)[:, :4], block(x[:, :4]))


def test_cross_attention_is_self_attention_of_chosen_rows(tiny: CLIP) -> None:
    block = tiny.visual.blocks[0]
    x = torch.randn(2, 7, 32)
    assert_close(block.attn(x[:, 2:4], x), block.attn(x)[:, 2:4])
    assert_close(block.class_token(x), block(x)[:, :1])


def test_gradients_flow_and_match_the_fused_activation() -> None:
    torch.manual_seed(0)
    clip = CLIP(TINY)
    images = torch.randn(1, 3, 32, 32)
    with_grad = clip.encode_image(images)
    with torch.no_grad():
        assert torch.allclose(with_grad, clip.encode_image(images), atol=1e-6)
    with_grad.sum().backward()
    assert all(p.grad is not None for p in clip.visual.parameters())


def test_resize_positions_keeps_native_tables_and_the_class_row() -> None:
    table = torch.randn(17, 5)
    assert resize_positions(table, (4, 4)) is table
    resized = resize_positions(table, (3, 7))
    assert resized.shape == (22, 5) and torch.equal(resized[0], table[0])
    expected = nn.functional.interpolate(
        table[1:].T.reshape(1, 5, 4, 4), size=(3, 7), mode="bicubic", align_corners=False
    )
    assert torch.allclose(resized[1:].T.reshape(1, 5, 3, 7), expected)


def test_fingerprint_follows_weights_and_activation(tiny: CLIP) -> None:
    heads = tiny.config.vision.heads, tiny.config.text.heads
    same = load_clip(tiny.state_dict(), activation="quick_gelu", heads=heads)
    other = load_clip(tiny.state_dict(), activation="gelu", heads=heads)
    changed = load_clip(tiny.state_dict(), activation="quick_gelu", heads=heads)
    changed.logit_scale += 1  # type: ignore[misc]
    prints = {same.fingerprint(), other.fingerprint(), changed.fingerprint()}
    assert len(prints) == 3
