"""Crops, their masks and their lists."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from openvocab.cli import run
from openvocab.errors import InputError
from openvocab.image import read_image
from ovseg import collect_pairs, nouns
from ovseg.crops import match_nouns
from ovseg.nouns import nouns_of_captions, read_captions, without_determiner
from ovseg.pairs import (
    PAINT,
    Pair,
    PairData,
    PairWriter,
    check_crops,
    contact_sheet,
    normalize,
    paint_crop,
    read_pairs,
    recover_mask,
    validation_view,
)
from ovseg.weights import save_model


def test_masks_are_recovered_as_recorded(maskget) -> None:
    assert np.array_equal(recover_mask(maskget["image"]), maskget["mask"] > 0)
    resized = np.asarray(
        Image.fromarray(maskget["image"]).resize((64, 64), Image.Resampling.BICUBIC)
    )
    assert np.array_equal(resized, maskget["resized_bicubic64"])
    assert np.array_equal(recover_mask(resized), maskget["mask_resized"] > 0)


def test_the_validation_view_equals_the_recorded(maskget) -> None:
    view = np.asarray(validation_view(Image.fromarray(maskget["image"]), 64))
    assert np.array_equal(recover_mask(view), maskget["val_transform_mask"] > 0)
    expected = torch.from_numpy(maskget["val_transform_image"])
    assert torch.allclose(normalize(view), expected, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_what_is_painted_is_found_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (12, 15, 3), dtype=np.uint8)
    image[(image == np.uint8(PAINT)).all(-1)] += 1
    mask = rng.random((12, 15)) < 0.1
    mask[rng.integers(12), rng.integers(15)] = True
    rows, columns = np.nonzero(mask)
    box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    crop = paint_crop(image, mask)
    assert np.array_equal(recover_mask(crop), mask[box])
    assert np.array_equal(crop[mask[box]], image[mask])


def test_a_wider_crop_shows_its_mask_smaller_and_stays_in_the_image() -> None:
    image = np.full((20, 30, 3), 200, np.uint8)
    mask = np.zeros((20, 30), bool)
    mask[1:5, 10:16] = True
    crop = paint_crop(image, mask, 3.0)
    assert crop.shape == (9, 18, 3)  # rows -3..9 end at the image's first
    assert np.array_equal(recover_mask(crop), mask[0:9, 4:22])


def _write(folder: Path, images: list[str]) -> PairWriter:
    writer = PairWriter(folder)
    for name in images:
        if name not in writer.done:
            crop = np.full((9, 7, 3), 50 + len(name), np.uint8)
            crop[:3] = PAINT
            writer.add(name, [(crop, f"a  {name}"), (crop, "sky")])
    return writer


def test_a_collection_is_resumed_and_read_back(tmp_path: Path) -> None:
    _write(tmp_path, ["one", "three"])
    with (tmp_path / "pairs.jsonl").open("a") as log:
        log.write('{"image": "four", "pai')  # killed while writing
    writer = _write(tmp_path, ["one", "three", "four"])
    assert writer.done == {"one", "three", "four"} and len(writer.pairs) == 6
    pairs = read_pairs(writer.finish())
    assert [pair.title for pair in pairs[:2]] == ["a one", "sky"]
    item = PairData(pairs, 32, None)[0, 0]
    assert item["image"].shape == (3, 32, 32) and item["mask"].shape == (1, 32, 32)
    assert 0 < item["mask"].mean() < 1
    assert Image.open(tmp_path / "contact_sheet.png").width > 500


def test_training_views_depend_on_their_position_only(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    data = PairData([Pair(tmp_path / "a.png", "noise")], 24, (0.5, 1.0), seed=3)
    first, again, other = data[7, 0]["image"], data[7, 0]["image"], data[8, 0]["image"]
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_bad_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_pairs(tmp_path / "none.tsv")
    (tmp_path / "a.tsv").write_text("path,name\nx,y\n")
    with pytest.raises(InputError, match="columns filepath and title"):
        read_pairs(tmp_path / "a.tsv")
    (tmp_path / "b.tsv").write_text("filepath\ttitle\n")
    with pytest.raises(InputError, match="no pairs"):
        read_pairs(tmp_path / "b.tsv")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("3.png", "line 3 of .*ragged.tsv has 1 columns where the first line names 2"),
        ("3.png\tpig\tmore", "line 3 of .* has 3 columns"),
        ("3.png\t ", "line 3 of .* or an empty one"),
        ("\tpig", "line 3 of .* or an empty one"),
    ],
)
def test_a_ragged_line_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    (tmp_path / "ragged.tsv").write_text(f"filepath\ttitle\n0.png\tcrab\n{line}\n4.png\tpig\n")
    with pytest.raises(InputError, match=sentence):
        read_pairs(tmp_path / "ragged.tsv")


def test_a_byte_order_mark_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "bom.tsv").write_bytes(b"\xef\xbb\xbffilepath\ttitle\r\n0.png\tcrab\r\n\r\n")
    assert read_pairs(tmp_path / "bom.tsv") == [Pair(tmp_path / "0.png", "crab")]
    (tmp_path / "wide.tsv").write_text("filepath\ttitle\n", encoding="utf-16")
    with pytest.raises(InputError, match="no UTF-8"):
        read_pairs(tmp_path / "wide.tsv")


@pytest.mark.parametrize("file", ["a.jpg", "b.png", "c.webp"])
def test_crops_that_lost_their_mask_are_refused(tmp_path: Path, file: str) -> None:
    crop = np.zeros((32, 32, 3), np.uint8)
    crop[:12] = PAINT
    options = {"format": "WEBP" if file.endswith("webp") else "JPEG", "quality": 80}
    Image.fromarray(crop).save(tmp_path / file, **options)  # whatever its name says
    pairs, source = [Pair(tmp_path / file, "crab")], tmp_path / "pairs.tsv"
    with pytest.raises(InputError, match=r"changes the painted background.*PNG"):
        check_crops(pairs, source, masked=True)
    check_crops(pairs, source, masked=False)  # plain fine-tuning needs no mask
    with pytest.raises(InputError, match=r"lists .*none\.png, which cannot be read"):
        check_crops([Pair(tmp_path / "none.png", "crab")], source, masked=False)


def test_crops_without_loss_are_taken(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.webp", lossless=True)
    check_crops([Pair(tmp_path / n, "x") for n in ("a.png", "b.webp")], tmp_path, masked=True)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            {
                "images": [{"id": 7, "file_name": "a"}],
                "annotations": [{"image_id": 77, "caption": ""}],
            },
            "entry 0 in the annotations .* image '77', which is not among its images",
        ),
        ({"images": [{"id": 7}], "annotations": []}, "entry 0 in the images .* id and file_name"),
        ({"images": {}, "annotations": []}, "images of .* are a dict; expected a list"),
        ({"images": [], "annotations": [3]}, "entry 0 in the annotations .* needs image_id"),
    ],
)
def test_bad_captions_are_one_sentence(tmp_path: Path, content: object, sentence: str) -> None:
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=sentence):
        read_captions(tmp_path / "c.json")


def test_the_sheet_shows_at_most_so_many(tmp_path: Path) -> None:
    writer = _write(tmp_path, ["a"])
    assert contact_sheet(tmp_path, writer.pairs * 40, tiles=9).height == 2 * (160 + 24)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two pictures, their label maps, and the names of the labels."""
    rng = np.random.default_rng(0)
    for index in range(2):
        label = np.full((80, 100), 1, np.uint8)
        label[20:50, 10 + 30 * index : 60] = 0
        label[:4] = 255
        image = rng.integers(0, 60, (80, 100, 3), dtype=np.uint8) + 90 * (label[..., None] == 0)
        for folder, pixels in (("images", image.astype(np.uint8)), ("labels", label)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")
    (tmp_path / "names.txt").write_text("cat\nsky\ndog\n")
    return tmp_path


def test_true_pairs_are_collected_from_labels(photographs: Path) -> None:
    folders = [f"--{name}={photographs / name}" for name in ("images", "labels")]
    out = photographs / "pairs"
    more = [f"--names={photographs / 'names.txt'}", f"--output={out}", "--min-size=80"]
    assert collect_pairs.main([*folders, *more, "--limit=1"]) == 0
    assert len(read_pairs(out / "pairs.tsv")) == 2
    before = (out / "crops" / "0_0.png").stat().st_mtime_ns
    assert collect_pairs.main([*folders, *more]) == 0
    assert (out / "crops" / "0_0.png").stat().st_mtime_ns == before  # not done again
    pairs = read_pairs(out / "pairs.tsv")
    assert [pair.title for pair in pairs] == ["cat", "sky"] * 2
    assert read_image(pairs[0].path).shape == (30, 50, 3)
    assert recover_mask(read_image(pairs[0].path)).all()
    assert 0 < recover_mask(read_image(pairs[1].path)).mean() < 1


def test_a_killed_collection_gives_the_files_of_an_undisturbed_one(
    photographs: Path, lives_of
) -> None:
    folders = [f"--{name}={photographs / name}" for name in ("images", "labels")]
    whole, killed = (
        [*folders, f"--names={photographs / 'names.txt'}", f"--output={photographs / name}"]
        for name in ("whole", "killed")
    )
    lives = [("nowhere", whole), ("crop", killed), ("nowhere", killed)]
    assert lives_of("ovseg.collect_pairs", lives) == [0, -9, 0]
    files = {
        name: {p.relative_to(photographs / name): p for p in (photographs / name).rglob("*.*")}
        for name in ("whole", "killed")
    }
    assert files["killed"].keys() == files["whole"].keys() and len(files["whole"]) == 4 + 3
    for name, path in files["killed"].items():
        assert path.read_bytes() == files["whole"][name].read_bytes(), name


@pytest.mark.parametrize("kind", ["tsv", "json"])
def test_nouns_get_the_proposals_most_like_them(photographs: Path, tiny, kind: str) -> None:
    names = tiny.class_names()
    nouns = photographs / f"nouns.{kind}"
    content = {"0.png": [names[0], names[1], names[0]], "1.png": []}
    if kind == "json":
        nouns.write_text(json.dumps(content))
    else:
        nouns.write_text("".join(f"{k}\t{', '.join(v)}\n" for k, v in content.items()))
    weights, out = photographs / "stage1.safetensors", photographs / "pairs"
    save_model(tiny.model(), weights, tiny.configs()[1])
    more = [f"--nouns={nouns}", f"--weights={weights}", f"--output={out}", "--per-noun=2"]
    assert collect_pairs.main([f"--images={photographs / 'images'}", *more]) == 0
    pairs = read_pairs(out / "pairs.tsv")
    assert [pair.title for pair in pairs] == [names[0]] * 2 + [names[1]] * 2
    for pair in pairs:
        crop = read_image(pair.path)
        assert recover_mask(crop).any() and crop.ndim == 3
    assert (out / "contact_sheet.png").exists()
    assert PairWriter(out).done == {"0", "1"}


def test_matching_takes_the_best_that_are_large_enough() -> None:
    features = torch.eye(4)
    nouns = F.normalize(torch.tensor([[0.9, 0.5, 0.1, 0.0], [0.0, 0.2, 0.1, 0.9]]), dim=-1)
    areas = torch.tensor([0.5, 0.5, 0.5, 0.0001])
    assert match_nouns(features, nouns, areas, per_noun=1, min_area=0.001) == [(0, 0), (1, 1)]
    two = match_nouns(features, nouns, areas, per_noun=2, min_area=0)
    assert two == [(0, 0), (1, 0), (3, 1), (1, 1)]
    assert match_nouns(features, nouns, areas * 0, per_noun=1, min_area=0.1) == []


def test_captions_are_read_from_coco_and_from_lines(tmp_path: Path) -> None:
    coco = {
        "images": [{"id": 7, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 7, "caption": "A dog."}, {"image_id": 7, "caption": "Dogs."}],
    }
    (tmp_path / "c.json").write_text(json.dumps(coco))
    (tmp_path / "c.tsv").write_text("a.jpg\tA dog.\na.jpg\tDogs.\n")
    expected = {"a.jpg": ["A dog.", "Dogs."]}
    assert read_captions(tmp_path / "c.json") == read_captions(tmp_path / "c.tsv") == expected
    assert without_determiner("The large  Brown dog") == "large brown dog"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("n.json", b"{", "is not JSON"),
        ("n.json", b'{"a.png": "dog"}', "must map image names to lists"),
        ("n.tsv", b"a.png dog", "line 1: expected an image, a tab"),
        ("n.tsv", b"\xff\xfe", "no UTF-8"),
    ],
)
def test_a_bad_list_of_nouns_is_one_sentence(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        nouns.read_nouns(tmp_path / name)


def test_nouns_belong_to_images_in_subfolders_and_must_meet_some(tmp_path: Path) -> None:
    images = [tmp_path / "a" / "0.png", tmp_path / "b" / "0.png"]
    found = nouns.nouns_by_path(images, tmp_path, {"a/0.png": ["dog"], "b/0.png": ["cat"]})
    assert found == {images[0]: ["dog"], images[1]: ["cat"]}
    with pytest.raises(InputError, match=r"no image .* has a noun"):
        nouns.nouns_by_path(images, tmp_path, {"9.png": ["dog"]})


def test_captions_without_spacy_say_what_to_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(InputError, match="--nouns FILE"):
        nouns_of_captions({"a.jpg": ["A dog."]}, 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--captions or --nouns"),
        (["--images=.", "--nouns=y"], "--weights is missing"),
        (["--images=x", "--nouns=y"], "give a folder of images"),
        (["--images=x", "--labels=y"], "data.names is missing"),
        (["--dataset=world", "--expand-ratio=0.5"], "at least 1"),
        (["--dataset=world", "--limit=0"], "at least 1"),
    ],
)
def test_missing_arguments_are_named(arguments: list[str], sentence: str, capsys) -> None:
    assert run(collect_pairs.main, arguments) == 2
    assert sentence in capsys.readouterr().err
