"""Contracts of the models of transformers, on tiny random ones, and label maps by hand."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from openvocab.errors import InputError
from openvocab.evaluation.protocol import protocol_card
from openvocab.vocabulary import Background, Vocabulary
from transformers_methods import method
from transformers_methods.clipseg import CLIPSegConfig
from transformers_methods.closed_set import ClosedSetConfig
from transformers_methods.loading import enlarged, fitted
from transformers_methods.matching import match_labels
from transformers_methods.sam3 import Instance, SAM3Config, merge_instances

EXAMPLE = Path(__file__).parents[1]
METHODS = {
    "clipseg": method.CLIPSEG,
    "sam3": method.SAM3,
    "mask2former": method.MASK2FORMER,
    "oneformer": method.ONEFORMER,
    "eomt": method.EOMT,
    "eomt-padded": method.EOMT,
}
CLOSED = ("mask2former", "oneformer", "eomt", "eomt-padded")
NAMES = ["cat", "couch", "wall", "traffic light"]
Checkpoints = Callable[[str], Path]


@pytest.fixture(scope="module")
def model_of(checkpoint: Checkpoints) -> Callable[..., Any]:
    def load(key: str, **options: Any) -> Any:
        if key == "sam3":  # a random network is never sure
            options.setdefault("config", SAM3Config(score_threshold=0.0, mask_threshold=0.5))
        return METHODS[key].load(checkpoint(key), device="cpu", **options)

    return load


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# --- what holds for every method ----------------------------------------------------------------


@pytest.mark.parametrize("key", METHODS)
def test_every_image_gets_a_label_for_every_pixel(key: str, model_of: Any) -> None:
    model = model_of(key)
    images = [picture(1, 1), picture(3, 90), picture(70, 2), picture(40, 60)]
    for image, found in zip(images, model.segment(images, NAMES), strict=True):
        assert found.labels.shape == image.shape[:2]
        assert set(np.unique(found.labels)) <= {-1, 0, 1, 2, 3}


@pytest.mark.parametrize("key", METHODS)
def test_an_image_gets_the_same_result_alone_and_in_company(key: str, model_of: Any) -> None:
    model = model_of(key)
    images = [picture(40, 60), picture(33, 32, seed=1)]
    together = model.segment(images, NAMES, return_scores=True)
    for image, found in zip(images, together, strict=True):
        alone = model.segment(image, NAMES, return_scores=True)
        np.testing.assert_array_equal(found.labels, alone.labels)
        np.testing.assert_array_equal(found.scores, alone.scores)


@pytest.mark.parametrize("key", METHODS)
def test_the_order_of_names_changes_nothing(key: str, model_of: Any) -> None:
    model, image, order = model_of(key), picture(40, 60), [2, 0, 3, 1]
    first = model.segment(image, NAMES, return_scores=True)
    second = model.segment(image, [NAMES[i] for i in order], return_scores=True)
    # The decoders see the names in other batches, which may differ in the last bits.
    renamed = np.append(order, -1)[second.labels]
    assert (renamed == first.labels).mean() > 0.99
    np.testing.assert_allclose(second.scores, first.scores[order], atol=1e-5)


@pytest.mark.parametrize("key", METHODS)
def test_a_name_that_is_given_twice_changes_nothing(key: str, model_of: Any) -> None:
    model, image = model_of(key), picture(40, 60)
    once = model.segment(image, Vocabulary(tuple(NAMES)), return_scores=True)
    twice = model.segment(image, Vocabulary((*NAMES, "couch", "Cat ")), return_scores=True)
    np.testing.assert_array_equal(twice.labels, once.labels)
    np.testing.assert_array_equal(twice.scores[:4], once.scores)


@pytest.mark.parametrize("key", METHODS)
def test_scores_agree_with_labels(key: str, model_of: Any) -> None:
    found = model_of(key).segment(picture(40, 60), NAMES, return_scores=True)
    named = found.labels >= 0
    assert named.any()
    own = np.take_along_axis(found.scores, np.maximum(found.labels, 0)[None], axis=0)[0]
    np.testing.assert_array_equal(own[named], found.scores.max(axis=0)[named])


@pytest.mark.parametrize("key", METHODS)
def test_the_card_is_complete(key: str, model_of: Any, checkpoint: Checkpoints) -> None:
    card = protocol_card(model_of(key), Vocabulary(("cat",)))
    assert card.method == METHODS[key].title
    assert str(checkpoint(key)) in card.variant
    assert len(card.weights_sha256) == 64
    assert card.resize_rule and card.post_processing != "none"


@pytest.mark.parametrize("key", METHODS)
def test_lower_precision_changes_little(key: str, model_of: Any) -> None:
    image = picture(40, 60)
    full = model_of(key).segment(image, NAMES, return_scores=True)
    model = model_of(key, precision="bf16")
    half = model.segment(image, NAMES, return_scores=True)
    assert model.describe()["precision"] == "bf16"
    assert model.describe()["weights_sha256"] == model_of(key).describe()["weights_sha256"]
    assert np.median(np.abs(full.scores - half.scores)) < 0.05


# --- checkpoints --------------------------------------------------------------------------------


def test_a_checkpoint_that_is_not_there_is_one_sentence(tf: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be loaded from .*nowhere"):
        method.CLIPSEG.load(tmp_path / "nowhere", device="cpu")


def test_a_checkpoint_of_another_model_is_refused(checkpoint: Checkpoints) -> None:
    with pytest.raises(InputError, match=r"cannot be loaded|lacks .* of the weights"):
        method.MASK2FORMER.load(checkpoint("eomt"), device="cpu")


def test_missing_weights_are_not_filled_with_random_numbers(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    source = checkpoint("clipseg")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors")
    tensors = {name: t for name, t in tensors.items() if not name.startswith("decoder.film_mul")}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 2 of the weights .* decoder\.film_mul"):
        method.CLIPSEG.load(tmp_path, device="cpu")


def test_pickled_weights_are_refused(checkpoint: Checkpoints, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    source = checkpoint("clipseg")
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(source / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        method.CLIPSEG.load(tmp_path, device="cpu")


def test_listing_the_methods_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import transformers_methods.method, sys; "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    paths = [str(EXAMPLE / "src"), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_without_transformers_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="pip install 'transformers"):
        method.SAM3.load("facebook/sam3", device="cpu")


def test_the_entry_points_are_the_methods() -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
    points = project["entry-points"]["openvocab.methods"]
    assert set(points) == {one.key for one in METHODS.values()}
    for key, target in points.items():
        assert getattr(method, target.partition(":")[2]).key == key


# --- CLIPSeg ------------------------------------------------------------------------------------


def test_clipseg_encodes_the_image_once_and_gets_the_model_s_own_logits(model_of: Any) -> None:
    model, image, words = model_of("clipseg"), picture(40, 60), ("cat", "traffic light")
    ours = model.maps(image, model.embed(words))
    checkpoint = model.checkpoint
    inputs = checkpoint.processor(
        text=[f"a photo of a {word}." for word in words],
        images=[image, image],
        padding=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        theirs = checkpoint.model(**inputs).logits
    torch.testing.assert_close(ours, theirs)


def test_clipseg_s_threshold_is_the_background(model_of: Any) -> None:
    model, image = model_of("clipseg"), picture(40, 60)
    plain = model.segment(image, NAMES, return_scores=True)
    middle = float(np.median(plain.scores.max(axis=0)))
    words = Vocabulary(tuple(NAMES), background=Background.threshold(middle))
    found = model.segment(image, words)
    expected = np.where(plain.scores.max(axis=0) < middle, -1, plain.labels)
    np.testing.assert_array_equal(found.labels, expected)
    with pytest.raises(InputError, match="no learned class"):
        model.segment(image, words.with_(background=Background.learned()))


def test_a_name_that_is_too_long_is_not_cut_in_silence(model_of: Any) -> None:
    for key, most in (("clipseg", 77), ("sam3", 32)):
        with pytest.raises(InputError, match=f"reads {most}; use a shorter name"):
            model_of(key).segment(picture(20, 20), ["cat", "x" * 100])


# --- SAM 3: overlapping masks by hand -----------------------------------------------------------

# Two cats, one of them large, a dog that lies on both, and a paw on the dog; rows are pixels.
LARGE_CAT = Instance(0, 0.6, np.array([[0.9, 0.9, 0.9, 0.9], [0.9, 0.9, 0.9, 0.1]], np.float32))
SMALL_CAT = Instance(0, 0.9, np.array([[0.2, 0.6, 0.2, 0.2], [0.2, 0.6, 0.2, 0.2]], np.float32))
DOG = Instance(1, 0.8, np.array([[0.1, 0.7, 0.7, 0.5], [0.1, 0.7, 0.9, 0.8]], np.float32))
PAW = Instance(2, 0.6, np.array([[0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.8, 0.1]], np.float32))
SCENE = [LARGE_CAT, SMALL_CAT, DOG, PAW]


@pytest.mark.parametrize(
    "overlap, expected",
    [
        # Scores 0.6 and 0.9 of the cats, 0.8 of the dog, 0.6 of the paw. Nothing above 0.5 is left
        # out, and the dog's 0.5 is not above it.
        ("score", [[0, 0, 1, 0], [0, 0, 1, 1]]),
        # Products: large cat 0.54, small cat 0.54, dog 0.56 and 0.72 and 0.64, paw 0.48.
        ("probability", [[0, 1, 1, 0], [0, 1, 1, 1]]),
        # Pixels: large cat 7, small cat 2, dog 5, paw 1.
        ("smallest", [[0, 0, 1, 0], [0, 0, 2, 1]]),
    ],
)
def test_overlapping_instances_by_hand(overlap: Any, expected: list[list[int]]) -> None:
    merged = merge_instances(SCENE, (2, 4), 3, overlap=overlap, return_scores=True)
    np.testing.assert_array_equal(merged.words, expected)
    assert merged.scores is not None
    np.testing.assert_allclose(merged.scores[0], [[0.6, 0.9, 0.6, 0.6], [0.6, 0.9, 0.6, 0]])
    np.testing.assert_allclose(merged.scores[1], [[0, 0.8, 0.8, 0], [0, 0.8, 0.8, 0.8]])
    np.testing.assert_allclose(merged.scores[2], [[0, 0, 0, 0], [0, 0, 0.6, 0]])


def test_of_equal_instances_the_first_name_wins_and_uncovered_pixels_are_nothing() -> None:
    half = np.array([[0.9, 0.9, 0.0]], np.float32)
    both = [Instance(0, 0.7, half), Instance(1, 0.7, half)]
    for overlap in ("score", "probability", "smallest"):
        merged = merge_instances(both, (1, 3), 2, overlap=overlap)
        np.testing.assert_array_equal(merged.words, [[0, 0, -1]])
    assert (merge_instances([], (1, 3), 2).words == -1).all()


class ModelByHand(torch.nn.Module):
    """A SAM 3 whose answer to each name is set by hand; tokens are the characters' codes."""

    def __init__(self, answers: dict[int, list[Instance]]) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.answers = answers

    def get_vision_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels

    def forward(
        self, vision_embeds: torch.Tensor, input_ids: torch.Tensor, **rest: Any
    ) -> SimpleNamespace:
        found = self.answers.get(int(input_ids[0, 1]), [])
        never = Instance(0, 0.1, np.ones((2, 4), np.float32))  # below the threshold
        everything = [*found, never]
        # The presence is 0.95 of every name, so queries score a little more than their product.
        scores = torch.tensor([one.score / 0.95 for one in everything])
        masks = torch.tensor(np.stack([one.mask for one in everything]))
        return SimpleNamespace(
            pred_logits=scores.logit()[None],
            presence_logits=torch.tensor([[0.95]]).logit(),
            pred_masks=masks.logit(eps=1e-6)[None],
        )


