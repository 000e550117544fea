"""Vocabularies: published data to the letter, a user's words, and what a word's label is."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openvocab.clip.template_sets import load_templates
from openvocab.errors import InputError
from openvocab.vocabulary import Background, Vocabulary, available_vocabularies, parse_names

SIZES = {
    "world": (60, 48),  # key: (names, things); None where nobody says which are things
    "coco-stuff-171": (171, 80),
    "ade20k-150": (150, 125),
    "ade20k-847": (847, 818),
    "pascal-context-59": (59, 38),
    "ovseg-pascal-context-59": (59, 38),
    "pascal-context-60": (60, 38),
    "pascal-context-459": (459, 433),
    "voc-20": (20, 20),
    "ovseg-voc-20": (20, 20),
    "voc-21": (21, 20),
    "coco-object-80": (80, 80),
    "coco-object-81": (81, 80),
    "cityscapes-19": (19, 8),
    "car-voc-20": (20, 20),
    "car-voc-21": (21, 20),
    "car-coco-object-80": (80, 80),
    "car-coco-object-81": (81, 80),
    "car-pascal-context-59": (59, 38),
    "car-pascal-context-60": (60, 38),
    "car-ade20k-150": (150, 125),
}


def test_the_published_vocabularies_are_there() -> None:
    assert available_vocabularies() == tuple(sorted(SIZES))


@pytest.mark.parametrize("key", sorted(SIZES))
def test_sizes_things_and_templates(key: str) -> None:
    vocabulary = Vocabulary.load(key)
    assert vocabulary.key == key
    assert vocabulary.things is not None
    assert (len(vocabulary), sum(vocabulary.things)) == SIZES[key]
    assert len(set(vocabulary.names)) == len(vocabulary)
    assert load_templates(vocabulary.templates)


@pytest.mark.parametrize(
    ("key", "label", "name", "thing"),
    [
        ("ade20k-150", 8, "window ", True),  # with its space
        ("ade20k-150", 6, "road, route", False),
        ("ade20k-150", 149, "flag", True),
        ("ade20k-847", 11, "person, individual, someone, somebody, mortal, soul", True),
        ("coco-stuff-171", 79, "toothbrush", True),
        ("coco-stuff-171", 80, "banner", False),
        ("coco-stuff-171", 170, "wood", False),
        ("pascal-context-59", 49, "diningtable", True),
        ("ovseg-pascal-context-59", 10, "table", True),
        ("ovseg-pascal-context-59", 35, "grass", False),
        ("pascal-context-459", 6, "atrium", False),
        ("voc-20", 19, "tv", True),
        ("ovseg-voc-20", 19, "tvmonitor", True),
        ("voc-21", 20, "tv", True),
        ("voc-21", 0, "background", False),
        ("car-coco-object-80", 31, "sknowboard", True),  # its typing error
        ("coco-object-80", 31, "snowboard", True),
        ("car-voc-20", 14, "person with clothes,people,human", True),
        ("cityscapes-19", 10, "sky", False),
        ("cityscapes-19", 11, "person", True),
        ("cityscapes-19", 18, "bicycle", True),
    ],
)
def test_names_are_verbatim(key: str, label: int, name: str, thing: bool) -> None:
    vocabulary = Vocabulary.load(key)
    assert vocabulary.names[label] == name
    assert vocabulary.things is not None
    assert vocabulary.things[label] is thing


def test_coco_object_is_the_things_of_coco_stuff() -> None:
    coco = Vocabulary.load("coco-stuff-171")
    assert coco.things is not None
    things = tuple(n for n, thing in zip(coco.names, coco.things, strict=True) if thing)
    assert Vocabulary.load("coco-object-80").names == things


def test_an_unknown_vocabulary_is_refused_with_the_near_ones() -> None:
    with pytest.raises(InputError, match=r"'ade20k150' is not known; did you mean ade20k-150"):
        Vocabulary.load("ade20k150")


@pytest.mark.parametrize(
    ("given_names", "kept"),
    [
        ("cat, dog", ("cat", "dog")),
        ([" cat ", "dog"], ("cat", "dog")),
        (["door, double door", "sky"], ("door, double door", "sky")),  # a list keeps its commas
        ("dog,cat,dog,bird", ("dog", "cat", "bird")),
        ("Cat,cat,DOG", ("Cat", "DOG")),  # the tokenizer sees no case
        ("traffic light,traffic  light", ("traffic light",)),
    ],
)
def test_names_of_a_user(given_names: str | list[str], kept: tuple[str, ...]) -> None:
    assert Vocabulary.from_names(given_names).names == kept


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (["pig", "", "wood", "pig", "tiles"], "name 1 of the list is blank"),
        ([" cat ", "", "dog", "  "], "name 1 of the list is blank"),
        (["pig", "wood", "pig"], "class names 0 and 2 are both 'pig'"),
        (["traffic light", "Traffic  light"], "class names 0 and 1 are both"),
    ],
)
def test_a_list_keeps_its_places_or_is_refused(listed: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Vocabulary.from_names(listed)


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("crab,duck|pig|tiles", "crab|duck|pig|tiles"),
        ("pig|crab,duck", "pig|crab|duck"),
        ("hot|air|balloon,|drum,|pig", "hot air balloon|drum|pig"),
        ("cat,|potted plant,|dog", "cat|potted plant|dog"),
        ("cat|,|potted|plant", "cat|potted plant"),
        ("cat|,dog", "cat|dog"),
        ("cat|sofa|potted plant", "cat|sofa|potted plant"),
        ("cat, dog,", "cat|dog"),
        ("a,,b", "a|b"),
        ("", ""),
    ],
)
def test_typed_names_are_split_at_commas(typed: str, names: str) -> None:
    assert parse_names(typed.split("|")) == tuple(filter(None, names.split("|")))


def test_a_name_typed_twice_counts_once_and_the_labels_are_told() -> None:
    with pytest.warns(UserWarning, match="1 of 3 names .* labels are 0 pig, 1 wood"):
        assert parse_names(["pig", "wood", "Pig"]) == ("pig", "wood")


def test_a_word_that_is_there_twice_is_encoded_once_for_its_first_label() -> None:
    vocabulary = Vocabulary(
        ("stand", "sky", "Stand "),
        background=Background.names(("Sky", "wall")),
        others=("wall", "sea"),
        synonyms=((), ("heaven", "stand"), ("booth",)),
    )
    assert vocabulary.words == ("stand", "sky", "wall", "sea", "heaven", "booth")
    assert vocabulary.word_labels.tolist() == [0, 1, -1, -1, 1, 2]


@given(st.lists(st.text("abc ", min_size=1).filter(str.strip), min_size=1, unique_by=str.strip))
def test_names_come_back_however_they_are_typed(names: list[str]) -> None:
    names = list({" ".join(name.split()): None for name in names})
    unquoted = ", ".join(names).split()
    assert parse_names([", ".join(names)]) == tuple(names)
    assert parse_names([*names]) == tuple(names)
    if len(names) > 1:
        assert parse_names(unquoted) == tuple(names)


@pytest.mark.parametrize("nothing", ["", " , ,", [], ["", " "]])
def test_no_names_are_refused(nothing: str | list[str]) -> None:
    with pytest.raises(InputError, match="no class names; give at least one"):
        Vocabulary.from_names(nothing)


@pytest.mark.parametrize(
    ("file", "content"),
    [("names.txt", "wall\nwindow \nsky\n\n"), ("names.json", '["wall", "window ", "sky"]')],
)
def test_names_of_a_file_stay_to_the_letter(tmp_path: Path, file: str, content: str) -> None:
    path = tmp_path / file
    path.write_text(content)
    assert Vocabulary.from_file(path).names == ("wall", "window ", "sky")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("blank.txt", b"wall\n\nsky\n", "line 2 of .*class name ''"),
        ("twice.txt", b"wall\nsky\nWall \n", "line 3 of .*'Wall' is already in line 1"),
        ("twice.json", b'["wall", "sky", "wall"]', "entry 3 of .* is already in entry 1"),
        ("mixed.txt", b"0: wall\nsky\n", "line 2 of .*'sky', but other lines are numbered"),
        ("gap.txt", b"0: wall\n2: sky\n", "line 2 of .*number 2 where 1"),
        ("double.txt", b"0: wall\n0: sky\n", "line 2 of .*number 0 where 1"),
        ("late.txt", b"7: wall\n8: sky\n", "line 1 of .*number 7 where 0"),
        ("one_line.txt", b"wall, sky, tree\n", "one line with commas"),
        ("shared.txt", b"cat, animal\ndog, animal\n", "line 2 of .*'animal' is already in line 1"),
        ("empty.txt", b"", "no class names"),
        ("object.json", b'{"a": 1}', "holds a dict"),
        ("broken.json", b'["a"', "is not a list of names"),
        ("image.txt", b"\xff\xd8\xff\xe0", "is not a list of names"),
        ("utf16.txt", "crab\nduck".encode("utf-16"), "is not a list of names.*save it as UTF-8"),
        ("numbers.json", b"[1, 2]", "class name 1"),
    ],
)
def test_bad_files_of_names_are_refused(
    tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        Vocabulary.from_file(path)


@pytest.mark.parametrize(
    ("content", "names", "message"),
    [
        ("0: wall\n1: sky, blue\n", ("wall", "sky, blue"), "numbered from 0 to 1"),
        ("1: sky\n0: wall\n", ("wall", "sky"), "numbered from 0 to 1"),
        ("1\twall\n2\tsky\n", ("wall", "sky"), "numbered from 1 to 2.*--label-offset -1"),
        ("0 wall\n1 sky\n", ("wall", "sky"), "numbered from 0 to 1"),
    ],
)
def test_numbered_names_are_understood_and_reported(
    tmp_path: Path, content: str, names: tuple[str, ...], message: str
) -> None:
    (tmp_path / "names.txt").write_text(content)
    with pytest.warns(UserWarning, match=message):
        assert Vocabulary.from_file(tmp_path / "names.txt").names == names


def test_synonyms_on_every_line_are_understood_and_reported(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("sofa, couch, settee\ncat, kitten\n")
    with pytest.warns(UserWarning, match="'sofa' with 'couch', 'settee'"):
        vocabulary = Vocabulary.from_file(tmp_path / "names.txt")
    assert vocabulary.names == ("sofa", "cat")
    assert vocabulary.synonyms == (("couch", "settee"), ("kitten",))


@pytest.mark.parametrize("content", ["wall\nbuilding, edifice\n", "3 stripes\nsky\n"])
def test_what_is_said_of_some_names_only_stays_to_the_letter(tmp_path: Path, content: str) -> None:
    (tmp_path / "names.txt").write_text(content)
    assert Vocabulary.from_file(tmp_path / "names.txt").names == tuple(content.split("\n")[:-1])


def test_a_missing_file_of_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.txt: No such file"):
        Vocabulary.from_file(tmp_path / "none.txt")


def test_flags_must_match_the_names() -> None:
    with pytest.raises(InputError, match="2 names but 1 things"):
        Vocabulary(("cat", "dog"), things=(True,))
    with pytest.raises(InputError, match="1 names but 2 synonyms"):
        Vocabulary(("cat",), synonyms=((), ()))


def test_a_vocabulary_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        Vocabulary.load("voc-20").names = ()  # type: ignore[misc]
    assert Vocabulary.load("voc-20").with_(templates="imagenet").templates == "imagenet"
    assert Vocabulary.load("voc-20").templates == "vild"


def labelled(vocabulary: Vocabulary) -> list[tuple[str, int]]:
    return list(zip(vocabulary.words, vocabulary.word_labels.tolist(), strict=True))


def test_without_more_every_name_is_its_own_word() -> None:
    assert labelled(Vocabulary.from_names("cat,dog")) == [("cat", 0), ("dog", 1)]
    assert Vocabulary.from_names("cat").word_labels.dtype == np.int32


def test_background_words_win_pixels_for_the_background_class() -> None:
    plain = Vocabulary(("background", "cat"))
    assert labelled(plain) == [("background", 0), ("cat", 1)]
    words = plain.with_(background=Background.names(["sky", "wall"]))
    assert labelled(words) == [("cat", 1), ("sky", 0), ("wall", 0)]
    without_class = Vocabulary(("cat",), background=Background.names(["sky"]))
    assert labelled(without_class) == [("cat", 0), ("sky", -1)]


@pytest.mark.parametrize("policy", [Background.threshold(0.4), Background.learned()])
def test_a_background_that_is_no_word_is_not_scored(policy: Background) -> None:
    vocabulary = Vocabulary(("background", "cat"), background=policy)
    assert labelled(vocabulary) == [("cat", 1)]
    assert vocabulary.background_label == 0


def test_remapped_labels_are_background() -> None:
    vocabulary = Vocabulary.load("ovseg-pascal-context-59").with_(background=Background.remap(20))
    assert vocabulary.word_labels.tolist() == [*range(20), *[-1] * 39]


def test_loaded_background_sets_say_their_policy() -> None:
    vocabulary = Vocabulary.load("voc-21")
    assert str(vocabulary.background) == "names background"
    assert labelled(vocabulary)[-1] == ("background", 0)
    assert vocabulary.names[1:] == Vocabulary.load("voc-20").names


def test_synonyms_stand_for_their_class() -> None:
    vocabulary = Vocabulary(("cat", "sofa"), synonyms=((), ("couch", "settee")))
    assert labelled(vocabulary) == [("cat", 0), ("sofa", 1), ("couch", 1), ("settee", 1)]


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (Background.none(), "none"),
        (Background.threshold(0.35), "threshold 0.35"),
        (Background.names(("sky", "wall")), "names sky, wall"),
        (Background.learned(), "learned"),
        (Background.remap(20), "labels from 20"),
    ],
)
def test_policies_read_well(policy: Background, text: str) -> None:
    assert str(policy) == text


def test_senseless_policies_are_refused() -> None:
    with pytest.raises(InputError, match="give a list"):
        Background.names("sky")
    with pytest.raises(InputError, match="at least one word"):
        Background.names(())
    with pytest.raises(InputError, match="label 0"):
        Background.remap(0)


@pytest.mark.parametrize(("by", "added"), [("coco-stuff", 91), ("coco-all", 171)])
def test_augmentation_adds_words_whose_pixels_are_nothing(by: str, added: int) -> None:
    vocabulary = Vocabulary.from_names("Oculus,Ukulele").augmented(by)
    assert vocabulary.names == ("Oculus", "Ukulele")
    assert len(vocabulary.words) == 2 + added
    assert vocabulary.word_labels.tolist() == [0, 1] + [-1] * added
    assert vocabulary.words[2:] == Vocabulary.load("coco-stuff-171").names[171 - added :]


def test_augmentation_repeats_no_name() -> None:
    vocabulary = Vocabulary.from_names("Person, grass,unicorn").augmented("coco-all")
    assert len(vocabulary.words) == 3 + 169
    assert "person" not in vocabulary.others
    assert "grass" not in vocabulary.others
    assert vocabulary.augmented("coco-stuff") == vocabulary


def test_unknown_augmentation_is_refused() -> None:
    with pytest.raises(InputError, match="'True' is not known"):
        Vocabulary.from_names("cat").augmented("True")


def test_the_fingerprint_sees_spelling_order_and_every_word() -> None:
    base = Vocabulary(("window", "wall"))
    different = [
        Vocabulary(("window ", "wall")),
        Vocabulary(("wall", "window")),
        Vocabulary(("window", "wall"), synonyms=(("pane",), ())),
        base.augmented("coco-stuff"),
        Vocabulary(("window, wall",)),
    ]
    assert len({v.sha256() for v in [base, *different]}) == 6
    assert base.with_(templates="car", key="mine").sha256() == base.sha256()


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=12))
def test_words_and_labels_always_agree(names: list[str]) -> None:
    try:
        vocabulary = Vocabulary.from_names(names).augmented("coco-stuff")
    except InputError:  # a blank name, or one given twice
        assert len({" ".join(name.lower().split()) for name in names} - {""}) < len(names)
        return
    labels = vocabulary.word_labels
    assert len(labels) == len(vocabulary.words) == len(set(vocabulary.words))
    shown = labels >= 0
    assert tuple(np.array(vocabulary.words, dtype=object)[shown]) == vocabulary.names
    assert labels[shown].tolist() == list(range(len(vocabulary)))
