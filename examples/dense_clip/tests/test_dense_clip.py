"""The three attentions against a plain reading of the papers, and the plugin around them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.structure.stage_costs import metered
from numpy.typing import NDArray

from dense_clip import method
from dense_clip.attention import correlative_attention, dense_features, gaussian, value_path
from dense_clip.segmenter import TITLES, DenseCLIPSegmenter, DenseConfig
from openvocab import methods, predict, semantic
from openvocab.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from openvocab.errors import InputError
from openvocab.evaluation.protocol import protocol_card
from openvocab.evaluation.run import evaluate_set
from openvocab.image import read_image
from openvocab.vocabulary import Background, Vocabulary
from openvocab.world.dataset import open_world

EXAMPLE = Path(__file__).parents[1]
PATCH, WIDTH, HEADS = 4, 24, 3
WHOLE = DenseConfig(short_side=None, window=None)
VARIANTS = pytest.mark.parametrize("variant", TITLES)
Array = NDArray[np.float64]


def tiny_clip(seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    config = CLIPConfig(
        embed_dim=16,
        vision=VisionConfig(16, PATCH, WIDTH, layers=2, heads=HEADS, mlp_width=48),
        text=TextConfig(77, 49408, 16, layers=1, heads=2, mlp_width=32),
        activation="quick_gelu",
    )
    clip = CLIP(config).eval().requires_grad_(False)
    for name, parameter in clip.visual.named_parameters():
        if name.endswith("bias") or "ln_" in name:  # no bias or norm that a mistake could hide in
            parameter.data += 0.3 * torch.randn_like(parameter)
    return clip


def make(variant: str = "naclip", clip: CLIP | None = None, **changes: Any) -> DenseCLIPSegmenter:
    config = replace(WHOLE, variant=variant, **changes)
    return DenseCLIPSegmenter(clip or tiny_clip(), config, cache_dir=False)


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# --- a plain reading of the papers: one patch after the other, in NumPy -------------------------


def numbers(tensor: torch.Tensor) -> Array:
    return tensor.double().numpy()


def layer_norm(x: Array, norm: torch.nn.LayerNorm) -> Array:
    centered = x - x.mean()
    unit = centered / np.sqrt((centered**2).mean() + norm.eps)
    return unit * numbers(norm.weight) + numbers(norm.bias)


def softmax(values: list[float]) -> Array:
    powers = np.exp(np.array(values) - max(values))
    return powers / powers.sum()


def quick_gelu(x: Array) -> Array:
    return x / (1 + np.exp(-1.702 * x))


def read_features(clip: CLIP, pixels: torch.Tensor, variant: str, sigma: float) -> Array:
    """Return a unit vector (h * w, E) for each patch of one image."""
    visual, last = clip.visual, clip.visual.blocks[-1]
    with torch.no_grad():
        trunk, (_, columns) = visual.embed(pixels)
        for block in visual.blocks[:-1]:
            trunk = block(trunk)
    tokens = [numbers(token) for token in trunk[0]]  # the class token is the first
    normed = [layer_norm(token, last.ln_1) for token in tokens]
    weight, bias = numbers(last.attn.in_proj_weight), numbers(last.attn.in_proj_bias)
    size = WIDTH // HEADS

    def part(which: int, token: int, head: int) -> Array:
        """Return the query (0), key (1) or value (2) of a token in a head."""
        rows = slice(which * WIDTH + head * size, which * WIDTH + (head + 1) * size)
        return weight[rows] @ normed[token] + bias[rows]

    def alike(which: int, token: int, others: list[int], head: int) -> list[float]:
        return [
            float(part(which, token, head) @ part(which, other, head)) / size**0.5
            for other in others
        ]

    def near(token: int, other: int) -> float:
        (y, x), (v, u) = divmod(token - 1, columns), divmod(other - 1, columns)
        return float(np.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * sigma**2)))

    everything, patches = list(range(len(tokens))), list(range(1, len(tokens)))

    def attend(token: int, head: int) -> Array:
        if variant == "maskclip":
            return part(2, token, head)
        if variant == "sclip":
            others = everything
            weights = softmax(alike(0, token, others, head))
            weights = weights + softmax(alike(1, token, others, head))
        else:
            others = patches
            keys = alike(1, token, others, head)
            weights = softmax([s + near(token, o) for s, o in zip(keys, others, strict=True)])
        return sum(
            (w * part(2, o, head) for w, o in zip(weights, others, strict=True)), np.zeros(size)
        )

    found = []
    for token in patches:
        joined = np.concatenate([attend(token, head) for head in range(HEADS)])
        out = numbers(last.attn.out_proj.weight) @ joined + numbers(last.attn.out_proj.bias)
        if variant == "sclip":  # the rest of the block stays
            out = tokens[token] + out
            first, second = last.mlp.c_fc, last.mlp.c_proj
            hidden = numbers(first.weight) @ layer_norm(out, last.ln_2) + numbers(first.bias)
            out = out + numbers(second.weight) @ quick_gelu(hidden) + numbers(second.bias)
        joint = layer_norm(out, visual.ln_post) @ numbers(visual.proj)
        found.append(joint / np.sqrt((joint**2).sum()))
    return np.array(found)


@VARIANTS
@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (2, 5), (3, 1)])
def test_features_are_those_of_a_plain_reading(variant: str, grid: tuple[int, int]) -> None:
    clip = tiny_clip(seed=sum(grid))
    pixels = torch.randn(1, 3, grid[0] * PATCH, grid[1] * PATCH)
    with torch.no_grad():
        ours = dense_features(clip.visual, pixels, variant, sigma=1.5)[0]
    expected = read_features(clip, pixels, variant, sigma=1.5)
    np.testing.assert_allclose(ours.numpy(), expected, atol=2e-5)


# --- properties of the attentions ---------------------------------------------------------------


def test_gaussian_by_hand() -> None:
    near, far = np.exp(-1 / 8), np.exp(-2 / 8)
    expected = [
        [1, near, near, far],
        [near, 1, far, near],
        [near, far, 1, near],
        [far, near, near, 1],
    ]
    np.testing.assert_allclose(gaussian((2, 2), sigma=2).numpy(), expected, rtol=1e-6)


def test_a_patch_without_neighbors_keeps_its_own_value() -> None:
    clip, pixels = tiny_clip(), torch.randn(2, 3, PATCH, PATCH)
    alone = dense_features(clip.visual, pixels, "naclip")
    torch.testing.assert_close(alone, dense_features(clip.visual, pixels, "maskclip"))


def test_a_flat_gaussian_changes_nothing_and_a_narrow_one_does() -> None:
    clip, pixels = tiny_clip(), torch.randn(1, 3, 4 * PATCH, 4 * PATCH)
    flat, flatter = (dense_features(clip.visual, pixels, "naclip", s) for s in (1e4, 1e6))
    torch.testing.assert_close(flat, flatter)  # all neighbors get the same addend
    assert not torch.allclose(flat, dense_features(clip.visual, pixels, "naclip", 0.5), atol=1e-3)


def test_correlative_attention_without_queries_and_keys_takes_the_mean_twice() -> None:
    attention = tiny_clip().visual.blocks[-1].attn
    attention.in_proj_weight.data[: 2 * WIDTH] = 0
    attention.in_proj_bias.data[: 2 * WIDTH] = 0
    attention.out_proj.bias.data[:] = 0
    x = torch.randn(1, 7, WIDTH)
    twice_the_mean = 2 * value_path(attention, x).mean(dim=1, keepdim=True)
    torch.testing.assert_close(correlative_attention(attention, x), twice_the_mean.expand(x.shape))


# --- the segmenter ------------------------------------------------------------------------------


@VARIANTS
def test_every_image_gets_a_label_for_every_pixel(variant: str) -> None:
    model = make(variant, max_side=64)
    images = [picture(1, 1), picture(1, 300), picture(500, 3), picture(33, 47)]
    for image, found in zip(images, model.segment(images, ["cat", "sofa"]), strict=True):
        assert found.labels.shape == image.shape[:2]
        assert set(np.unique(found.labels)) <= {0, 1}


@VARIANTS
def test_an_image_gets_the_same_result_alone_and_in_company(variant: str) -> None:
    model = make(variant)
    images = [picture(16, 16), picture(20, 40, seed=1), picture(16, 16, seed=2)]
    together = model.segment(images, ["cat", "sofa", "wall"], return_scores=True)
    for image, found in zip(images, together, strict=True):
        alone = model.segment(image, ["cat", "sofa", "wall"], return_scores=True)
        np.testing.assert_array_equal(found.labels, alone.labels)
        np.testing.assert_array_equal(found.scores, alone.scores)


@VARIANTS
def test_the_order_of_names_changes_nothing(variant: str) -> None:
    model, image = make(variant), picture(24, 32)
    names = ["cat", "sofa", "wall", "a red car"]
    order = [2, 0, 3, 1]
    first = model.segment(image, names, return_scores=True)
    second = model.segment(image, [names[i] for i in order], return_scores=True)
    np.testing.assert_array_equal(np.array(order)[second.labels], first.labels)
    assert first.scores is not None and second.scores is not None
    np.testing.assert_allclose(second.scores, first.scores[order], atol=1e-6)


@VARIANTS
def test_a_name_that_is_given_twice_changes_nothing(variant: str) -> None:
    model, image, names = make(variant), picture(24, 32), ("cat", "sofa", "wall")
    once = model.segment(image, Vocabulary(names), return_scores=True)
    twice = model.segment(image, Vocabulary((*names, "sofa", "Cat ")), return_scores=True)
    np.testing.assert_array_equal(twice.labels, once.labels)
    np.testing.assert_array_equal(twice.scores[:3], once.scores)


def test_a_single_name_gets_every_pixel() -> None:
    found = make().segment(picture(10, 12), ["cat"], return_scores=True)
    assert (found.labels == 0).all()
    np.testing.assert_allclose(found.scores, 1)


def test_scores_are_probabilities_whose_largest_is_the_label() -> None:
    found = make("maskclip").segment(picture(24, 32), ["cat", "sofa", "wall"], return_scores=True)
    assert found.scores is not None
    np.testing.assert_allclose(found.scores.sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_array_equal(found.scores.argmax(axis=0), found.labels)
    assert len(np.unique(found.labels)) > 1  # else this says nothing


def test_labels_in_strips_are_the_labels_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image, names = make("sclip"), picture(29, 31), ["cat", "sofa", "wall"]
    at_once = model.segment(image, names, return_scores=True)
    monkeypatch.setattr(semantic, "_STRIP", 200)
    in_strips = model.segment(image, names, return_scores=True)
    np.testing.assert_array_equal(in_strips.labels, at_once.labels)
    np.testing.assert_allclose(in_strips.scores, at_once.scores, atol=1e-6)


def test_similarities_are_enlarged_bilinearly() -> None:
    model, image = make("maskclip"), picture(37, 53)
    vocabulary = model.vocabulary(["cat", "sofa"])
    similarity = model.similarities(image, vocabulary)
    resized = torch.nn.functional.interpolate(similarity[None], (37, 53), mode="bilinear")[0]
    scores = model.segment(image, vocabulary, return_scores=True).scores
    expected = (resized * model.temperature).softmax(dim=0)
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)


def test_one_window_is_the_whole_image() -> None:
    clip, image = tiny_clip(), picture(16, 16)
    whole, one = make(clip=clip), make(clip=clip, window=16, stride=8)
    names = whole.vocabulary(["cat", "sofa"])
    torch.testing.assert_close(whole.similarities(image, names), one.similarities(image, names))


def test_overlapping_windows_are_averaged() -> None:
    """An image of 4 x 6 patches under windows of 4 x 4 that are 2 patches apart."""
    clip, image = tiny_clip(), picture(16, 24)
    names = make(clip=clip).vocabulary(["cat", "sofa"])
    ours = make(clip=clip, window=16, stride=8).similarities(image, names)
    whole = make(clip=clip)
    left, right = (whole.similarities(np.ascontiguousarray(image[:, s]), names)
                   for s in (slice(0, 16), slice(8, 24)))  # fmt: skip
    torch.testing.assert_close(ours[..., :2], left[..., :2])
    torch.testing.assert_close(ours[..., 2:4], (left[..., 2:] + right[..., :2]) / 2)
    torch.testing.assert_close(ours[..., 4:], right[..., 2:])


def test_the_last_window_ends_at_the_border() -> None:
    clip, image = tiny_clip(), picture(16, 28)  # 7 patches wide: 0..4, 2..6, and 3..7
    names = make(clip=clip).vocabulary(["cat", "sofa"])
    ours = make(clip=clip, window=16, stride=8).similarities(image, names)
    last = make(clip=clip).similarities(np.ascontiguousarray(image[:, 12:]), names)
    torch.testing.assert_close(ours[..., 6:], last[..., 3:])


# --- names and background -----------------------------------------------------------------------


def test_synonyms_stand_for_their_name() -> None:
    model, image = make("maskclip"), picture(24, 32)
    plain = model.segment(image, ["cat", "sofa", "wall"], return_scores=True)
    short = Vocabulary(("cat", "sofa"), "imagenet", synonyms=((), ("wall",)))
    found = model.segment(image, short, return_scores=True)
    np.testing.assert_array_equal(found.labels, np.minimum(plain.labels, 1))
    assert plain.scores is not None and found.scores is not None
    np.testing.assert_allclose(found.scores[1], plain.scores[1:].max(axis=0), rtol=1e-6)


def test_background_words_win_nothing_or_the_class_background() -> None:
    model, image = make("maskclip"), picture(24, 32)
    plain = model.segment(image, ["cat", "sofa", "wall"]).labels
    nothing = Vocabulary(("cat", "sofa"), "imagenet", background=Background.names(["wall"]))
    np.testing.assert_array_equal(
        model.segment(image, nothing).labels, np.where(plain == 2, -1, plain)
    )
    background = Vocabulary(
        ("background", "cat", "sofa"), "imagenet", background=Background.names(["wall"])
    )
    np.testing.assert_array_equal(
        model.segment(image, background).labels, np.where(plain == 2, 0, plain + 1)
    )


@pytest.mark.parametrize("names, nothing", [(("cat", "sofa"), -1), (("background", "cat"), 0)])
def test_a_threshold_leaves_uncertain_pixels_to_the_background(names, nothing: int) -> None:
    model, image = make("maskclip"), picture(24, 32)
    words = Vocabulary(names, "imagenet", background=Background.threshold(0))
    certain = model.segment(image, words)
    assert nothing not in certain.labels
    found = model.segment(image, replace(words, background=Background.threshold(1.01)))
    assert (found.labels == nothing).all()


def test_a_threshold_takes_exactly_the_pixels_below_it() -> None:
    model, image = make("maskclip"), picture(24, 32)
    plain = model.segment(image, ["cat", "sofa", "wall"], return_scores=True)
    assert plain.scores is not None
    best = plain.scores.max(axis=0)
    middle = float(np.median(best))
    words = Vocabulary(("cat", "sofa", "wall"), "imagenet", Background.threshold(middle))
    found = model.segment(image, words)
    np.testing.assert_array_equal(found.labels, np.where(best < middle, -1, plain.labels))
    assert 0 < (found.labels < 0).mean() < 1


def test_a_learned_background_is_refused() -> None:
    words = Vocabulary(("cat",), background=Background.learned())
    with pytest.raises(InputError, match="no learned class"):
        make().segment(picture(8, 8), words)
    nothing = Vocabulary(("background",), background=Background.threshold(0.5))
    with pytest.raises(InputError, match="nothing but background"):
        make().segment(picture(8, 8), nothing)


# --- settings and the plugin --------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"variant": "clearclip"}, "use one of maskclip"),
        ({"short_side": 0}, "short_side is 0"),
        ({"sigma": -1.0}, "sigma is -1"),
        ({"sigma": float("nan")}, "sigma is nan"),
        ({"window": 112, "stride": 224}, "make the stride at most the window"),
    ],
)
def test_settings_that_can_only_be_mistakes_are_refused(changes: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        DenseConfig(**changes)


def test_the_protocol_card_tells_the_variants_and_their_settings_apart() -> None:
    clip, words = tiny_clip(), Vocabulary(("cat",))
    models = [make(variant, clip) for variant in TITLES]
    models += [make(clip=clip, sigma=2.0), make(clip=clip, window=16, stride=4)]
    models += [make(clip=clip, short_side=32), make(clip=tiny_clip(seed=1))]
    cards = [protocol_card(model, words) for model in models]
    assert [card.method for card in cards[:3]] == ["MaskCLIP", "SCLIP", "NACLIP"]
    assert len({str(card) for card in cards}) == len(cards)
    assert "sigma" not in cards[0].settings and cards[3].settings["sigma"] == 2


def test_the_tower_computes_in_the_precision_that_is_asked_for() -> None:
    image, names = picture(16, 24), ["cat", "sofa"]
    config = replace(WHOLE, variant="naclip")
    full = DenseCLIPSegmenter(tiny_clip(), config, cache_dir=False)
    half = DenseCLIPSegmenter(tiny_clip(), config, precision="bf16", cache_dir=False)
    words = full.vocabulary(names)
    difference = (full.similarities(image, words) - half.similarities(image, words)).abs()
    assert 0 < difference.max() < 0.1
    assert half.describe()["precision"] == "bf16"


@VARIANTS
def test_each_method_knows_the_names_of_the_world(variant: str) -> None:
    """With 60 names, a guess is right for one pixel of 60."""
    one = getattr(method, variant.upper())
    model = one.load("world", device="cpu")
    assert one.title == model.describe()["method"] == TITLES[variant]
    assert "short side 128" in model.describe()["resize_rule"]
    result = evaluate_set(model, open_world("val", 4), progress=False)
    assert result.scores().miou > 10


def test_a_configuration_of_another_variant_is_refused() -> None:
    with pytest.raises(InputError, match="naclip got a configuration of sclip"):
        method.NACLIP.load("world", config=DenseConfig("sclip"))
    model = method.NACLIP.load("world", config=DenseConfig("naclip", sigma=1.0), device="cpu")
    assert model.config.sigma == 1  # type: ignore[attr-defined]


def test_the_entry_points_are_the_methods() -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
    for key, target in project["entry-points"]["openvocab.methods"].items():
        module, _, name = target.partition(":")
        assert module == "dense_clip.method"
        assert getattr(method, name).key == key


def test_listing_the_methods_imports_no_torch() -> None:
    code = "import dense_clip.method, sys; print('torch' in sys.modules)"
    paths = [str(EXAMPLE / "src"), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def test_pictures_show_the_similarity_with_each_name() -> None:
    model: Any = method.MASKCLIP.load("world", device="cpu")
    data = open_world("val", 1)
    image = read_image(data.samples[0].image)
    assert method.MASKCLIP.explain is not None
    first, *maps, last = method.MASKCLIP.explain(model, image, data.vocabulary)
    peaks = model.similarities(image, data.vocabulary).numpy().max(axis=(1, 2))
    best = [data.vocabulary.names[index] for index in np.argsort(-peaks)[:12]]
    assert [one.title for one in maps] == best
    assert (first.group, last.group) == ("Input", "Result")
    assert all(one.picture.shape == first.picture.shape for one in maps)
    # One scale for all: the name with the highest peak has the brightest place.
    assert maps[0].picture.max() >= max(one.picture.max() for one in maps)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the methods be found as if the plugin were installed."""
    points = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"][
        "entry-points"
    ]["openvocab.methods"]
    found = [EntryPoint(key, target, methods.GROUP) for key, target in points.items()]
    monkeypatch.setattr(methods, "entry_points", lambda group: found)
    methods._found.cache_clear()
    yield
    methods._found.cache_clear()


