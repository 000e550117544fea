"""From official archives to evaluated label trees, all the way, on miniature copies."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from openvocab.datasets import CATALOG, resolve
from openvocab.datasets.cityscapes import IDS
from openvocab.datasets.coco_stuff import category_ids
from openvocab.datasets.label_files import decode_ids, read_mat, read_stored
from openvocab.datasets.pascal_context_masks import ROUTES
from openvocab.datasets.spec import read_data
from openvocab.errors import InputError
from openvocab.evaluation.run import evaluate_set
from openvocab.formats.run_length import encode_rle
from openvocab.image import read_image, read_label_map
from openvocab.prepare import MAKERS, main
from openvocab.reading.pickles import read_plain_pickle
from openvocab.segmenter import Segmentation
from openvocab.vocabulary import Vocabulary

pytestmark = pytest.mark.filterwarnings("ignore:.*are left out")


class Constant:
    """A segmenter that finds one class everywhere."""

    def __init__(self, label: int) -> None:
        self.label = label

    def segment(self, image, vocabulary, *, return_scores=False):
        labels = np.full(np.shape(image)[:2], self.label, dtype=np.int32)
        return Segmentation(labels, vocabulary)

    def describe(self):
        return {"method": "constant"}


def prepare(name: str, source: Path, output: Path, *more: str) -> None:
    arguments = ["--source", str(source), "--output", str(output), "--quiet", "--workers", "1"]
    assert main([name, *arguments, *more]) == 0


def labels_of(name: str, root: Path) -> dict[str, np.ndarray]:
    data = resolve(name, root)
    return {sample.id: data.read_label(sample) for sample in data.samples}


def evaluated(name: str, root: Path, label: int = 0) -> None:
    """The matrix must count every pixel that is not void, in the column of the constant."""
    data = resolve(name, root)
    result = evaluate_set(Constant(label), data, progress=False)
    valid = sum(int((~np.isin(x, data.ignore_index)).sum()) for x in labels_of(name, root).values())
    assert result.matrix.sum() == result.matrix[:, label].sum() == valid > 0
    assert result.card.label_tree_hash == data.label_tree_hash()


def test_every_set_of_the_catalog_can_be_prepared():
    assert set(MAKERS) == set(CATALOG)


@pytest.mark.parametrize("name", [*CATALOG, "refcoco", "gres"])
def test_without_a_source_the_command_says_what_to_get(name, capsys):
    assert main([name]) == 0
    text = capsys.readouterr().out
    assert "http" in text and "accept:" in text and f"openvocab.prepare {name} --source" in text


def test_ade_150_subtracts_one(archives, tmp_path):
    raw = archives.ade()
    prepare("ade20k-150", archives.root, tmp_path / "data")
    for split, short in (("val", "val"), ("train", "train")):
        found = labels_of(f"ade20k-150:{split}@detectron2", tmp_path / "data")
        assert set(found) == {stem for stem in raw if f"_{short}_" in stem}
        for stem, labels in found.items():
            np.testing.assert_array_equal(labels, np.where(raw[stem] == 0, 255, raw[stem] - 1))
    evaluated("ade20k-150", tmp_path / "data")


def test_ade_150_in_place_leaves_the_images_alone(archives):
    archives.ade()
    before = {p: p.stat().st_ino for p in archives.root.rglob("*.jpg")}
    prepare("ade20k-150", archives.root, archives.root)
    assert {p: p.stat().st_ino for p in archives.root.rglob("*.jpg")} == before
    assert len(resolve("ade20k-150@detectron2", archives.root).samples) == 3


def test_ade_847_decodes_shrinks_and_renumbers(archives, tmp_path):
    raw = archives.ade_full()
    prepare("ade20k-847", archives.root, tmp_path / "data")
    train_ids = {
        object_id: label for label, object_id in enumerate(read_data("ade20k_full_ids.json"))
    }
    shapes = {"00000001": (24, 32), "00000002": (704, 512), "00000003": (512, 1109)}
    for split in ("val", "train"):
        data = resolve(f"ade20k-847:{split}", tmp_path / "data")
        assert len(data.samples) == 3
        for sample in data.samples:
            shape = shapes[sample.id[-8:]]
            small = raw[sample.id].astype(np.uint16)
            if shape != small.shape:
                small = cv2.resize(small, shape[::-1], interpolation=cv2.INTER_NEAREST)
            expected = np.vectorize(lambda v: train_ids.get(v, 65535))(small)
            labels = data.read_label(sample)
            np.testing.assert_array_equal(labels, expected)
            assert read_image(sample.image).shape[:2] == shape == labels.shape
            assert sample.label.suffix == ".tif"
    evaluated("ade20k-847", tmp_path / "data")


def test_ade_847_ids_come_from_red_and_green():
    pixels = np.array([[[0, 0, 9], [10, 0, 0], [119, 162, 200]]], dtype=np.uint8)
    assert decode_ids(pixels).tolist() == [[0, 256, 11 * 256 + 162]]


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch pickle-was-run",))


def test_a_hostile_index_is_refused_and_nothing_runs(archives, tmp_path, monkeypatch):
    archives.ade_full()
    monkeypatch.chdir(tmp_path)
    index = archives.root / "ADE20K_2021_17_01/index_ade20k.pkl"
    index.write_bytes(pickle.dumps({"folder": [Hostile()], "filename": ["ADE_val_1.jpg"]}))
    with pytest.raises(InputError, match="refused"):
        main(["ade20k-847", "--source", str(archives.root), "--output", str(tmp_path / "data")])
    assert not list(tmp_path.rglob("pickle-was-run"))
    # The same bytes do run where pickles are trusted, so that the refusal is what protects.
    pickle.loads(index.read_bytes())
    assert (tmp_path / "pickle-was-run").exists()


@pytest.mark.parametrize(
    "attack",
    [
        b"cbuiltins\neval\n(V1\ntR.",
        b"cnumpy\nload\n(V/etc/passwd\ntR.",
        b"c__builtin__\ngetattr\n.",
    ],
)
def test_other_globals_are_refused(tmp_path, attack):
    (tmp_path / "index.pkl").write_bytes(attack)
    with pytest.raises(InputError, match="refused"):
        read_plain_pickle(tmp_path / "index.pkl")


@pytest.mark.parametrize("damage", [b"", b"\x80\x04", b"no pickle at all", b"(lp0\nI1\n"])
def test_damaged_pickles_are_one_sentence(tmp_path, damage):
    (tmp_path / "index.pkl").write_bytes(damage)
    with pytest.raises(InputError, match="not a readable pickle"):
        read_plain_pickle(tmp_path / "index.pkl")


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_plain_data_is_read_whatever_the_protocol(tmp_path, protocol):
    data = {"folder": ["a", "b"], "n": 3, "x": np.arange(6).reshape(2, 3), "f": np.float64(2.5)}
    (tmp_path / "index.pkl").write_bytes(pickle.dumps(data, protocol=protocol))
    found = read_plain_pickle(tmp_path / "index.pkl")
    assert found["folder"] == ["a", "b"] and found["n"] == 3 and found["f"] == 2.5
    np.testing.assert_array_equal(found["x"], data["x"])


def test_an_index_that_points_outside_is_refused(archives, tmp_path):
    archives.ade_full()
    index = {"folder": ["../../etc"], "filename": ["ADE_val_1.jpg"]}
    path = archives.root / "ADE20K_2021_17_01/index_ade20k.pkl"
    path.write_bytes(pickle.dumps(index))
    with pytest.raises(InputError, match="which no index has"):
        main(["ade20k-847", "--source", str(archives.root), "--output", str(tmp_path)])


def test_voc_20_and_its_void_only_image(archives, tmp_path):
    raw = archives.voc()
    prepare("voc-20", archives.root, tmp_path / "data")
    expected = {
        stem: np.where((labels == 0) | (labels == 255), 255, labels - 1)
        for stem, labels in raw.items()
        if (np.isin(labels, (0, 255)) == 0).any()
    }
    found = labels_of("voc-20@ovseg", tmp_path / "data")
    found |= labels_of("voc-20:train@ovseg", tmp_path / "data")
    assert set(found) == set(expected) == set(raw) - {"2007_000005"}
    for stem, labels in found.items():
        np.testing.assert_array_equal(labels, expected[stem])
    evaluated("voc-20", tmp_path / "data")


def test_voc_20b_makes_the_background_label_20(archives, tmp_path):
    raw = archives.voc()
    prepare("voc-20b", archives.root, tmp_path / "data", "--split", "val")
    found = labels_of("voc-20b", tmp_path / "data")
    assert len(found) == 4
    for stem, labels in found.items():
        expected = np.where(raw[stem] == 0, 20, np.where(raw[stem] == 255, 255, raw[stem] - 1))
        np.testing.assert_array_equal(labels, expected)
    # 59 prompts; whatever is predicted from 20 on is the background, row and column 20 of 21.
    data = resolve("voc-20b", tmp_path / "data")
    assert len(data.vocabulary) == 59 and len(set(data.vocabulary.names)) == 59
    result = evaluate_set(Constant(58), data, progress=False)
    assert result.matrix.shape[0] == 21 and result.matrix[20, 20] == sum(
        int((labels == 20).sum()) for labels in found.values()
    )


def test_voc_21_keeps_the_background(archives, tmp_path):
    raw = archives.voc()
    prepare("voc-21", archives.root, tmp_path / "data")
    for stem, labels in labels_of("voc-21@fc-clip", tmp_path / "data").items():
        np.testing.assert_array_equal(labels, raw[stem])
    raw_hash = resolve("voc-21@mmseg", archives.root).label_tree_hash()
    assert resolve("voc-21@fc-clip", tmp_path / "data").label_tree_hash() == raw_hash


@pytest.mark.parametrize("order", ["pascal-context-59", "ovseg-pascal-context-59"])
def test_pascal_context_59_in_both_orders(archives, tmp_path, order):
    full = Vocabulary.load("pascal-context-459").names
    raw = archives.pascal_context(full)
    route = "detail" if order == "pascal-context-59" else "mat"
    prepare("pascal-context-59", archives.root, tmp_path / "data", "--route", route)
    names = [{"diningtable": "table"}.get(n, n) for n in Vocabulary.load(order).names]
    for split in ("train", "val"):
        data = resolve(f"pascal-context-59:{split}", tmp_path / "data")
        assert data.layout.name == ("san" if route == "detail" else "ovseg")
        assert data.vocabulary.key == order
        for sample in data.samples:
            expected = np.full(raw[sample.id].shape, 255)
            for value in np.unique(raw[sample.id]):
                if value and full[value - 1] in names:
                    expected[raw[sample.id] == value] = names.index(full[value - 1])
            np.testing.assert_array_equal(data.read_label(sample), expected)
    evaluated("pascal-context-59", tmp_path / "data")


def test_pascal_context_59_polygons_are_painted_in_file_order(archives, tmp_path):
    archives.pascal_context(Vocabulary.load("pascal-context-459").names)
    prepare("pascal-context-59", archives.root, tmp_path / "data", "--route", "polygons")
    data = resolve("pascal-context-59", tmp_path / "data")
    sky, grass = (data.vocabulary.names.index(name) for name in ("sky", "grass"))
    for labels in labels_of("pascal-context-59", tmp_path / "data").values():
        assert (labels[:5] == sky).all() and (labels[5:] == grass).all()


def test_pascal_context_60_counts_the_background(archives, tmp_path):
    full = Vocabulary.load("pascal-context-459").names
    raw = archives.pascal_context(full)
    prepare("pascal-context-60", archives.root, tmp_path / "data")
    data = resolve("pascal-context-60", tmp_path / "data")
    assert len(data.samples) == 3 and data.vocabulary.names[0] == "background"
    sky = data.vocabulary.names.index("sky")
    for sample in data.samples:
        labels = data.read_label(sample)
        np.testing.assert_array_equal(labels == sky, raw[sample.id] == full.index("sky") + 1)
        assert (labels[raw[sample.id] == 0] == 0).all() and labels.max() <= 59
    # The same tree, read as 59 classes, has the background as void.
    found = labels_of("pascal-context-59@mmseg", tmp_path / "data")
    for sample in data.samples:
        labels = data.read_label(sample)
        np.testing.assert_array_equal(found[sample.id], np.where(labels == 0, 255, labels - 1))
    evaluated("pascal-context-60", tmp_path / "data")


def test_pascal_context_459_wraps_zero_to_void(archives, tmp_path):
    raw = archives.pascal_context(Vocabulary.load("pascal-context-459").names)
    prepare("pascal-context-459", archives.root, tmp_path / "data")
    for split in ("train", "val"):
        for stem, labels in labels_of(f"pascal-context-459:{split}", tmp_path / "data").items():
            np.testing.assert_array_equal(
                labels, (raw[stem].astype(np.uint16) - 1).astype(np.uint16)
            )
    evaluated("pascal-context-459", tmp_path / "data")


def test_the_routes_are_compared_in_numbers(archives, tmp_path, capsys):
    archives.pascal_context(Vocabulary.load("pascal-context-459").names)
    arguments = ["--source", str(archives.root), "--output", str(tmp_path), "--split", "val"]
    assert main(["pascal-context-59", *arguments, "--compare", *ROUTES]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3 images of val")
    assert "mat and detail: 0 of" in lines[1]
    polygons = next(line for line in lines if line.startswith("mat and polygons"))
    assert int(polygons.split(": ")[1].split()[0]) > 0 and "in 3 images" in polygons


def test_a_shifted_labels_file_is_followed(archives, tmp_path):
    full = Vocabulary.load("pascal-context-459").names
    raw = archives.pascal_context(full)
    swapped = {1: full[2], 2: full[1], 3: full[0]}
    lines = [f"{n}: {swapped.get(n, name)}" for n, name in enumerate(full, 1)]
    (archives.root / "labels.txt").write_text("\n".join(lines))
    prepare("pascal-context-459", archives.root, tmp_path / "data", "--split", "val")
    accordion, third = 0, 2
    for stem, labels in labels_of("pascal-context-459", tmp_path / "data").items():
        np.testing.assert_array_equal(labels == third, raw[stem] == accordion + 1)


@pytest.mark.parametrize("damage", [b"", b"MATLAB 5.0 MAT-file, cut", None])
def test_damaged_mat_files_are_one_sentence(tmp_path, damage):
    path = tmp_path / "2008_000001.mat"
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(InputError, match="2008_000001"):
        read_mat(path)


def test_coco_stuff_maps_ids_to_labels(archives, tmp_path):
    raw = archives.coco()
    prepare("coco-stuff-171", archives.root, tmp_path / "data")
    labels_by_pixel = {i - 1: label for label, i in enumerate(category_ids())}
    found = labels_of("coco-stuff-171", tmp_path / "data")
    found |= labels_of("coco_2017_train_stuff_sem_seg", tmp_path / "data")
    assert set(found) == set(raw) - {"000000000012"}  # all void
    for stem, labels in found.items():
        expected = np.vectorize(lambda v: labels_by_pixel.get(v, 255))(raw[stem])
        np.testing.assert_array_equal(labels, expected)
    evaluated("coco-stuff-171", tmp_path / "data")


@pytest.mark.parametrize("name", ["coco-object-81", "coco-object-80"])
def test_coco_object_keeps_things(archives, tmp_path, name):
    raw = archives.coco()
    prepare(name, archives.root, tmp_path / "data", "--split", "val")
    for stem, labels in labels_of(name, tmp_path / "data").items():
        person = 1 if name == "coco-object-81" else 0
        stuff = 0 if name == "coco-object-81" else 255
        np.testing.assert_array_equal(labels == person, raw[stem] == 0)
        assert (labels[raw[stem] == 181] == stuff).all() and (labels[raw[stem] == 255] == 255).all()
    evaluated(name, tmp_path / "data")


def test_cityscapes_train_ids(archives, tmp_path):
    raw = archives.cityscapes()
    prepare("cityscapes-19", archives.root, tmp_path / "data")
    found = labels_of("cityscapes-19", tmp_path / "data")
    assert set(found) == {stem for stem in raw if not stem.startswith("aachen")}
    for stem, labels in found.items():
        expected = np.vectorize(lambda v: IDS.index(v) if v in IDS else 255)(raw[stem])
        np.testing.assert_array_equal(labels, expected)
    evaluated("cityscapes-19", tmp_path / "data")


def test_archives_are_unpacked_once(archives, tmp_path):
    archives.ade()
    downloads = tmp_path / "zipped"
    downloads.mkdir()
    with zipfile.ZipFile(downloads / "ADEChallengeData2016.zip", "w") as file:
        for path in archives.root.rglob("*.*"):
            file.write(path, path.relative_to(archives.root))
    prepare("ade20k-150", downloads, tmp_path / "data")
    first = resolve("ade20k-150@detectron2", tmp_path / "data").label_tree_hash()
    unpacked = tmp_path / "data/.unpacked"
    times = {path: path.stat().st_mtime_ns for path in unpacked.rglob("*.png")}
    prepare("ade20k-150", downloads, tmp_path / "data")
    assert times and {p: p.stat().st_mtime_ns for p in unpacked.rglob("*.png")} == times
    assert resolve("ade20k-150@detectron2", tmp_path / "data").label_tree_hash() == first


def test_archives_that_lead_outside_are_refused(tmp_path):
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (tmp_path / "evil.png").write_bytes(b"x")
    with tarfile.open(downloads / "VOCtrainval_11-May-2012.tar", "w") as file:
        file.add(tmp_path / "evil.png", arcname="../../evil2.png")
    with pytest.raises(InputError, match="refused"):
        main(["voc-21", "--source", str(downloads), "--output", str(tmp_path / "data")])
    with zipfile.ZipFile(downloads / "ADEChallengeData2016.zip", "w") as zipped:
        zipped.writestr("../outside.png", "x")
    with pytest.raises(InputError, match="leads outside"):
        main(["ade20k-150", "--source", str(downloads), "--output", str(tmp_path / "data")])
    assert not list(tmp_path.rglob("evil2.png")) and not list(tmp_path.rglob("outside.png"))


def test_preparation_resumes_and_repairs_only_what_is_missing(archives, tmp_path, capsys):
    archives.ade()
    prepare("ade20k-150", archives.root, tmp_path / "data", "--split", "val")
    folder = tmp_path / "data/ADEChallengeData2016/annotations_detectron2/validation"
    lost, kept, _ = sorted(folder.glob("*.png"))
    before = kept.stat().st_mtime_ns
    lost.unlink()
    capsys.readouterr()
    prepare("ade20k-150", archives.root, tmp_path / "data", "--split", "val")
    assert "1 label maps made, 2 were there" in capsys.readouterr().out
    assert lost.exists() and kept.stat().st_mtime_ns == before
    assert not list(folder.glob(".*"))  # no temporary files stay


def test_a_bad_source_stops_in_one_sentence_and_leaves_no_half_file(archives, tmp_path):
    archives.ade()
    bad = archives.root / "ADEChallengeData2016/annotations/validation/ADE_val_00000002.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(InputError, match="ADE_val_00000002"):
        prepare("ade20k-150", archives.root, tmp_path / "data", "--split", "val")
    made = tmp_path / "data/ADEChallengeData2016/annotations_detectron2/validation"
    assert [path.name for path in made.iterdir()] == ["ADE_val_00000001.png"]


def test_values_that_official_files_do_not_have_are_named(archives, tmp_path, make_labels):
    archives.ade()
    bad = archives.root / "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png"
    labels = read_label_map(bad)
    labels[0, :3] = 151
    make_labels(bad, labels)
    with pytest.raises(InputError, match=r"ADE_val_00000001.*151 \(3 pixels\)"):
        prepare("ade20k-150", archives.root, tmp_path / "data", "--split", "val")


def test_a_missing_image_is_named(archives, tmp_path):
    archives.ade()
    (archives.root / "ADEChallengeData2016/images/validation/ADE_val_00000003.jpg").unlink()
    with pytest.raises(InputError, match=r"ADE_val_00000003\.jpg"):
        prepare("ade20k-150", archives.root, tmp_path / "data", "--split", "val")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ade20k-150", "--source", "{none}"], "no folder"),
        (["ade20k-15"], "did you mean"),
        (["ade20k-150", "--source", "{empty}"], "has no ADEChallengeData2016"),
        (["ade20k-150", "--source", "{empty}", "--route", "mat"], "no route"),
        (["pascal-context-59", "--source", "{empty}", "--compare", "mat", "x"], "no route 'x'"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    places = {"none": tmp_path / "none", "empty": tmp_path / "empty"}
    filled = [argument.format(**places) for argument in arguments]
    with pytest.raises(InputError, match=words):
        main([*filled, "--output", str(tmp_path / "out")])


def test_several_processes_make_the_same_tree(archives, tmp_path):
    archives.ade(per_split=70)
    arguments = ["ade20k-150", "--source", str(archives.root), "--split", "val", "--quiet"]
    for workers in ("1", "2"):
        output = ["--workers", workers, "--output", str(tmp_path / workers)]
        assert main([*arguments, *output]) == 0
    first, second = (resolve("ade20k-150", tmp_path / workers) for workers in ("1", "2"))
    assert len(first.samples) == 70 and first.label_tree_hash() == second.label_tree_hash()


def test_copies_and_links(archives, tmp_path):
    archives.ade()
    prepare("ade20k-150", archives.root, tmp_path / "links", "--split", "val")
    prepare("ade20k-150", archives.root, tmp_path / "copies", "--split", "val", "--images", "copy")
    name = "ADEChallengeData2016/images/validation/ADE_val_00000001.jpg"
    original = (archives.root / name).stat().st_ino
    assert (tmp_path / "links" / name).stat().st_ino == original
    assert (tmp_path / "copies" / name).stat().st_ino != original
    shutil.rmtree(archives.root)
    assert read_image(tmp_path / "links" / name).shape == (24, 32, 3)


def test_the_official_mat_files_are_read_without_preparation(archives, tmp_path):
    archives.pascal_context(Vocabulary.load("pascal-context-459").names)
    prepare("pascal-context-459", archives.root, tmp_path / "data")
    official = resolve("pascal-context-459", archives.root)
    assert official.layout.name == "official" and len(official.samples) == 3
    made = resolve("pascal-context-459", tmp_path / "data")
    assert made.label_tree_hash() == official.label_tree_hash()


def test_run_length_codes_are_read_as_label_maps(tmp_path):
    labels = np.array([[3, 3, 7], [65535, 7, 7]])
    codes = [{"category_id": v, "segmentation": encode_rle(labels == v)} for v in (3, 7)]
    (tmp_path / "a.json").write_text(json.dumps(codes))
    assert read_stored(tmp_path / "a.json").tolist() == labels.tolist()
    for damage in ("[]", "{}", '[{"category_id": 1}]', "no JSON"):
        (tmp_path / "a.json").write_text(damage)
        with pytest.raises(InputError, match="no list of run-length codes"):
            read_stored(tmp_path / "a.json")


def test_coded_files_must_be_rgb(tmp_path, make_labels):
    make_labels(tmp_path / "ADE_val_1_seg.png", np.ones((4, 4)))
    with pytest.raises(InputError, match="expected RGB"):
        read_stored(tmp_path / "ADE_val_1_seg.png")