def by_hand(model_of: Any, **changes: Any) -> Any:
    """Return a segmenter to which "c" is the cats, "d" the dog and "p" the paw."""
    model = copy.copy(model_of("sam3"))
    vocab = model.checkpoint.processor.tokenizer.get_vocab()
    answers = {vocab["c</w>"]: [LARGE_CAT, SMALL_CAT], vocab["d</w>"]: [DOG], vocab["p</w>"]: [PAW]}
    model.checkpoint = replace(model.checkpoint, model=ModelByHand(answers))
    model.config = SAM3Config(**changes)
    return model


@pytest.mark.parametrize(
    "overlap, expected",
    [
        ("score", [[0, 0, 1, 0], [0, 0, 1, 1]]),
        ("probability", [[0, 1, 1, 0], [0, 1, 1, 1]]),
        ("smallest", [[0, 0, 1, 0], [0, 0, 2, 1]]),
    ],
)
def test_sam3_s_label_map_is_the_one_computed_by_hand(
    overlap: str, expected: list[list[int]], model_of: Any
) -> None:
    image = picture(2, 4)
    found = by_hand(model_of, overlap=overlap).segment(image, ["c", "d", "p"])
    np.testing.assert_array_equal(found.labels, expected)
    turned = by_hand(model_of, overlap=overlap).segment(image, ["p", "d", "c"])
    np.testing.assert_array_equal(2 - turned.labels, expected)


