from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from car.affinity import salient_boxes
from car.config import CaRConfig
from car.diagnosis import FirstSteps
from car.labels import merge_descriptions, paint
from car.mask_classifier import MaskClassifier
from car.mean_gradient import MeanFeature
from car.recurrence import CaR, Recurrence, select
from car.segmenter import CaRSegmenter
from openvocab.errors import InputError
from openvocab.vocabulary import Vocabulary

NEAR = 1e-4


@pytest.fixture(scope="module")
def run(recorded_clips, case_config, meta, golden, recur):
    """Run a recorded case and keep every step."""

    def run(name: str, **changes):
        with np.load(golden / f"case_{name}.npz") as file:
            image = file["image"]
        proposer, classifier = recorded_clips
        car = CaR(proposer, classifier, case_config(name, **changes), cache_dir=False)
        return recur(car, car.prepare(image), meta[name]["names"])

    return run


def test_every_step_equals_the_recording(golden, case_config, run, case_name: str) -> None:
    done = run(case_name)
    found = done.found
    config = case_config(case_name)
    with np.load(golden / f"case_{case_name}.npz") as file:
        assert len(done.steps) == int(file["n_steps"])
        for index, step in enumerate(done.steps):

            def recorded(key: str, index: int = index) -> np.ndarray:
                return file[f"s{index}.{key}"]

            assert list(step.queries) == recorded("cam_text").tolist()
            assert list(step.kept) == recorded("kept").tolist()
            np.testing.assert_allclose(step.maps.activation, recorded("cam"), atol=NEAR)
            np.testing.assert_allclose(step.maps.refined, recorded("cam_refined_low"), atol=NEAR)
            proposals = recorded("proposals")
            masks = np.stack(step.maps.proposals)
            np.testing.assert_allclose(masks, proposals, atol=NEAR)
            # The classifier sees other pixels where a proposal lies on the threshold.
            width = proposals.shape[2]
            inside = np.unpackbits(recorded("bin_masks"), axis=-1)[..., :width] > 0
            flipped = (masks > config.mask_threshold) != inside
            assert (abs(proposals[flipped] - config.mask_threshold) < NEAR).all()
            for place in np.flatnonzero(~flipped.any(axis=(1, 2))):
                row = step.score_matrix[place]
                np.testing.assert_allclose(row, recorded("score_matrix")[place], atol=NEAR)
                if index == 0:
                    prompted = recorded("prompted")[place]
                    np.testing.assert_array_equal(step.prompted[place], prompted)
        expected = file["final_masks"].astype(bool)
        wrong = (found.masks != expected).any(axis=0)
        assert wrong.mean() <= 1e-3
        if not flipped.any():
            np.testing.assert_allclose(found.scores, file["final_scores"], atol=NEAR)
        labels = np.zeros(expected.shape[1:], dtype=np.int32)
        paint(labels, found.masks, found.scores, range(1, len(expected) + 1))
        assert (labels == file["label_map"]).mean() >= 0.999
        if "label_map_thing_stuff" in file:
            both = np.zeros_like(labels)
            paint(both, found.masks, found.scores, file["stuff_ids"] + 1)
            things = file["thing_masks"].astype(bool)
            paint(both, things, file["thing_scores"], file["thing_ids"] + 1)
            assert (both == file["label_map_thing_stuff"]).mean() >= 0.999
        if "merged" in file:
            merged = merge_descriptions(found.masks, found.scores)
            assert (merged == file["merged"][0].astype(bool)).mean() >= 0.999
        if (given := done.crf_probability) is not None:
            inputs = given.reshape(-1, *given.shape[-3:])
            for number, probability in enumerate(inputs):
                np.testing.assert_allclose(probability, file[f"crf{number}.prob"], atol=NEAR)


