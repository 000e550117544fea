from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from car.config import CaRConfig
from car.mask_classifier import SentenceScorer, TemplateScorer
from car.segmenter import CaRSegmenter, shrink
from openvocab.errors import InputError
from openvocab.segmenter import Segmenter
from openvocab.vocabulary import Background, Vocabulary

NAMES = ["red ball", "blue box", "wall"]


def test_every_pixel_gets_a_name_or_nothing(tiny, photo) -> None:
    segmenter = tiny()
    assert isinstance(segmenter, Segmenter)
    found = segmenter.segment(photo, NAMES, return_scores=True)
    assert found.labels.shape == photo.shape[:2]
    assert set(np.unique(found.labels)) <= {-1, 0, 1, 2}
    assert found.scores.shape == (3, *photo.shape[:2])
    named = found.labels >= 0
    assert named.any()
    winners = np.take_along_axis(found.scores, found.labels.clip(0)[None], 0)[0]
    assert (winners[named] == found.scores.max(axis=0)[named]).all()


def test_a_list_gives_the_same_as_its_images(tiny, photo) -> None:
    segmenter = tiny()
    both = segmenter.segment([photo, photo[:, ::-1]], NAMES)
    alone = segmenter.segment(photo[:, ::-1], NAMES)
    np.testing.assert_array_equal(both[1].labels, alone.labels)


