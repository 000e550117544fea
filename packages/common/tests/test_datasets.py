"""Every layout of every data set, in miniature: found, paired, decoded, and named right."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from openvocab.datasets import ALIASES, CATALOG, resolve
from openvocab.datasets.polygons import fill_polygon, segment_mask
from openvocab.datasets.referring import (
    REFERRING,
    load_referring,
    referring_scores,
)
from openvocab.datasets.resolver import parse_name
from openvocab.datasets.spec import decode
from openvocab.errors import InputError
from openvocab.formats.run_length import decode_rle, encode_rle
from openvocab.prepare import main as prepare
from openvocab.vocabulary import Vocabulary

LAYOUTS = [
    (name, layout.name, below, split)
    for name, spec in CATALOG.items()
    for layout in spec.layouts
    for below in layout.roots
    for split in layout.split_names
]


def make_layout(tmp_path, make_image, make_labels, name, layout_name, below, split, stems, stored):
    """Lay out a set by the catalogue's own words, which `test_folders_of` pins to the specs."""
    layout = next(one for one in CATALOG[name].layouts if one.name == layout_name)
    root = tmp_path / below
    deep = layout.label_end != ".png"
    if layout.label_end == ".mat":

        def make_labels(path, labels, dtype):
            path.parent.mkdir(parents=True, exist_ok=True)
            scipy.io.savemat(path, {"LabelMap": labels.astype(dtype)})

    for i, stem in enumerate(stems):
        image_end = layout.image_end or ".jpg"
        make_image(root / layout.fill(layout.images, split) / f"{stem}{image_end}", (24, 32), i)
        path = root / layout.fill(layout.labels, split) / f"{stem}{layout.label_end}"
        make_labels(path, stored, np.uint16 if deep else np.uint8)
    if layout.listed:
        path = root / layout.fill(layout.listed, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(stems) + "\n")


@pytest.mark.parametrize(("name", "layout", "below", "split"), LAYOUTS)
def test_each_layout_is_found_and_decoded(
    tmp_path, make_image, make_labels, name, layout, below, split
):
    spec = CATALOG[name]
    stems = ["aachen/a_1", "ulm/b_2"] if name == "cityscapes-19" else ["a_1", "b_2"]
    stored = np.zeros((24, 32), dtype=np.int64)
    stored[:8], stored[8:16] = 1, 2
    make_layout(tmp_path, make_image, make_labels, name, layout, below, split, stems, stored)
    data = resolve(f"{name}:{split}@{layout}", tmp_path)
    assert (data.name, data.split, data.layout.name) == (name, split, layout)
    assert [sample.id for sample in data.samples] == stems
    assert len(data.vocabulary) == len(spec.vocabulary_of(data.layout))
    labels = data.read_label(data.samples[0])
    void = max(spec.ignore)
    expected = {"labels": [1, 2, 0], "from-one": [0, 1, void], "void-is-background": [2, 3, 1]}
    assert [labels[row, 0] for row in (0, 8, 16)] == expected[data.layout.coding]
    assert layout in data.describe() and str(tmp_path) in data.describe()