def test_sane_mode_gives_the_last_name_its_own_mask(
    recorded_clips, case_config, meta, golden, recur, monkeypatch
) -> None:
    """The recording's last maps are empty, and the original takes those of all names before."""
    with np.load(golden / "case_blurgray.npz") as file:
        image, names = file["image"], meta["blurgray"]["names"]
    config = case_config("blurgray")
    monkeypatch.setattr(  # the original's boxes make the last map empty
        "car.mask_proposals.salient_boxes",
        lambda score_map, threshold, **_: salient_boxes(score_map, threshold, faithful=True),
    )
    car = CaR(*recorded_clips, config, cache_dir=False)  # type: ignore[misc]
    scene = car.prepare(image)
    original = recur(car, scene, names)
    sane = recur(car, scene, names, replace(config, faithful=False))
    first, last = sane.steps[0], sane.steps[-1]
    assert not last.maps.proposals.any()
    assert not original.found.masks.any()  # the survivor got the mask of name 0, which wins nothing
    assert len(original.crf_probability) == 1 + len(names)
    own = first.maps.proposals[last.names[0]]
    assert len(sane.crf_probability) == 2
    np.testing.assert_allclose(sane.crf_probability[1], own)
    np.testing.assert_allclose(sane.crf_probability[0], (1 - own) ** 2, atol=1e-6)


def test_sane_mode_scores_sentences_and_not_characters(run, golden) -> None:
    sane, original = run("refer", faithful=False), run("refer")
    first, second = sane.steps[:2]
    assert (first.score_matrix.sum(axis=1) - 1 < 1e-5).all()
    np.testing.assert_allclose(
        original.steps[0].score_matrix, first.score_matrix, atol=0.2
    )  # boxes differ at the border
    # Three rows of characters are all alike; sentences are not.
    assert abs(original.steps[1].score_matrix - second.score_matrix).max() > 0.05


def test_faithful_characters_that_do_not_exist_are_explained(tiny_clips) -> None:
    config = CaRConfig(
        mode="refer", semantic_templates=None, faithful=True, confidence_threshold=0.0
    )
    car = CaR(*tiny_clips, config, cache_dir=False)  # type: ignore[misc]
    scene = car.prepare(np.full((32, 32, 3), 128, np.uint8))
    names = [f"thing {number}" for number in range(30)]
    with pytest.raises(InputError, match="the original crashes here"):
        Recurrence(car, scene, names).run()


def test_names_leave_until_none_does(run) -> None:
    steps = run("multi1").steps
    for before, after in pairwise(steps):
        assert after.names == tuple(before.names[place] for place in before.kept)
    assert len(steps[-1].kept) == len(steps[-1].names)


def test_selection_is_strict_and_never_empty() -> None:
    scores = np.array([0.2, 0.5, 0.5, 0.1], np.float32)
    assert select(scores, 0.1) == (0, 1, 2)
    assert select(scores, 0.5) == (1,)  # none is above: the first highest
    assert select(np.zeros(3, np.float32), 0.0) == (0,)