def test_callers_may_have_switched_gradients_off(tiny, photo) -> None:
    expected = tiny().segment(photo, NAMES)
    with torch.inference_mode():
        found = tiny().segment(photo, NAMES)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_scores_that_are_not_finite_are_one_sentence(
    tiny, photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (np.nan, np.inf):
        overflowed = np.full((len(NAMES), len(NAMES)), value, np.float32)
        for scorer in (SentenceScorer, TemplateScorer):
            monkeypatch.setattr(scorer, "scores", lambda *_, scores=overflowed: scores)
        with pytest.raises(InputError, match=r"not finite.*fp32"):
            tiny().segment(photo, NAMES)


def test_background_is_what_nothing_wins(tiny, photo) -> None:
    names = ("background", *NAMES)
    policy = Background.names(("background",))
    with_class = tiny().segment(photo, Vocabulary(names, "car", policy), return_scores=True)
    plain = tiny().segment(photo, NAMES)
    np.testing.assert_array_equal(with_class.labels, plain.labels + 1)
    assert with_class.scores[0].max() > 0


def test_duplicate_names_are_one_name(tiny, photo) -> None:
    once = tiny().segment(photo, NAMES)
    again = tiny().segment(photo, Vocabulary((*NAMES, "red ball"), "car"))
    np.testing.assert_array_equal(once.labels, again.labels)
    with pytest.warns(UserWarning, match="2 of 5 names are given twice"):
        texts = tiny().segment(photo, ", ".join([*NAMES, "Red  Ball", NAMES[1]]))
    np.testing.assert_array_equal(once.labels, texts.labels)


def test_one_name(tiny, photo) -> None:
    segmenter, steps = tiny(), []
    segmenter.on_step = lambda _, step: steps.append(step)
    found = segmenter.segment(photo, ["red ball"])
    assert set(np.unique(found.labels)) <= {-1, 0}
    assert [step.scores.tolist() for step in steps] == [[1.0], [1.0]]


def test_names_that_all_lose_leave_the_best(tiny, photo) -> None:
    segmenter, steps = tiny(confidence_threshold=1.0), []
    segmenter.on_step = lambda _, step: steps.append(step)
    found = segmenter.segment(photo, NAMES)
    first = steps[0]
    assert first.kept == (int(first.scores.argmax()),)
    assert len(set(np.unique(found.labels)) - {-1}) <= 1


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("mode", ["semantic", "refer"])
def test_an_image_that_shows_nothing_is_all_background(tiny, faithful: bool, mode) -> None:
    """All patches are alike, so every map is empty; the original crashes."""
    segmenter = tiny(faithful=faithful, mode=mode)
    grey = np.full((16, 16, 3), 128, np.uint8)  # a single patch
    found = segmenter.segment(grey, NAMES)
    assert (found.labels == -1).all()
    assert not segmenter.find_object(grey, NAMES).any()


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("mode", ["semantic", "refer"])
def test_a_crf_in_which_only_the_background_wins(tiny, photo, faithful: bool, mode) -> None:
    segmenter = tiny(faithful=faithful, mode=mode, bg_factor=1e-6)
    found = segmenter.segment(photo, NAMES)  # the background is everywhere as sure as can be
    assert found.labels.shape == photo.shape[:2]
    assert (found.labels == -1).mean() > 0.5
    assert segmenter.find_object(photo, NAMES).shape == photo.shape[:2]


@pytest.mark.parametrize("size", [(20, 3000), (3000, 20), (1, 1), (5, 700), (64, 304)])
def test_thin_and_tiny_images(tiny, size) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    found = tiny().segment(image, NAMES)
    assert found.labels.shape == size
    if min(size) > 1:
        assert (found.labels >= 0).any()


@pytest.mark.parametrize("names", [[], "", ["", " "], " , ", ["background"]])
def test_no_names_are_refused(tiny, photo, names) -> None:
    with pytest.raises(InputError):
        tiny().segment(photo, names)


def test_no_sentences_are_refused(tiny, photo) -> None:
    with pytest.raises(InputError, match="no sentence"):
        tiny().find_object(photo, ["", " "])


def test_a_missing_image_is_named(tiny, tmp_path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jpg"):
        tiny().segment(tmp_path / "nowhere.jpg", NAMES)


def test_a_name_that_is_too_long_is_named(tiny, photo) -> None:
    with pytest.raises(InputError, match="tokens; CLIP reads"):
        tiny().segment(photo, ["ball", "very " * 80 + "long name"])


@pytest.mark.parametrize("policy", [Background.threshold(0.3), Background.learned()])
def test_policies_that_it_does_not_have_are_refused(tiny, photo, policy) -> None:
    with pytest.raises(InputError, match="CaR has no background by"):
        tiny().segment(photo, Vocabulary(tuple(NAMES), "car", policy))


def test_background_words_replace_the_configured_ones(tiny, photo) -> None:
    segmenter = tiny()
    seen = []
    segmenter.on_start = lambda run: seen.append((run.names, run.config.bg_cls))
    policy = Background.names(("sky", "grass"))
    segmenter.segment(photo, Vocabulary(tuple(NAMES), "car", policy))
    assert seen == [(tuple(NAMES), ("sky", "grass"))]


def test_things_and_stuff_are_two_passes_and_things_are_on_top(tiny, photo) -> None:
    things = (True, False, False)
    vocabulary = Vocabulary(tuple(NAMES), "car", things=things)
    settings = {"stuff_visual_prompt_type": ("blur", "gray"), "stuff_bg_factor": 3.0}
    segmenter, passes = tiny(**settings), []
    segmenter.on_start = passes.append
    found = segmenter.segment(photo, vocabulary)
    assert [one.names for one in passes] == [("blue box", "wall"), ("red ball",)]
    top = passes[1].result.masks[0]
    assert (found.labels[top] == 0).all()
    single, passes = tiny(), []
    single.on_start = passes.append
    single.segment(photo, vocabulary)
    assert len(passes) == 1  # not asked for


def test_the_pass_for_stuff_has_things_as_background() -> None:
    config = CaRConfig(stuff_visual_prompt_type=("gray",), stuff_bg_factor=2.0, bg_factor=1.0)
    stuff = config.stuff_pass(("cat", "dog"))
    assert stuff.bg_cls == ("cat", "dog")
    assert stuff.visual_prompt_type == ("gray",)
    assert stuff.bg_factor == 2.0


def test_large_images_are_shrunk_with_a_warning(tiny) -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 400, 3), dtype=np.uint8)
    with pytest.warns(UserWarning, match="400x90 pixels is segmented at 160x36"):
        found = tiny(max_side=160).segment(image, NAMES, return_scores=True)
    assert found.labels.shape == (90, 400) and found.scores.shape == (3, 90, 400)