@pytest.mark.parametrize(
    ("name", "images", "labels"),
    [
        (
            "ade20k-150@detectron2",
            "ADEChallengeData2016/images/validation",
            "ADEChallengeData2016/annotations_detectron2/validation/*.png",
        ),
        (
            "ade20k-150@mmseg",
            "ade/ADEChallengeData2016/images/validation",
            "ade/ADEChallengeData2016/annotations/validation/*.png",
        ),
        (
            "ade20k-847",
            "ade/ADE20K_2021_17_01/images_detectron2/validation",
            "ade/ADE20K_2021_17_01/annotations_detectron2/validation/*.tif",
        ),
        (
            "voc-20@ovseg",
            "VOCdevkit/VOC2012/JPEGImages",
            "VOCdevkit/VOC2012/annotations_detectron2/val/*.png",
        ),
        ("voc-20@san", "VOC2012/JPEGImages", "VOC2012/annotations_detectron2/val/*.png"),
        (
            "voc-20@fc-clip",
            "pascal_voc_d2/images/validation",
            "pascal_voc_d2/annotations_pascal20/validation/*.png",
        ),
        (
            "voc-20b",
            "VOCdevkit/VOC2012/JPEGImages",
            "VOCdevkit/VOC2012/annotations_detectron2_bg/val/*.png",
        ),
        (
            "voc-21@fc-clip",
            "pascal_voc_d2/images/validation",
            "pascal_voc_d2/annotations_pascal21/validation/*.png",
        ),
        (
            "pascal-context-59@ovseg",
            "VOCdevkit/VOC2010/JPEGImages",
            "VOCdevkit/VOC2010/annotations_detectron2/pc59_val/*.png",
        ),
        ("pascal-context-59@san", "pcontext/val/image", "pcontext/val/label/*.png"),
        (
            "pascal-context-59@fc-clip",
            "pascal_ctx_d2/images/validation",
            "pascal_ctx_d2/annotations_ctx59/validation/*.png",
        ),
        (
            "pascal-context-59@maft+",
            "VOC2010/images",
            "VOC2010/annotations_detectron2_ovs/pc59_val/*.png",
        ),
        (
            "pascal-context-459@ovseg",
            "VOCdevkit/VOC2010/JPEGImages",
            "VOCdevkit/VOC2010/annotations_detectron2/pc459_val/*.tif",
        ),
        ("pascal-context-459@san", "pcontext_full/val/image", "pcontext_full/val/label/*.tif"),
        (
            "pascal-context-459@fc-clip",
            "pascal_ctx_d2/images/validation",
            "pascal_ctx_d2/annotations_ctx459/validation/*.tif",
        ),
        (
            "coco-stuff-171@detectron2",
            "coco/val2017",
            "coco/stuffthingmaps_detectron2/val2017/*.png",
        ),
        (
            "coco-stuff-171:train@detectron2",
            "coco/train2017",
            "coco/stuffthingmaps_detectron2/train2017/*.png",
        ),
        (
            "coco-stuff-171@cat-seg",
            "coco-stuff/images/val2017",
            "coco-stuff/annotations_detectron2/val2017/*.png",
        ),
        (
            "coco-stuff-171@mmseg",
            "coco_stuff164k/images/val2017",
            "coco_stuff164k/annotations/val2017/*_labelTrainIds.png",
        ),
        (
            "coco-object-81",
            "coco_stuff164k/images/val2017",
            "coco_stuff164k/annotations/val2017/*_instanceTrainIds.png",
        ),
    ],
)
def test_folders_of_the_layouts_in_the_wild(
    tmp_path, make_image, make_labels, name, images, labels
):
    """The folders are those of the table in layouts.md, spelled out."""
    make_image(tmp_path / images / "x1.jpg", (24, 32), 0)
    deep = np.uint16 if labels.endswith(".tif") else np.uint8
    make_labels(tmp_path / labels.replace("*", "x1"), np.ones((24, 32)), deep)
    data = resolve(name, tmp_path)
    assert data.samples == (
        ("x1", tmp_path / images / "x1.jpg", tmp_path / labels.replace("*", "x1")),
    )


def test_mmseg_lists_choose_the_split(archives):
    raw = archives.voc()
    val = {sample.id for sample in resolve("voc-20@mmseg", archives.root).samples}
    train = {sample.id for sample in resolve("voc-21:train@mmseg", archives.root).samples}
    assert val == {f"2007_{i:06d}" for i in range(3, 7)} and not val & train
    labels = resolve("voc-20", archives.root)
    for sample in labels.samples:
        expected = np.where(np.isin(raw[sample.id], (0, 255)), 255, raw[sample.id] - 1)
        np.testing.assert_array_equal(labels.read_label(sample), expected)