class Count:
    """Counts the images that pass a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.images: list[int] = []
        module.register_forward_hook(lambda _, args, __: self.images.append(len(args[0])))


def test_nothing_is_computed_twice(
    recorded_clips, case_config, meta, golden, recur, monkeypatch
) -> None:
    proposer, judge = recorded_clips
    with np.load(golden / "case_multi3.npz") as file:
        image = file["image"]
    car = CaR(proposer, judge, case_config("multi3"), cache_dir=False)
    trunk = [Count(block.mlp) for block in proposer.visual.blocks[:-1]]
    last = Count(proposer.visual.blocks[-1].mlp)
    classifier = Count(judge.visual.conv1)
    texts: list[int] = []
    encode = type(judge).encode_text

    def counted(self, tokens):
        texts.append(len(tokens))
        return encode(self, tokens)

    monkeypatch.setattr(type(judge), "encode_text", counted)
    backwards: list[int] = []
    gradients = MeanFeature.mean_gradients

    def counted_gradients(self, directions):
        backwards.append(len(directions))
        return gradients(self, directions)

    monkeypatch.setattr(MeanFeature, "mean_gradients", counted_gradients)
    built: list[int] = []
    balance = __import__("car.mask_proposals", fromlist=["balance"]).balance
    monkeypatch.setattr("car.mask_proposals.balance", lambda m: built.append(1) or balance(m))
    names = meta["multi3"]["names"]
    found = recur(car, car.prepare(image), names)
    sizes = [len(step.names) for step in found.steps]
    assert sizes == [6, 3, 2]
    assert [count.images for count in trunk] == [[1]] * len(trunk)  # once for the image
    assert len(built) == 1
    fallbacks = [int(step.maps.foreground_only.sum()) for step in found.steps]
    expected = [n for pair in zip(sizes, fallbacks, strict=True) for n in pair if n]
    assert backwards == expected  # one batched pass for all names of a step
    assert last.images == [1]
    judged = [step for step in found.steps if len(step.names) > 1]
    pictures = {picture.tobytes() for step in judged for picture in step.prompted}
    assert sum(classifier.images) == len(pictures)  # each picture once
    templates = 15 * len(names)
    background = 23
    queries = len(names) + 3  # raw, then in the template those that stayed
    assert sum(texts) == templates + background + queries
    texts.clear()
    Recurrence(car, car.prepare(image), names).run()
    assert not texts  # all of them are remembered


def test_referring_runs_the_trunk_once_for_all_sentences(
    recorded_clips, case_config, golden
) -> None:
    with np.load(golden / "case_refer.npz") as file:
        image, names = file["image"], file["names"].tolist()
    car = CaR(*recorded_clips, case_config("refer"), cache_dir=False)  # type: ignore[misc]
    trunk = Count(recorded_clips[0].visual.blocks[0].mlp)
    Recurrence(car, car.prepare(image), names).run()
    assert trunk.images == [1]


def test_equal_pictures_are_encoded_once(tiny_clips, photo) -> None:
    classifier, seen = MaskClassifier(tiny_clips[1]), Count(tiny_clips[1].visual.conv1)
    dark, bright = photo // 2, photo.copy()
    found = classifier.encode(iter([photo, dark, bright, dark, photo[::-1]]), batch=2)
    assert sum(seen.images) == 3
    apart = torch.cat(
        [classifier.encode([one], batch=2) for one in (photo, dark, photo, dark, photo[::-1])]
    )
    torch.testing.assert_close(found, apart)
    known: dict[bytes, torch.Tensor] = {}
    classifier.encode([photo, dark], known, batch=2)
    seen.images.clear()
    torch.testing.assert_close(
        classifier.encode([dark, photo[::-1], photo], known, batch=2), apart[[1, 4, 0]]
    )
    assert seen.images == [1]


@pytest.mark.parametrize("faithful", [False, True])
def test_one_step_is_known_from_the_first_of_a_recurrence(
    recorded_clips, case_config, meta, golden, faithful: bool, monkeypatch
) -> None:
    with np.load(golden / "case_multi3.npz") as file:
        image = file["image"]
    both = {"faithful": faithful, "stuff_visual_prompt_type": ("black",)}  # two passes
    config = replace(case_config("multi3"), **both)
    names = meta["multi3"]["names"]
    things = tuple(index % 2 == 0 for index in range(len(names)))
    vocabulary = Vocabulary(tuple(names), things=things)
    segmenter = CaRSegmenter(*recorded_clips, config, cache_dir=False)  # type: ignore[call-arg]
    alone = segmenter.with_config(replace(config, max_steps=1))
    expected = alone.segment(image, vocabulary, return_scores=True)
    first = FirstSteps(segmenter)
    whole = segmenter.segment(image, vocabulary)
    assert (whole.labels != expected.labels).any()  # the recurrence did something
    told = first.one_step()
    assert told.describe() == alone.describe()
    again = told.segment(image[:, ::-1], vocabulary)  # never seen: computed
    np.testing.assert_array_equal(again.labels, alone.segment(image[:, ::-1], vocabulary).labels)
    monkeypatch.setattr(
        told.car.mask_proposal_generator, "encode", None
    )  # seen: not looked at again
    found = told.segment(image, vocabulary, return_scores=True)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
