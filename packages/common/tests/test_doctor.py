"""The doctor on healthy trees, and on one deliberately broken tree of every kind."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openvocab.datasets import CATALOG, resolve
from openvocab.datasets.cityscapes import IDS
from openvocab.datasets.coco_stuff import category_ids
from openvocab.datasets.diagnosis import diagnose
from openvocab.datasets.inspection import inspect_set
from openvocab.datasets.spec import read_data
from openvocab.doctor import main
from openvocab.errors import InputError
from openvocab.image import read_label_map
from openvocab.prepare import main as prepare
from openvocab.vocabulary import Vocabulary

ADE = "ADEChallengeData2016"


@pytest.fixture
def ade(archives, tmp_path) -> Path:
    """A healthy ADE20K-150 of four images, without the raw label maps."""
    archives.ade(per_split=4)
    arguments = ["--source", str(archives.root), "--output", str(tmp_path / "data"), "--quiet"]
    assert prepare(["ade20k-150", *arguments, "--images", "copy"]) == 0
    return tmp_path / "data"


@pytest.fixture
def context(archives, tmp_path) -> Path:
    """A healthy Pascal Context-59 in OVSeg's layout."""
    archives.pascal_context(Vocabulary.load("pascal-context-459").names)
    arguments = ["--source", str(archives.root), "--output", str(tmp_path / "data"), "--quiet"]
    assert prepare(["pascal-context-59", *arguments, "--images", "copy"]) == 0
    return tmp_path / "data"


def label_files(root: Path) -> list[Path]:
    return sorted((root / ADE / "annotations_detectron2/validation").glob("*.png"))


def change(path: Path, function) -> None:
    labels = function(read_label_map(path).astype(np.int64))
    Image.fromarray(labels.astype(np.uint16 if path.suffix == ".tif" else np.uint8)).save(path)