def test_every_alias_of_the_specifications_is_known():
    names = """ade20k_sem_seg_val ade20k_150_test_sem_seg openvocab_ade20k_panoptic_val
    ade20k_full_sem_seg_val ade20k_full_sem_seg_freq_val_all openvocab_ade20k_full_sem_seg_val
    pascalvoc20_sem_seg_val voc_sem_seg_val voc_2012_test_sem_seg voc_2012_test_background_sem_seg
    openvocab_pascal20_sem_seg_val openvocab_pascal21_sem_seg_val pascal_context_59_sem_seg_val
    pcontext_sem_seg_val context_59_test_sem_seg openvocab_pascal_ctx59_sem_seg_val
    pascal_context_459_sem_seg_val pcontext_full_sem_seg_val context_459_test_sem_seg
    openvocab_pascal_ctx459_sem_seg_val coco_2017_train_stuff_sem_seg coco_2017_test_stuff_sem_seg
    coco_2017_test_stuff_all_sem_seg""".split()
    assert set(names) <= set(ALIASES)
    for name in ALIASES:
        request = parse_name(name)
        assert request.split == ("train" if "_train" in name else "val")
        layouts = {layout.name for layout in request.spec.layouts}
        assert request.preferred in layouts
        if request.vocabulary is not None:
            assert len(Vocabulary.load(request.vocabulary)) == len(
                Vocabulary.load(request.spec.vocabulary)
            )


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("pcontext_sem_seg_val", "pascal-context-59"),
        ("voc_2012_test_background_sem_seg", "voc-20b"),
        ("coco_2017_test_stuff_sem_seg", "coco-stuff-171"),
        ("context_459_test_sem_seg", "pascal-context-459"),
    ],
)
def test_aliases_mean_the_right_set(alias, name):
    assert parse_name(alias).spec.name == name


def test_an_alias_prefers_its_own_layout(tmp_path, make_image, make_labels):
    for name, layout in (("pascal-context-59", "ovseg"), ("pascal-context-59", "san")):
        below = CATALOG[name].layouts[0].roots[0] if layout == "ovseg" else ""
        stored = np.ones((24, 32), dtype=np.int64)
        make_layout(tmp_path, make_image, make_labels, name, layout, below, "val", ["a"], stored)
    assert resolve("pcontext_sem_seg_val", tmp_path).layout.name == "san"
    assert resolve("pascal_context_59_sem_seg_val", tmp_path).layout.name == "ovseg"
    # In SAN's order label 1 is a bag, in OVSeg's a bicycle.
    assert resolve("pascal-context-59@san", tmp_path).vocabulary.names[1] == "bag"
    assert resolve("pascal-context-59@ovseg", tmp_path).vocabulary.names[1] == "bicycle"


def test_the_data_root_comes_from_the_environment(archives, monkeypatch, tmp_path):
    archives.voc()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(archives.root))
    assert len(resolve("voc-21").samples) == 4
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "elsewhere"))
    with pytest.raises(InputError, match="elsewhere"):
        resolve("voc-21")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    monkeypatch.chdir(tmp_path)
    archives.root.rename(tmp_path / "datasets")
    assert len(resolve("voc-21").samples) == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ade20k-15", "did you mean"),
        ("ade20k_sem_seg_vla", "ade20k_sem_seg_val"),
        ("ade20k-150:test", "no split 'test'"),
        ("ade20k-150@cat", "no layout 'cat'"),
        ("ade20k-150", "openvocab.prepare ade20k-150"),
    ],
)
def test_what_is_not_there_is_one_sentence(tmp_path, name, words):
    with pytest.raises(InputError, match=words):
        resolve(name, tmp_path)