def test_shrinking_keeps_thin_images_and_bounds_their_area() -> None:
    def size(height: int, width: int, limit: int | None) -> tuple[int, ...]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return shrink(np.zeros((height, width, 3), np.uint8), limit).shape[:2]

    assert size(3000, 4000, 1024) == (768, 1024)
    assert size(20, 3000, 1024) == (20, 3000)
    assert size(100, 9000, 1024) == (32, 2880)
    assert size(300, 400, 1024) == (300, 400)
    assert size(3000, 4000, None) == (3000, 4000)
    height, width = size(10, 400_000, 256)
    assert height * width <= 256**2 * 1.1


def test_the_same_clip_may_take_both_roles(tiny_clips, photo) -> None:
    segmenter = CaRSegmenter(tiny_clips[1], config=CaRConfig(), cache_dir=False)
    assert segmenter.car.mask_proposal_generator.text is segmenter.car.mask_classifier.text
    assert segmenter.segment(photo, NAMES).labels.shape == photo.shape[:2]


def test_bf16_classifies_prompted_images_and_leaves_the_proposals_alone(
    tiny_clips, photo, recur
) -> None:
    import copy

    config = CaRConfig(confidence_threshold=0.0, mask_threshold=0.4)
    copies: Any = copy.deepcopy(tiny_clips)
    half = CaRSegmenter(copies[0], copies[1], config, precision="bf16", cache_dir=False)
    full = CaRSegmenter(*tiny_clips, config, cache_dir=False)  # type: ignore[call-arg]
    assert half.weights_sha256 == full.weights_sha256
    steps = [recur(one.car, one.car.prepare(photo), NAMES).steps[0] for one in (half, full)]
    assert (steps[0].maps.activation == steps[1].maps.activation).all()
    scores = [step.score_matrix for step in steps]
    assert (scores[0] != scores[1]).any()
    np.testing.assert_allclose(scores[0], scores[1], atol=0.03)


def test_a_clip_in_both_roles_proposes_in_fp32_and_classifies_in_bf16(tiny_clips, photo) -> None:
    import copy

    shared = copy.deepcopy(tiny_clips[1])
    segmenter = CaRSegmenter(shared, precision="bf16", cache_dir=False)
    car = segmenter.car
    assert car.mask_proposal_generator.visual.proj.dtype == torch.float32
    assert car.mask_classifier.visual.proj.dtype == torch.bfloat16
    assert segmenter.weight_files() == CaRSegmenter(shared, cache_dir=False).weight_files()
    assert segmenter.segment(photo, NAMES).labels.shape == photo.shape[:2]


def test_the_description_fills_a_protocol_card(tiny) -> None:
    from openvocab.evaluation.protocol import protocol_card

    segmenter = tiny(faithful=True, max_side=None)
    card = protocol_card(segmenter, Vocabulary.load("car-voc-21"))
    assert card.method == "CaR" and len(card.weights_sha256) == 64
    assert card.settings["faithful"] is True
    assert card.resize_rule.startswith("native size")
    assert tiny(bg_factor=2.0).describe() != segmenter.describe()


def test_sam_masks_replace_those_they_fit(tiny, photo) -> None:
    segmenter = tiny()
    halves = np.zeros((2, *photo.shape[:2]), dtype=bool)
    halves[0, :, :60], halves[1, :, 60:] = True, True
    plain = segmenter.segment(photo, ["red ball"])
    segmenter.mask_generator = lambda image: halves
    snapped = segmenter.segment(photo, ["red ball"])
    mask = snapped.labels == 0
    assert any((mask == union).all() for union in (*halves, halves.any(axis=0)))
    assert (mask != (plain.labels == 0)).any()
    assert "SAM" in segmenter.describe()["post_processing"]