def visit(capsys, root: Path, name: str = "ade20k-150", *more: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main([name, "--data-root", str(root), "--quiet", "--workers", "1", *more])
    return code, capsys.readouterr().out


def fixes(text: str) -> list[str]:
    return [line.split("to repair: ")[1] for line in text.splitlines() if "to repair: " in line]


def test_a_healthy_small_copy_has_only_its_size_to_be_careful_about(ade, capsys):
    code, text = visit(capsys, ade)
    assert code == 0 and "WRONG" not in text
    assert "4 images with label maps instead of the official 2,000 (1,996 are missing)" in text
    assert "layout of detectron2" in text and "wall" in text
    assert resolve("ade20k-150", ade).label_tree_hash() in text


def test_the_report_has_the_hash_of_the_protocol_card_and_the_histogram(ade, tmp_path, capsys):
    code, _ = visit(capsys, ade, "ade20k-150", "--output", str(tmp_path / "report"))
    report = json.loads((tmp_path / "report/doctor.json").read_text())[0]
    data = resolve("ade20k-150", ade)
    assert code == 0 and report["label_tree_hash"] == data.label_tree_hash()
    pixels = np.concatenate([data.read_label(sample).ravel() for sample in data.samples])
    values, counts = np.unique(pixels, return_counts=True)
    expected = dict(zip(map(str, values.tolist()), counts.tolist(), strict=True))
    assert report["histogram"] == expected
    with Image.open(tmp_path / "report/ade20k-150-val.png") as sheet:
        assert sheet.width > 600 and sheet.height > 500
        assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 100


def test_missing_image(ade, capsys):
    (ade / ADE / "images/validation/ADE_val_00000002.jpg").unlink()
    code, text = visit(capsys, ade)
    assert code == 1
    assert "1 label maps have no image and are left out: ADE_val_00000002" in text
    assert any("openvocab.prepare ade20k-150 --split val" in fix for fix in fixes(text))


def test_missing_label_map_is_repaired_by_the_command(ade, archives, capsys):
    lost = label_files(ade)[1]
    lost.unlink()
    code, text = visit(capsys, ade)
    assert code == 1 and "1 images have no label map and are left out: ADE_val_00000002" in text
    command = fixes(text)[0].replace("DOWNLOADS", shlex.quote(str(archives.root)))
    assert prepare([*shlex.split(command)[3:], "--quiet"]) == 0
    assert lost.exists() and visit(capsys, ade)[0] == 0


def test_truncated_png(ade, capsys):
    bad = label_files(ade)[2]
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    code, text = visit(capsys, ade)
    assert code == 1
    assert f"1 label maps cannot be read: '{bad}' is damaged or cut short" in text
    assert "some are damaged" in text  # no hash is claimed
    assert any(fix.startswith(f"rm {bad} && python -m openvocab.prepare") for fix in fixes(text))


@pytest.mark.parametrize("keep", [0, 10, 400])
def test_truncated_photographs(ade, capsys, keep):
    bad = ade / ADE / "images/validation/ADE_val_00000003.jpg"
    whole = bad.read_bytes()
    assert keep < len(whole)
    bad.write_bytes(whole[:keep])
    code, text = visit(capsys, ade)
    assert code == 1 and "1 images cannot be read" in text and str(bad) in text


def test_label_larger_than_image(ade, capsys):
    change(label_files(ade)[0], lambda labels: labels.repeat(2, axis=0).repeat(2, axis=1))
    code, text = visit(capsys, ade)
    assert code == 1
    assert "1 label maps are not as large as their image: ADE_val_00000001 " in text
    assert "(image 32x24, label map 64x48)" in text


def test_wrong_ignore_value_everywhere(ade, capsys):
    for path in label_files(ade):
        change(path, lambda labels: np.where(labels == 255, 200, labels))
    code, text = visit(capsys, ade)
    assert code == 1
    assert "The value 200 is no class (0 to 149) and not void (255)" in text
    assert "most likely void was written as 200, where 255 is expected" in text
    assert any("mv " in fix and ".wrong" in fix for fix in fixes(text))


def test_one_foreign_label_map_is_not_taken_for_a_rule(ade, capsys):
    change(label_files(ade)[3], lambda labels: np.where(labels == labels[0, 0], 201, labels))
    code, text = visit(capsys, ade)
    pixels = int((read_label_map(label_files(ade)[3]) == 201).sum())
    assert code == 1 and f"such as {label_files(ade)[3]} ({pixels:,} pixels)" in text
    assert "Only few label maps have it" in text


def test_labels_that_were_never_shifted(ade, archives, capsys):
    for path in label_files(ade):
        raw = archives.root / ADE / "annotations/validation" / path.name
        path.unlink()
        path.write_bytes(raw.read_bytes())
    code, text = visit(capsys, ade)
    assert code == 1 and "as if they started at 1" in text and "not yet converted" in text


def official(kind: str) -> tuple[str, list[int]]:
    """Return a set and the official code of each of its labels."""
    coco, ade = category_ids(), read_data("ade20k_full_ids.json")
    table = {
        "labelIds": ("cityscapes-19", list(IDS)),
        "instanceIds": ("cityscapes-19", [1000 * i + 7 if i > 23 else i for i in IDS]),
        "stuffthingmaps": ("coco-stuff-171", [i - 1 for i in coco]),
        "category ids": ("coco-stuff-171", coco),
        "object index": ("ade20k-150", [ade[label] for label in range(150)]),
        "not yet converted": ("ade20k-150", list(range(1, 151))),
    }
    return table[kind]


@pytest.mark.parametrize(
    ("kind", "void"),
    [
        ("labelIds", 0),
        ("instanceIds", 0),
        ("stuffthingmaps", 255),
        ("category ids", 0),
        ("object index", 0),
        ("not yet converted", 0),
    ],
)
def test_official_codes_are_recognized_before_single_values(
    make_image, tmp_path, capsys, kind, void
):
    name, codes = official(kind)
    spec = CATALOG[name]
    layout = next(one for one in spec.layouts if one.name == spec.made)
    root = tmp_path / layout.roots[0]
    rng = np.random.default_rng(0)
    for number in range(3):
        end = layout.image_end or ".jpg"
        make_image(root / layout.fill(layout.images, "val") / f"{number}{end}", (24, 32), number)
        labels = np.array([*codes, void])[rng.integers(0, len(codes) + 1, (24, 32))]
        path = root / layout.fill(layout.labels, "val") / f"{number}{layout.label_end}"
        path.parent.mkdir(parents=True, exist_ok=True)
        kinds = np.uint8 if labels.max() < 256 else np.uint16
        Image.fromarray(labels.astype(kinds)).save(path)
    code, text = visit(capsys, tmp_path, name)
    assert code == 1 and text.count("WRONG: The label maps hold") == 1 and kind in text
    assert "void was written as" not in text and "in 3 of 3 label maps" in text
    assert f"openvocab.prepare {name} --split val" in fixes(text)[0]


def test_the_command_that_repairs_label_ids_does_so(archives, capsys):
    archives.cityscapes()
    for path in archives.root.rglob("*_labelIds.png"):
        wrong = path.with_name(path.name.replace("labelIds", "labelTrainIds"))
        wrong.write_bytes(path.read_bytes())
    code, text = visit(capsys, archives.root, "cityscapes-19")
    assert code == 1 and "labelIds were saved under the name of labelTrainIds" in text
    remove, _, command = fixes(text)[0].partition(" && ")
    folder = archives.root / "gtFine/val"
    assert remove == f"find {folder} -name '*_gtFine_labelTrainIds.png' -delete"
    for path in folder.rglob("*_gtFine_labelTrainIds.png"):
        path.unlink()
    assert prepare([*shlex.split(command)[3:], "--quiet"]) == 0
    assert visit(capsys, archives.root, "cityscapes-19")[0] == 0


@pytest.mark.parametrize("void", [171, 200])
def test_one_value_is_a_wrong_void_and_no_official_code(make_image, tmp_path, capsys, void):
    for number in range(3):
        make_image(tmp_path / f"coco/val2017/{number}.jpg", (24, 32), number)
        labels = np.arange(24 * 32).reshape(24, 32) % 171
        labels[:4] = void
        path = tmp_path / f"coco/stuffthingmaps_detectron2/val2017/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels.astype(np.uint8)).save(path)
    code, text = visit(capsys, tmp_path, "coco-stuff-171")
    assert code == 1 and "The label maps hold" not in text
    assert f"The value {void} is no class" in text


def test_255_as_void_where_it_is_a_class(archives, tmp_path, capsys):
    archives.pascal_context(Vocabulary.load("pascal-context-459").names)
    arguments = ["--source", str(archives.root), "--output", str(tmp_path / "data"), "--quiet"]
    assert prepare(["pascal-context-459", *arguments]) == 0
    folder = tmp_path / "data/VOCdevkit/VOC2010/annotations_detectron2/pc459_val"
    for path in folder.glob("*.tif"):
        change(path, lambda labels: np.where(labels == 65535, 255, labels))
    code, text = visit(capsys, tmp_path / "data", "pascal-context-459")
    name = Vocabulary.load("pascal-context-459").names[255]
    assert code == 1 and f"255 is the class {name!r}" in text and "65535" in text


def test_swapped_order_is_seen_by_the_note_of_our_preparation(context, capsys):
    """SAN's order in OVSeg's folder: the same files, another meaning."""
    base = context / "VOCdevkit/VOC2010/annotations_detectron2"
    note = json.loads((base / "pc59_val/openvocab.json").read_text())
    note["names"] = list(Vocabulary.load("pascal-context-59").names)
    (base / "pc59_val/openvocab.json").write_text(json.dumps(note))
    code, text = visit(capsys, context, "pascal-context-59")
    assert code == 1 and "label 1 is 'bag', but in this layout it is 'bicycle'" in text
    assert "The order of the labels is swapped" in text


def reorder(context: Path) -> None:
    base = context / "VOCdevkit/VOC2010/annotations_detectron2/pc59_val"
    (base / "openvocab.json").unlink()
    ours = [n.replace("diningtable", "table") for n in Vocabulary.load("pascal-context-59").names]
    theirs = Vocabulary.load("ovseg-pascal-context-59").names
    table = np.full(256, 255)
    table[: len(theirs)] = [ours.index(name) for name in theirs]
    for path in base.glob("*.png"):
        change(path, lambda labels: table[labels])


def test_swapped_order_without_a_note_is_seen_by_the_sky(context, capsys):
    # What grass and sky are called in the other order must be the ground and the sky of this one.
    base = context / "VOCdevkit/VOC2010/annotations_detectron2/pc59_val"
    (base / "openvocab.json").unlink()
    names = list(Vocabulary.load("ovseg-pascal-context-59").names)
    sky, grass = names.index("sky"), names.index("grass")
    for path in base.glob("*.png"):
        change(path, lambda x: np.where(x == sky, grass, np.where(x == grass, sky, x)))
    code, text = visit(capsys, context, "pascal-context-59")
    assert code == 1 and "The world is upside down" in text and "'sky'" in text


def test_swapped_order_is_seen_by_another_tree_of_the_same_images(context, archives, capsys):
    arguments = ["--source", str(archives.root), "--output", str(context), "--quiet"]
    assert prepare(["pascal-context-459", *arguments]) == 0
    assert visit(capsys, context, "pascal-context-59")[0] == 0
    reorder(context)
    code, text = visit(capsys, context, "pascal-context-59")
    assert code == 1 and "The labels contradict those of pascal-context-459" in text
    assert "fits the order that the layout 'san' has" in text


def test_voc_with_shuffled_classes_contradicts_the_official_masks(archives, tmp_path, capsys):
    archives.voc()
    arguments = ["--source", str(archives.root), "--output", str(archives.root), "--quiet"]
    assert prepare(["voc-20", *arguments]) == 0
    assert visit(capsys, archives.root, "voc-20")[0] == 0
    base = archives.root / "VOCdevkit/VOC2012/annotations_detectron2/val"
    (base / "openvocab.json").unlink()
    for path in base.glob("*.png"):
        change(path, lambda labels: np.where(labels == 255, 255, 19 - labels))
    code, text = visit(capsys, archives.root, "voc-20")
    assert code == 1 and "only 0 % of the pixels of shared names agree" in text


def test_a_damaged_note_is_said(context, capsys):
    note = context / "VOCdevkit/VOC2010/annotations_detectron2/pc59_val/openvocab.json"
    note.write_text("{")
    assert "is damaged" in visit(capsys, context, "pascal-context-59")[1]


def test_without_names_everything_that_is_there_is_visited(ade, archives, capsys):
    archives.voc()
    (archives.root / "VOCdevkit").rename(ade / "VOCdevkit")
    capsys.readouterr()
    assert main(["--data-root", str(ade), "--quiet", "--workers", "1"]) == 0
    text = capsys.readouterr().out
    for found in ("ade20k-150 (train)", "ade20k-150 (val)", "voc-20 (val)", "voc-21 (train)"):
        assert found in text
    assert "cityscapes" not in text


def test_nothing_there(tmp_path, capsys):
    assert main(["--data-root", str(tmp_path), "--quiet"]) == 1
    assert "openvocab.prepare NAME" in capsys.readouterr().out
    assert visit(capsys, tmp_path, "voc-21")[0] == 1
    with pytest.raises(InputError, match="no folder"):
        main(["--data-root", str(tmp_path / "none")])


def test_inspection_counts_what_is_in_the_files(ade):
    data = resolve("ade20k-150", ade)
    seen = inspect_set(data, workers=1, progress=False)
    total = sum(data.read_label(sample).size for sample in data.samples)
    assert sum(seen.histogram().values()) == total
    assert all(0 <= share <= 1 for share in seen.share_above().values())
    assert seen.label_tree_hash() == data.label_tree_hash()


def test_turned_photographs_count_as_they_are_shown(ade, capsys):
    """EXIF orientation 6 shows the image on its side; the label map must be so, too."""
    path = ade / ADE / "images/validation/ADE_val_00000001.jpg"
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    code, text = visit(capsys, ade)
    assert code == 1 and "(image 24x32, label map 32x24)" in text


@pytest.mark.parametrize(
    ("sizes", "severity", "words"),
    [
        ((4,), None, ""),
        ((4, 5), "note", "4 images; complete is 4 or 5, depending on the list"),
        ((3,), "warning", "too many"),
        ((7, 8), "warning", "instead of the official 7 or 8 (4 are missing)"),
    ],
)
def test_counts_are_held_against_the_official_ones(ade, sizes, severity, words):
    data = resolve("ade20k-150", ade)
    data = replace(data, spec=replace(data.spec, sizes={"val": sizes}))
    found = diagnose(inspect_set(data, workers=1, progress=False), ade)
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    assert all(words in finding.text for finding in found)


def test_what_our_preparation_does_not_write_is_replaced_beside_it(archives, capsys):
    """VOC as downloaded is nobody's to move away; a tree is made next to it."""
    archives.voc()
    bad = archives.root / "VOCdevkit/VOC2012/SegmentationClass/2007_000003.png"
    bad.write_bytes(bad.read_bytes()[:30])
    code, text = visit(capsys, archives.root, "voc-21")
    assert code == 1 and all("rm " not in fix and "mv " not in fix for fix in fixes(text))
    command, use = fixes(text)[0].split("  # and then use ")
    assert use == "--dataset voc-21@fc-clip"
    command = command.replace("DOWNLOADS", shlex.quote(str(archives.root)))
    bad.unlink()  # the augmented masks are whole
    assert prepare([*shlex.split(command)[3:], "--quiet"]) == 0
    assert visit(capsys, archives.root, "voc-21@fc-clip")[0] == 0


def test_a_tree_of_the_detail_route_is_made_by_that_route(archives, tmp_path, capsys):
    archives.pascal_context(Vocabulary.load("pascal-context-459").names)
    arguments = ["--source", str(archives.root), "--output", str(tmp_path / "data"), "--quiet"]
    assert prepare(["pascal-context-59", *arguments, "--route", "detail"]) == 0
    lost = sorted((tmp_path / "data/pcontext/val/label").glob("*.png"))[0]
    lost.unlink()
    code, text = visit(capsys, tmp_path / "data", "pascal-context-59")
    assert code == 1
    command = fixes(text)[0].replace("DOWNLOADS", shlex.quote(str(archives.root)))
    assert prepare([*shlex.split(command)[3:], "--quiet"]) == 0
    assert lost.exists() and visit(capsys, tmp_path / "data", "pascal-context-59")[0] == 0


def test_every_set_names_the_layout_that_its_preparation_writes():
    for spec in CATALOG.values():
        assert spec.made in {layout.name for layout in spec.layouts}