def test_sam3_leaves_the_background_to_what_no_instance_covers(model_of: Any) -> None:
    model, image = by_hand(model_of), picture(2, 4)
    dog = [[False, True, True, False], [False, True, True, True]]
    np.testing.assert_array_equal(model.segment(image, ["d"]).labels, np.where(dog, 0, -1))
    words = Vocabulary(("background", "d"), background=Background.names(["background"]))
    np.testing.assert_array_equal(model.segment(image, words).labels, np.where(dog, 1, 0))
    words = Vocabulary(("d", "c"), background=Background.names(["p"]))  # the paw wins nothing here
    np.testing.assert_array_equal(model.segment(image, words).labels >= 0, np.ones((2, 4), bool))


def test_sam3_s_thresholds_leave_instances_out(model_of: Any) -> None:
    image = picture(2, 4)
    strict = by_hand(model_of, score_threshold=0.7).segment(image, ["c", "d"])
    np.testing.assert_array_equal(strict.labels, [[-1, 0, 1, -1], [-1, 0, 1, 1]])
    words = Vocabulary(("c", "d"), background=Background.threshold(0.7))
    np.testing.assert_array_equal(by_hand(model_of).segment(image, words).labels, strict.labels)


def test_sam3_s_card_says_how_overlaps_are_resolved(model_of: Any) -> None:
    model = by_hand(model_of, overlap="smallest", score_threshold=0.3)
    card = protocol_card(model, Vocabulary(("cat",)))
    assert card.settings["overlap"] == "smallest"
    assert "the smallest instance wins" in card.post_processing
    assert card.thresholds == {"score": 0.3, "mask": 0.5}


