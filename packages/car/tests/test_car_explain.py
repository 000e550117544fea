"""The pictures of CaR's steps come from the running recurrence."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from car.explain import explain, labels_before_crf
from car.labels import paint
from car.recurrence import Recurrence
from car.segmenter import load_car
from openvocab.drawing.maps import fit_to, number
from openvocab.methods import available_methods
from openvocab.vocabulary import Vocabulary
from openvocab.world import scene, world_vocabulary

NAMES = Vocabulary(("red ball", "blue box", "wall"), "car")


@pytest.fixture(scope="module")
def world():
    return load_car("world", device="cpu")


def test_kept_and_dropped_are_those_of_the_recurrence(world) -> None:
    image, _, _ = scene(3, "val")
    steps = []
    world.on_step = lambda recurrence, step: steps.append((recurrence, step))
    before = world.segment(image, world_vocabulary())
    shown = explain(world, image, world_vocabulary())
    taken, threshold = len(steps), world.config.confidence_threshold
    world.on_step = None
    after = world.segment(image, world_vocabulary())
    np.testing.assert_array_equal(before.labels, after.labels)
    assert len(steps) == taken  # explaining calls nobody else
    groups = [one.group for one in shown if one.title == "Scores"]
    assert len(groups) == taken > 1
    for count, ((recurrence, step), group) in enumerate(zip(steps, groups, strict=True), start=1):
        start = f"Step {count}: {len(step.kept)} of {len(step.names)} names are kept"
        assert group.startswith(start)
        scores = {recurrence.names[n]: s for n, s in zip(step.names, step.scores, strict=True)}
        own = [one for one in shown if one.group == group and one.title != "Scores"]
        for one in own:
            name, verdict = re.fullmatch(r"(.*) \((kept|dropped)\)", one.title).groups()
            kept = scores[name] > threshold
            assert verdict == ("kept" if kept else "dropped")
            if not one.empty:
                assert f"Score {number(scores[name])}, acceptance threshold" in one.text
        empty = {one.title.rpartition(" ")[0] for one in own if one.empty}
        assert empty == {
            recurrence.names[step.names[place]]
            for place in range(len(step.names))
            if not step.maps.proposals[place].any()
        }


def test_pictures_show_the_photo_and_every_part(world) -> None:
    image, _, _ = scene(3, "val")
    shown = explain(world, image, world_vocabulary())
    assert [one.title for one in shown[-3:]] == ["Before", "After", "The label map"]
    np.testing.assert_array_equal(shown[0].picture, fit_to(image, 320))
    for one in shown:
        assert one.picture.dtype == np.uint8 and one.picture.ndim == 3
        assert one.title and one.group and max(one.picture.shape) < 2000
    assert available_methods()["car"].explain(world, image, world_vocabulary())[1].group


def test_things_and_stuff_have_their_own_steps(tiny, photo) -> None:
    vocabulary = replace(NAMES, things=(True, False, False))
    shown = explain(tiny(stuff_visual_prompt_type=("gray",)), photo, vocabulary)
    groups = list(dict.fromkeys(one.group.partition(":")[0] for one in shown))
    assert groups[0] == "Input" and groups[-1] == "Result"
    assert groups.index("Step 1, stuff") < groups.index("The CRF, stuff")
    assert groups.index("The CRF, stuff") < groups.index("Step 1, things")


@pytest.mark.parametrize("mode", ["semantic", "refer"])
def test_before_the_crf_the_highest_proposal_wins(tiny, photo, mode: str) -> None:
    segmenter = tiny(mode=mode)
    car = segmenter.car
    recurrence = Recurrence(car, car.prepare(photo), NAMES.names)
    recurrence.run()
    soft = np.stack(recurrence.kept.proposals)
    rest = 1 - (soft.max(axis=0) if mode == "semantic" else soft)
    labels = np.full(photo.shape[:2], -1, np.int32)
    masks = (soft == soft.max(axis=0)) & (soft > rest) if mode == "semantic" else soft > rest
    paint(labels, masks, recurrence.kept.scores, recurrence.kept.names)
    found = labels_before_crf(recurrence)
    assert (found == labels).mean() > 0.999  # ties aside
    assert (found >= 0).any()


@pytest.mark.parametrize("faithful", [False, True])
def test_an_image_without_anything_is_explained_too(tiny, faithful: bool) -> None:
    grey = np.full((16, 16, 3), 128, np.uint8)
    shown = explain(tiny(faithful=faithful), grey, NAMES)
    empty = [one.title for one in shown if one.empty]
    assert any(title.startswith("wall") for title in empty)
    assert "none of the names" in shown[-1].text