def test_files_without_partner_are_listed_and_left_out(archives):
    archives.ade()
    base = archives.root / "ADEChallengeData2016"
    (base / "images/validation/ADE_val_00000001.jpg").unlink()
    (base / "annotations/validation/ADE_val_00000002.png").unlink()
    with pytest.warns(UserWarning) as caught:
        data = resolve("ade20k-150", archives.root)
    text = " ".join(str(warning.message) for warning in caught)
    assert "1 label maps have no image and are left out: ADE_val_00000001" in text
    assert "1 images have no label map and are left out: ADE_val_00000002" in text
    assert [sample.id for sample in data.samples] == ["ADE_val_00000003"]
    assert len(data.left_out) == 2


def test_names_that_do_not_pair_up_are_an_error(tmp_path, make_image, make_labels):
    base = tmp_path / "ADEChallengeData2016"
    make_image(base / "images/validation/a.jpg", (24, 32), 0)
    make_labels(base / "annotations/validation/b.png", np.ones((24, 32)))
    with pytest.raises(InputError, match="no image in"):
        resolve("ade20k-150", tmp_path)


def test_the_hash_of_labels_is_the_same_in_every_layout_and_compression(archives, tmp_path):
    archives.ade()
    raw = resolve("ade20k-150@mmseg", archives.root)
    output = tmp_path / "data"
    arguments = ["--source", str(archives.root), "--output", str(output), "--quiet"]
    assert prepare(["ade20k-150", *arguments]) == 0
    made = resolve("ade20k-150@detectron2", output)
    assert made.label_tree_hash() == raw.label_tree_hash()
    one = made.samples[0].label
    from PIL import Image

    with Image.open(one) as image:
        pixels = np.array(image)
    Image.fromarray(pixels).save(one, compress_level=0)
    assert made.label_tree_hash() == raw.label_tree_hash()
    pixels[0, 0] = (int(pixels[0, 0]) + 1) % 150
    Image.fromarray(pixels).save(one)
    assert made.label_tree_hash() != raw.label_tree_hash()


def test_void_of_pascal_context_459_is_one_thing(tmp_path, make_image, make_labels):
    hashes = []
    for void in (459, 65535):
        stored = np.full((24, 32), 3)
        stored[:5] = void
        root = tmp_path / str(void)
        args = ("pascal-context-459", "ovseg", "VOCdevkit/", "val", ["a"], stored)
        make_layout(root, make_image, make_labels, *args)
        data = resolve("pascal-context-459", root)
        assert set(data.ignore_index) == {459, 65535}
        hashes.append(data.label_tree_hash())
    assert hashes[0] == hashes[1]


def test_decode_keeps_void():
    stored = np.array([[0, 1, 150, 255]])
    assert decode(stored, "from-one").tolist() == [[255, 0, 149, 255]]
    assert decode(stored, "void-is-background").tolist() == [[1, 2, 151, 0]]
    assert decode(stored, "labels").tolist() == [[0, 1, 150, 255]]
    assert decode(np.array([[0, 846]]), "from-one", 65535).tolist() == [[65535, 845]]


# --- referring ----------------------------------------------------------------------------------


@pytest.fixture
def refer_root(archives, tmp_path):
    def make(name: str) -> Path:
        spec = REFERRING[name]
        archives.refer(spec.folder, spec.file)
        arguments = ["--source", str(archives.root), "--output", str(tmp_path / "data")]
        assert prepare([name, *arguments]) == 0
        return tmp_path / "data"

    return make


@pytest.mark.parametrize("name", ["refcoco", "refcoco+"])
def test_refcoco_has_one_item_for_each_object(refer_root, name):
    samples = load_referring(name, "val", refer_root(name))
    assert [sample.sentences for sample in samples] == [('The "left" man', 'The "red" man')] * 2
    for sample in samples:
        assert sample.image.is_file() and "refer/data/images/mscoco/images/train2014" in str(
            sample.image
        )
        mask = sample.mask()
        assert mask.shape == (24, 32) and mask.sum() == 8 * 12  # polygon or code, the same square
    assert len(load_referring(name, "testA", refer_root(name))) == 1