def test_sam3_asks_the_model_as_its_own_post_processing_does(model_of: Any) -> None:
    """Instances are those of `post_process_instance_segmentation` of transformers."""
    model, image = model_of("sam3"), picture(40, 60)
    words = Vocabulary(("cat",))
    ours = list(model.instances(image, words))
    processor = model.checkpoint.processor
    inputs = processor(images=image, text=["cat"], return_tensors="pt")
    inputs.pop("original_sizes")
    with torch.inference_mode():
        output = model.checkpoint.model(**inputs)
    (theirs,) = processor.image_processor.post_process_instance_segmentation(
        output, threshold=0.0, mask_threshold=0.5, target_sizes=[(40, 60)]
    )
    np.testing.assert_allclose([one.score for one in ours], theirs["scores"].numpy(), rtol=1e-4)
    np.testing.assert_array_equal([one.mask > 0.5 for one in ours], theirs["masks"].numpy() > 0)


# --- closed sets --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["mask2former", "oneformer", "eomt"])
def test_labels_are_those_of_the_checkpoint_s_own_post_processing(key: str, model_of: Any) -> None:
    model, image = model_of(key), picture(40, 60)
    processor = model.checkpoint.processor
    with torch.inference_mode():
        if key == "oneformer":
            inputs = processor(images=[image], task_inputs=["semantic"], return_tensors="pt")
            inputs.pop("pixel_mask")
        else:
            inputs = processor(images=[image], return_tensors="pt")
            inputs.pop("pixel_mask", None)
        (theirs,) = processor.post_process_semantic_segmentation(
            model.checkpoint.model(**inputs), target_sizes=[(40, 60)]
        )
    np.testing.assert_array_equal(model.segment(image, NAMES).labels, theirs.numpy())


