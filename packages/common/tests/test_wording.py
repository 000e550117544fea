"""Wording as a variable: distractors, paraphrases, templates and absent names, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openvocab import wording as command
from openvocab.cli import run
from openvocab.clip.template_sets import load_templates
from openvocab.datasets.samples import FolderDataset
from openvocab.errors import InputError, NamesError
from openvocab.evaluation.log import ImageRecord
from openvocab.evaluation.results import Result
from openvocab.evaluation.variations import SomeClasses, Study, WordedSegmenter
from openvocab.evaluation.wording import absent_names, spread, table, vary_wording
from openvocab.metrics.bootstrap import share_interval
from openvocab.metrics.scores import count_pairs
from openvocab.segmenter import BaseSegmenter, Segmentation
from openvocab.vocabulary import Background, Vocabulary

NAMES = ("crab", "sofa", "gray rug")
POOL = ("accordion", "couch", "saddle", "violin")  # a couch is a sofa


class Reader(BaseSegmenter):
    """Reads labels from the red channel, and is led astray by words.

    Words that it takes for others: a "saddle" takes the left half of the class 0, "a crab" is never
    found, and template sets with one template lose the class 2.
    """

    def __init__(self, unknown: tuple[str, ...] = (), own_templates: bool = False) -> None:
        self.unknown, self.own_templates, self.images = unknown, own_templates, 0

    def segment_arrays(
        self, images: Any, vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        if bad := [word for word in vocabulary.words if word in self.unknown]:
            raise NamesError(f"{bad[0]!r} cannot be used", bad)
        self.images += len(images)
        return [self._one(image, vocabulary, return_scores) for image in images]

    def _one(self, image: Any, vocabulary: Vocabulary, return_scores: bool) -> Segmentation:
        labels = np.asarray(image)[..., 0].astype(np.int32)
        labels = np.where(labels < len(vocabulary), labels, -1)
        if "saddle" in vocabulary.words:
            labels[:, :4][labels[:, :4] == 0] = -1
        if "a crab" in vocabulary.words:
            labels[labels == 0] = 1
        templates = 0 if self.own_templates else len(load_templates(vocabulary.templates))
        if templates == 1:
            labels[labels == 2] = 1
        scores = np.full((len(vocabulary), *labels.shape), templates, np.float32)
        return Segmentation(labels, vocabulary, scores if return_scores else None)

    def describe(self) -> dict[str, Any]:
        return {"method": "Reader"}


@pytest.fixture
def data(tmp_path: Path) -> FolderDataset:
    """Four images 6 x 8 whose upper half is class 0, 1, 0, 1 and whose lower half is class 2."""
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for number in range(4):
        labels = np.full((6, 8), 2, np.uint8)
        labels[:3] = number % 2
        Image.fromarray(labels).save(tmp_path / f"labels/{number}.png")
        Image.fromarray(np.repeat(labels[..., None], 3, -1)).save(tmp_path / f"images/{number}.png")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return FolderDataset(tmp_path / "images", tmp_path / "labels", tmp_path / "names.txt")


def by_title(found: Any, part: str) -> dict[str, Any]:
    return {row["title"]: row for row in found["rows"] if row["part"] == part}


def test_every_wording_has_its_score_and_its_difference(data: Any, tmp_path: Path) -> None:
    found = vary_wording(Reader(), data, tmp_path / "out", pool=POOL, counts=[1, 9], progress=False)
    assert json.loads((tmp_path / "out" / "wording.json").read_text("utf-8")) == found
    others = found["card"]["wording"]["distractors"]
    assert sorted(others) == ["accordion", "saddle", "violin"]  # a couch may mean the sofa
    rows = by_title(found, "distractors")
    assert list(rows) == ["own wording", "1 other names", "3 other names"]
    assert rows["own wording"]["miou"] == 100 and "difference" not in rows["own wording"]
    # Half of the class 0 goes to the saddle: IoU 50, 100 and 100.
    assert rows["3 other names"]["miou"] == pytest.approx(250 / 3)
    assert rows["3 other names"]["difference"] == pytest.approx(-50 / 3)
    low, high = (rows["3 other names"][f"difference_{end}"] for end in ("low", "high"))
    assert low < high <= 0
    rows = by_title(found, "paraphrase")
    # Class 0 is lost, and class 1 is half of what is called so: IoU 0, 50 and 100.
    assert rows["with an article"]["miou"] == 50
    assert rows["plural"]["miou"] == 100 and rows["aliases of other data sets"]["changed"] == 1
    written = found["card"]["wording"]["paraphrases"]
    assert written["British for American spelling and back"] == ["crab", "sofa", "grey rug"]
    rows = by_title(found, "templates")
    assert rows["imagenet"]["difference"] == 0 and rows["origami"]["miou"] < 100
    assert "vild:3" in rows and "vild:0" not in rows  # that is the set "single"
    assert spread(found["rows"], "paraphrase") == 50
    assert found["absent"]["names"]["estimate"] == found["absent"]["pixels"]["estimate"] == 0


def test_each_evaluation_says_its_wording_and_can_be_compared(data: Any, tmp_path: Path) -> None:
    vary_wording(Reader(), data, tmp_path, pool=POOL, seed=3, progress=False)
    own = Result.load(tmp_path / "own" / "result.json").card
    plural = Result.load(tmp_path / "paraphrase-plural" / "result.json").card
    assert own.settings["wording"] == "own" and plural.settings["wording"] == "paraphrase: plural"
    assert own.vocabulary_hash != plural.vocabulary_hash and own.seed == plural.seed == 3
    single = Result.load(tmp_path / "templates-vild-3" / "result.json").card
    assert single.templates == "vild:3" and single.templates_hash != own.templates_hash


def test_a_finished_wording_is_not_computed_again(data: Any, tmp_path: Path) -> None:
    first, again = Reader(), Reader()
    found = vary_wording(first, data, tmp_path, pool=POOL, progress=False)
    (tmp_path / "paraphrase-plural" / "images-0-of-1.log").unlink()
    assert vary_wording(again, data, tmp_path, pool=POOL, progress=False) == found
    probes = 4  # readable distractors, readable paraphrases, and scores with two template sets
    assert again.images == len(data.samples) + probes < first.images
    third = Reader()
    vary_wording(third, data, tmp_path, pool=POOL, progress=False, resume=False)
    assert third.images == first.images


def test_the_seed_chooses_the_distractors(data: Any) -> None:
    pool = [f"thing{number}" for number in range(50)]
    lists = []
    for seed in (0, 0, 1):
        study = Study(Reader(), data, seed)
        study.distractors([5], pool)
        lists.append(study.lists["distractors"])
    assert lists[0] == lists[1] != lists[2] and sorted(lists[0]) == sorted(lists[2])


def test_names_that_cannot_be_read_are_said_once(data: Any, tmp_path: Path) -> None:
    reader = Reader(unknown=("violin", "crabs", "sofas", "gray rugs", "couch"))
    found = vary_wording(reader, data, tmp_path, pool=POOL, counts=[1, 2], progress=False)
    rows = by_title(found, "distractors")
    assert rows["2 other names"]["unreadable"] == ["violin"] and "reason" not in rows
    assert sorted(found["card"]["wording"]["distractors"]) == ["accordion", "saddle"]
    assert "plural" not in by_title(found, "paraphrase")
    assert any("'plural' is left out" in note and "none" in note for note in found["notes"])
    text = table(found)
    assert text.count("violin") == 1 and "2 other names" in text


def test_what_a_method_refuses_is_a_row_with_the_reason(data: Any, tmp_path: Path) -> None:
    class NoCapitals(Reader):
        def segment_arrays(self, images: Any, vocabulary: Any, return_scores: bool) -> Any:
            if "CRAB" in vocabulary.names and "SOFA" in vocabulary.names and len(vocabulary) == 3:
                raise InputError("this method cannot shout")
            return super().segment_arrays(images, vocabulary, return_scores)

    found = vary_wording(NoCapitals(), data, tmp_path, parts=["paraphrase"], progress=False)
    assert by_title(found, "paraphrase")["in capitals"]["reason"] == "this method cannot shout"
    assert "not possible: this method cannot shout" in table(found)


def test_templates_of_a_method_s_settings_are_not_varied(data: Any, tmp_path: Path) -> None:
    reader = Reader(own_templates=True)
    found = vary_wording(reader, data, tmp_path, parts=["templates"], progress=False)
    assert list(by_title(found, "templates")) == ["own wording"]
    assert any("uses those of its settings" in note for note in found["notes"])


def test_what_a_distractor_wins_is_background_where_that_is_a_class() -> None:
    names = Vocabulary(("background", "sofa"), background=Background.names(("wall",)))
    pixels = np.zeros((2, 8, 3), np.uint8)
    plain = WordedSegmenter(Reader(), "own").segment(pixels, names).labels
    assert (plain == 0).all()
    asked = names.with_(others=("saddle",))
    assert (Reader().segment(pixels, asked).labels[:, :4] == -1).all()
    assert (WordedSegmenter(Reader(), "distractors").segment(pixels, asked).labels == 0).all()


def test_some_classes_count_and_wrong_values_are_still_refused(data: Any, tmp_path: Path) -> None:
    some = SomeClasses(data, (0, 2))
    assert some.vocabulary.names == ("crab", "gray rug")
    truth = some.read_label(data.samples[1])
    assert (truth[:3] == 65535).all() and (truth[3:] == 1).all()
    assert some.label_tree_hash() != data.label_tree_hash()
    Image.fromarray(np.full((6, 8), 77, np.uint8)).save(tmp_path / "labels" / "0.png")
    assert (some.read_label(data.samples[0]) == 77).all()


def record(labels: list[list[int]], truth: list[list[int]], classes: int) -> ImageRecord:
    pairs = count_pairs(np.array(labels, np.int32), np.array(truth), classes, (255,))
    return ImageRecord("image", pairs)


def test_absent_names_by_hand() -> None:
    records = [
        # The names 2 and 3 are absent; 2 wins one of the five labeled pixels.
        record([[0, 1, 2], [0, 1, -1]], [[0, 1, 1], [0, 1, 255]], 4),
        # The names 0, 1 and 2 are absent; 0 wins two of the three.
        record([[0, 0, 3]], [[3, 3, 3]], 4),
    ]
    found = absent_names(records, 4)
    assert found["names"]["estimate"] == pytest.approx(100 * 2 / 5)
    assert found["pixels"]["estimate"] == pytest.approx(100 * 3 / 8)
    assert found["pixels"]["low"] <= 37.5 <= found["pixels"]["high"]


def test_shares_have_intervals() -> None:
    parts, wholes = [1.0] * 50 + [0.0] * 50, [1.0] * 100
    found = share_interval(parts, wholes)
    assert found.estimate == 50 and 38 < found.low < 42 < 58 < found.high < 62
    assert share_interval([2, 4], [4, 8]).low == share_interval([2, 4], [4, 8]).high == 50
    for nothing in ([], [0.0]):
        with pytest.raises(InputError, match="no pixels"):
            share_interval(nothing, nothing)


def test_single_templates_have_names() -> None:
    for number, template in enumerate(load_templates("vild")):
        assert load_templates(f"vild:{number}") == (template,)
    for name in ("vild:14", "vild:", "vild:-1", "vild:x", "vild:١"):
        with pytest.raises(InputError, match="0 to 13"):
            load_templates(name)
    with pytest.raises(InputError, match="set 'none' is not known"):
        load_templates("none:0")


WORDS = ["--method", "san", "--weights", "world", "--dataset", "world"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*WORDS, "--parts", "adverbs"], "no part 'adverbs'"),
        ([*WORDS, "--counts", "-1"], "0 or more"),
        ([*WORDS, "--templates", "vild:99"], "no template '99'"),
        ([*WORDS, "--distractors", "none.txt"], "none.txt"),
        ([*WORDS, "--limit", "0"], "at least 1"),
        (["--method", "none", "--dataset", "world"], "no method 'none'"),
        (["--method", "san", "--weights", "world"], "--dataset"),
    ],
)
def test_bad_requests_are_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command.main, [*words, "--output", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "wording.json").exists()