def test_the_command_finds_the_methods_and_shows_their_steps(
    installed: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(methods.available_methods()) == ["maskclip", "sclip", "naclip"]
    image = open_world("val", 1).samples[0].image
    command = ["--method", "naclip", "--weights", "world", "--device", "cpu", "--show-steps"]
    command += ["--input", str(image), "--class-names", "dog,grass", "--output", str(tmp_path)]
    assert predict.main(command) == 0
    assert (tmp_path / f"{image.stem}_labels.png").is_file()
    assert (tmp_path / f"{image.stem}_steps.png").is_file()
    card = json.loads((tmp_path / f"{image.stem}.json").read_text("utf-8"))["method"]
    assert card["method"] == "NACLIP"


@VARIANTS
def test_stages_and_parts_cover_the_method(variant: str) -> None:
    one = getattr(method, variant.upper())
    segmenter = make(variant)
    anatomy = one.anatomy(segmenter)
    assert sum(part.count for part in anatomy.parts) == sum(
        parameter.numel() for parameter in segmenter.clip.parameters()
    )
    with metered(anatomy.stages, flops=True) as spent:
        segmenter.segment(picture(16, 24), ["cat", "sofa"])
    assert [spent.spent[key].calls for key in ("text", "clip", "compare", "labels")] == [1] * 4
    assert spent.spent["clip"].flops > 0 and spent.spent["compare"].flops > 0