def test_padding_is_cut_off_before_scores_are_enlarged(model_of: Any) -> None:
    """The image fills the upper half of what the model sees; the padding below is all "wall"."""
    model = model_of("eomt-padded")

    def answer(pixel_values: torch.Tensor, **rest: Any) -> SimpleNamespace:
        assert pixel_values.shape[-2:] == (32, 32)
        masks = torch.full((1, 2, 32, 32), -20.0)
        masks[0, 0, :16], masks[0, 1, 16:] = 20.0, 20.0
        classes = torch.full((1, 2, 5), -20.0)
        classes[0, 0, 0], classes[0, 1, 2] = 20.0, 20.0
        return SimpleNamespace(
            masks_queries_logits=masks, class_queries_logits=classes, patch_offsets=[]
        )

    model.checkpoint = replace(model.checkpoint, model=_Answer(answer))
    found = model.segment(picture(30, 60), NAMES)
    assert (found.labels == 0).all()


class _Answer(torch.nn.Module):
    def __init__(self, answer: Callable[..., Any]) -> None:
        super().__init__()
        self.anchor, self.answer = torch.nn.Parameter(torch.zeros(1)), answer

    def forward(self, **inputs: Any) -> Any:
        return self.answer(**inputs)


def scored(model_of: Any, scores: list[list[float]], **changes: Any) -> Any:
    """Return a segmenter that gives its four labels these scores at the pixels of a row."""
    model = model_of("mask2former", config=ClosedSetConfig(**changes))
    model.label_scores = lambda image: torch.tensor(scores)[:, None, :]
    return model


ROW = [  # of "cat", "sofa, couch", "wall-other-merged" and "traffic light"
    [0.9, 0.1, 0.2, 0.3],
    [0.1, 0.8, 0.3, 0.1],
    [0.2, 0.2, 0.4, 0.0],
    [0.0, 0.0, 0.1, 0.6],
]


def test_names_and_labels_are_matched_and_what_has_no_match_is_listed(model_of: Any) -> None:
    model = scored(model_of, ROW)
    with pytest.warns(UserWarning, match="no label for 1 of the 3 names .* zebra"):
        found = model.segment(picture(1, 4), ["wall", "zebra", "Sofa"])
    np.testing.assert_array_equal(found.labels, [[-1, 2, 0, -1]])
    assert found.extra["names_without_label"] == ["zebra"]
    assert found.extra["labels_without_name"] == ["cat", "traffic light"]


def test_labels_without_a_name_can_be_left_out(model_of: Any) -> None:
    model = scored(model_of, ROW, unmatched="leave out")
    found = model.segment(picture(1, 4), ["wall", "sofa"], return_scores=True)
    np.testing.assert_array_equal(found.labels, [[0, 1, 0, 1]])
    np.testing.assert_allclose(found.scores[:, 0], [ROW[2], ROW[1]])


def test_background_words_and_thresholds_of_closed_sets(model_of: Any) -> None:
    model = scored(model_of, ROW)
    words = Vocabulary(("background", "cat", "couch"), background=Background.names(["wall"]))
    np.testing.assert_array_equal(model.segment(picture(1, 4), words).labels, [[1, 2, 0, 0]])
    words = Vocabulary(tuple(NAMES), background=Background.threshold(0.7))
    np.testing.assert_array_equal(model.segment(picture(1, 4), words).labels, [[0, 1, -1, -1]])
    with pytest.raises(InputError, match="no learned class"):
        model.segment(picture(1, 4), words.with_(background=Background.learned()))