def test_gres_has_one_item_for_each_sentence_and_masks_of_nothing(refer_root):
    samples = load_referring("gres", "val", refer_root("gres"))
    assert [len(sample.sentences) for sample in samples] == [1] * 4
    assert len({sample.id for sample in samples}) == 4
    assert [sample.mask().any() for sample in samples] == [True, True, False, False]


def test_a_hostile_refs_pickle_is_refused(archives, tmp_path, monkeypatch):
    archives.refer()
    monkeypatch.chdir(tmp_path)
    attack = b"cos\nsystem\n(Vtouch refs-were-run\ntR."
    (archives.root / "refcoco/refs(unc).p").write_bytes(attack)
    with pytest.raises(InputError, match="refused"):
        prepare(["refcoco", "--source", str(archives.root), "--output", str(tmp_path / "data")])
    assert not (tmp_path / "refs-were-run").exists()
    pickle.loads(attack)
    assert (tmp_path / "refs-were-run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("refcoco", "dev"), "no split"), (("refclef", "val"), "no referring set")],
)
def test_referring_names_are_checked(tmp_path, arguments, words):
    with pytest.raises(InputError, match=words):
        load_referring(*arguments, tmp_path)  # type: ignore[call-arg]


def test_files_of_different_archives_do_not_fit(refer_root):
    root = refer_root("refcoco")
    path = root / "refer/data/refcoco/instances.json"
    content = json.loads(path.read_text())
    path.unlink()  # it is a link to the source
    path.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(InputError, match="does not fit together"):
        load_referring("refcoco", "val", root)


def test_referring_scores_by_hand():
    truth = np.zeros((10, 10), dtype=bool)
    truth[:, :5] = True
    half, none, exact = truth.copy(), np.zeros_like(truth), truth.copy()
    half[:, :4] = False
    small, empty = np.zeros((2, 2), bool), np.zeros((2, 2), bool)
    found = referring_scores([(exact, truth), (half, truth), (none, truth), (small, empty)])
    assert found.mean_iou == pytest.approx(100 * (1 + 0.2 + 0 + 0) / 4)
    assert found.overall_iou == pytest.approx(100 * (50 + 10) / 150)
    assert found.precision == {t: 25.0 for t in (0.5, 0.6, 0.7, 0.8, 0.9)}
    assert found.n == 4


def test_precision_counts_the_threshold_itself():
    truth = np.ones((1, 10), dtype=bool)
    prediction = np.arange(10)[None] < 5
    assert referring_scores([(prediction, truth)]).precision[0.5] == 100
    assert referring_scores([(prediction, truth)]).precision[0.6] == 0


def test_referring_masks_must_have_one_size():
    with pytest.raises(InputError, match="size"):
        referring_scores([(np.ones((2, 2)), np.ones((3, 2)))])
    with pytest.raises(InputError, match="no masks"):
        referring_scores([])
    with pytest.raises(InputError, match="2x2 pixels and its image 3x3"):
        segment_mask(encode_rle(np.ones((2, 2))), (3, 3))


RECORDED = json.loads((Path(__file__).parent / "golden/coco_polygons.json").read_text())


@pytest.mark.parametrize("recorded", RECORDED, ids=range(len(RECORDED)))
def test_polygons_are_filled_as_the_coco_api_fills_them(recorded):
    """Recorded from pycocotools: random polygons, some outside the image, some degenerate."""
    found = segment_mask(recorded["polygons"], tuple(recorded["size"]))
    np.testing.assert_array_equal(found, decode_rle(recorded))


@pytest.mark.parametrize("polygon", [[], [1.0], [1, 2, 3], [[1, 2]], [float("nan"), 1]])
def test_no_polygon(polygon):
    with pytest.raises(InputError, match="a polygon is a list"):
        fill_polygon(polygon, (4, 4))