def test_the_card_for_a_data_set_lists_what_has_no_match(model_of: Any) -> None:
    model = model_of("mask2former", config=ClosedSetConfig(aliases={"cat": "kitten"}))
    words = Vocabulary(("kitten", "wall", "zebra"))
    assert method.MASK2FORMER.for_data is not None
    data: Any = SimpleNamespace(vocabulary=words)
    card = protocol_card(method.MASK2FORMER.for_data(model, data), words)
    assert card.settings["names_without_label"] == ["zebra"]
    assert card.settings["labels_without_name"] == ["sofa, couch", "traffic light"]
    assert card.settings["aliases"] == {"cat": "kitten"}
    assert "names_without_label" not in model.describe()


@pytest.mark.parametrize(
    "label, names, expected",
    [
        ("cat", ["cat"], 0),
        ("Traffic-Light", ["car", "traffic light"], 1),
        ("wall-other-merged", ["wall"], 0),
        ("tree-merged", ["tree"], 0),
        ("windowpane", ["window, windowpane "], 0),
        ("door;double door", ["door", "window"], 0),
        ("screen", ["screen door, screen", "screen, CRT screen"], None),  # two fit
        ("screen", ["screen door, screen", "screen"], 1),  # one is equal as a whole
        ("other", ["cat", "other"], 1),
        ("cat", ["cattle"], None),
    ],
)
def test_the_rule_of_matching(label: str, names: list[str], expected: int | None) -> None:
    labels = [label, "always there"]
    found = match_labels(labels, Vocabulary((*names, "always there")))
    assert found.words[0] == expected


def test_synonyms_match_too() -> None:
    words = Vocabulary(("feline", "dog"), synonyms=(("cat",), ()))
    assert match_labels(["cat", "dog"], words).words == (0, 1)


@pytest.mark.parametrize(
    "names, aliases, words",
    [
        (["zebra"], {}, "none of the 1 names"),
        (["cat"], {"kitten": "cat"}, "'kitten', which is no label of the model"),
        (["cat"], {"sofa": "couch"}, "'couch', which is no name of the vocabulary"),
    ],
)
def test_matches_that_cannot_be_are_refused(names: Any, aliases: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        match_labels(["cat", "sofa"], Vocabulary(tuple(names)), aliases)


# --- sizes and settings -------------------------------------------------------------------------


def test_large_and_thin_images_are_fitted() -> None:
    assert fitted(picture(50, 100), 100).shape == (50, 100, 3)
    assert fitted(picture(50, 100), 64).shape == (32, 64, 3)
    assert fitted(picture(2, 160), 100).shape == (13, 100, 3)
    assert fitted(picture(160, 1), 1000).shape == (160, 20, 3)


def test_labels_are_enlarged_by_the_pixel_under_the_middle() -> None:
    small = np.array([[1, 2], [3, 4]])
    expected = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    np.testing.assert_array_equal(enlarged(small, (4, 4)), expected)
    np.testing.assert_array_equal(enlarged(small[None], (1, 2)), [[[3, 4]]])


@pytest.mark.parametrize("key", METHODS)
def test_an_image_that_is_too_large_is_segmented_smaller(key: str, model_of: Any) -> None:
    small: dict[str, Any] = {
        "clipseg": CLIPSegConfig(max_side=20),
        "sam3": SAM3Config(max_side=20, score_threshold=0.0),
    }
    model = model_of(key, config=small.get(key, ClosedSetConfig(max_side=20)))
    found = model.segment(picture(40, 60), NAMES, return_scores=True)
    assert found.labels.shape == (40, 60) and found.scores.shape == (4, 40, 60)
    assert "long side <= 20" in model.describe()["resize_rule"]


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: SAM3Config(overlap="largest"), "use one of score, probability, smallest"),
        (lambda: SAM3Config(score_threshold=1.5), "score_threshold is 1.5"),
        (lambda: SAM3Config(prompt="a photo"), "must have one"),
        (lambda: CLIPSegConfig(max_side=0), "max_side is 0"),
        (lambda: ClosedSetConfig(unmatched="drop"), "use 'compete' or 'leave out'"),
    ],
)
def test_settings_that_can_only_be_mistakes_are_refused(make: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
