"""Formats of other tools: every one is read back, where possible through the tool's own library."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from openvocab.errors import InputError
from openvocab.export import export, main
from openvocab.formats.coco import write_coco
from openvocab.formats.cvat import label_colors, label_map_text
from openvocab.formats.labelstudio import encode_brush
from openvocab.formats.outlines import bridged, polygons_of
from openvocab.formats.polygons import feature_collection
from openvocab.formats.regions import ImageResult, read_results, result_of
from openvocab.formats.writers import FORMATS
from openvocab.segmenter import Segmentation
from openvocab.vocabulary import Vocabulary

NAMES = ("sky", "ring", "two parts", "dot", "never seen")
SIZE = (60, 80)
masks = arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def tool(name: str) -> Any:
    """Import a labeling tool, which the tests of formats need; CI installs all of them."""
    if os.environ.get("OPENVOCAB_TEST_TOOLS"):
        return __import__(name, fromlist=["_"])
    return pytest.importorskip(name, reason=f"{name} is of the extra 'tools'")


def label_map(shift: int = 0) -> np.ndarray:
    """Return labels with a hole, two parts, a single pixel, and ground without a name."""
    labels = np.full(SIZE, -1, np.int32)
    labels[:20] = 0
    labels[25:50, 5:30] = 1
    labels[32:40, 12 + shift : 20 + shift] = -1  # the hole of the ring
    labels[25:35, 40:50] = 2
    labels[40:55, 60:75] = 2
    labels[58, 78] = 3
    return labels


@pytest.fixture
def results(tmp_path: Path) -> list[ImageResult]:
    vocabulary = Vocabulary.from_names(list(NAMES))
    found = []
    for index in range(2):
        path = tmp_path / "photos" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (*SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        confidence = np.full(SIZE, 0.75, np.float32)
        one = Segmentation(label_map(index), vocabulary, confidence=confidence)
        found.append(result_of(one, str(path)))
    return found


def truth(result: ImageResult) -> dict[str, np.ndarray]:
    return {region.name: region.mask for region in result.regions}


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


# --- outlines


def fill(mask: np.ndarray) -> np.ndarray:
    """Fill the polygons of a mask by the even-odd rule at the centers of the pixels."""
    filled = np.zeros(mask.shape, np.bool_)
    for polygon in polygons_of(mask):
        for ring in (polygon.outer, *polygon.holes):
            for (x, y), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                if x == x2:
                    filled[min(y, y2) : max(y, y2), x:] ^= True
    return filled


@given(masks)
def test_outlines_filled_give_the_mask(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(fill(mask), mask)
    count, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    assert len(polygons_of(mask)) == count - 1
    for polygon in polygons_of(mask):
        for ring in (polygon.outer, *polygon.holes):
            turns = np.diff(np.concatenate([ring, ring[:2]]), axis=0) != 0
            assert (turns.sum(axis=1) == 1).all()  # along the axes, and no repeated corner
            assert (turns[:-1, 0] != turns[1:, 0]).all()  # a corner wherever it turns


def test_pixels_that_touch_at_a_corner() -> None:
    assert len(polygons_of(np.eye(2, dtype=bool))) == 2
    mask = np.ones((4, 4), bool)
    mask[1, 1] = mask[2, 2] = False
    (part,) = polygons_of(mask)
    assert len(part.holes) == 2  # each hole is a simple ring


@given(masks)
def test_bridges_keep_the_area(mask: np.ndarray) -> None:
    for polygon in polygons_of(mask):
        ring = bridged(polygon).astype(np.int64)
        x, y = ring[:, 0], ring[:, 1]
        area = (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2
        rings = (polygon.outer, *polygon.holes)
        whole = sum((r[:, 0] * np.roll(r[:, 1], -1) - np.roll(r[:, 0], -1) * r[:, 1]).sum() / 2
                    for r in rings)  # fmt: skip
        assert area == whole


# --- each format


def test_coco(results: list[ImageResult], tmp_path: Path) -> None:
    path = export(results, "coco", tmp_path)
    coco = tool("pycocotools.coco").COCO(str(path))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(NAMES)
    for image_id, result in zip(coco.getImgIds(), results, strict=True):
        assert coco.loadImgs(image_id)[0]["file_name"] == result.image
        known = truth(result)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image_id))
        assert len(annotations) == len(known) == 4
        for one in annotations:
            mask = known[NAMES[one["category_id"] - 1]]
            np.testing.assert_array_equal(coco.annToMask(one), mask)
            assert one["area"] == mask.sum() and one["score"] == pytest.approx(0.75)
            x, y, w, h = one["bbox"]
            assert mask[y : y + h, x : x + w].sum() == mask.sum()


def test_coco_polygons_keep_holes_as_codes(results: list[ImageResult], tmp_path: Path) -> None:
    path = export(results, "coco-polygons", tmp_path)
    coco = tool("pycocotools.coco").COCO(str(path))
    for image_id, result in zip(coco.getImgIds(), results, strict=True):
        for one in coco.loadAnns(coco.getAnnIds(imgIds=image_id)):
            name = NAMES[one["category_id"] - 1]
            assert isinstance(one["segmentation"], dict) == (name == "ring")
            assert iou(coco.annToMask(one) > 0, truth(result)[name]) >= 0.99


def test_yolo(results: list[ImageResult], tmp_path: Path) -> None:
    folder = export(results, "yolo", tmp_path)
    supervision = tool("supervision")
    data = supervision.DetectionDataset.from_yolo(
        str(folder / "images"), str(folder / "labels"), str(folder / "data.yaml"), force_masks=True
    )
    assert data.classes == list(NAMES)
    for (_, _, found), result in zip(data, results, strict=True):
        for index, name in enumerate(NAMES[:4]):
            parts = [m for m, i in zip(found.mask, found.class_id, strict=True) if i == index]
            assert iou(np.any(parts, axis=0), truth(result)[name]) >= 0.99
        ring = found.mask[list(found.class_id).index(1)]
        assert not ring[34:38, 15:18].any()  # the hole is kept


def test_labelme(results: list[ImageResult], tmp_path: Path) -> None:
    folder = export(results, "labelme", tmp_path)
    read = tool("labelme._label_file").read_label_file
    for index, result in enumerate(results):
        found = read(str(folder / f"{index}.json"))
        shapes = found["shapes"] if isinstance(found, dict) else found.shapes
        assert len(shapes) == 4
        for shape in shapes:
            (left, top), (right, bottom) = np.array(shape["points"], int)
            mask = np.zeros(SIZE, np.bool_)
            mask[top : bottom + 1, left : right + 1] = shape["mask"]
            np.testing.assert_array_equal(mask, truth(result)[shape["label"]])


def test_labelstudio(results: list[ImageResult], tmp_path: Path) -> None:
    path = export(results, "labelstudio", tmp_path)
    brush = tool("label_studio_sdk.converter.brush")
    tasks = json.loads(path.read_text("utf-8"))
    for task, result in zip(tasks, results, strict=True):
        (prediction,) = task["predictions"]
        assert task["data"]["image"] == result.image and prediction["score"] == 0.75
        for one in prediction["result"]:
            height, width = one["original_height"], one["original_width"]
            flat = brush.decode_rle(one["value"]["rle"])
            mask = np.reshape(flat, (height, width, 4))[..., 3] > 0
            (name,) = one["value"]["brushlabels"]
            np.testing.assert_array_equal(mask, truth(result)[name])
    parse = tool("label_studio_sdk._extensions.label_studio_tools.core.label_config").parse_config
    config = parse(path.with_suffix(".xml").read_text("utf-8"))
    assert config["brush"]["labels"] == list(NAMES) and config["brush"]["to_name"] == ["image"]


def test_brush_codes_of_long_runs() -> None:
    brush = tool("label_studio_sdk.converter.brush")
    mask = np.zeros((300, 400), bool)
    mask[100:250, 3:7] = True
    assert (np.reshape(brush.decode_rle(encode_brush(mask)), (300, 400, 4)) > 0).all(2).sum() == 600


def test_cvat(results: list[ImageResult], tmp_path: Path) -> None:
    folder = export(results, "cvat", tmp_path)
    dataset = tool("datumaro").Dataset.import_from(str(folder), "voc_segmentation")
    labels = dataset.categories()[tool("datumaro").AnnotationType.label]
    for item in dataset:
        result = results[int(item.id)]
        found: dict[str, np.ndarray] = {}
        for one in item.annotations:
            name = labels[one.label].name
            found[name] = found.get(name, np.zeros(SIZE, bool)) | (one.image > 0)
        found.pop("background", None)
        assert found.keys() == truth(result).keys()
        for name, mask in truth(result).items():
            np.testing.assert_array_equal(found[name], mask)


def test_pixels_without_a_name_have_a_label_of_their_own_in_cvat() -> None:
    for names, blank in (
        (("cat",), "background"),
        (("background", "cat"), "no background"),
        (("background", "no background"), "no no background"),
    ):
        lines = label_map_text(names).splitlines()[1:]
        assert lines[0] == f"{blank}:0,0,0::"  # black, as in the pictures
        assert [line.split(":")[0] for line in lines[1:]] == list(names)


def test_every_name_has_a_color_of_its_own_in_cvat() -> None:
    colors = label_colors([str(i) for i in range(2000)])
    assert len(np.unique(colors, axis=0)) == 2000 and colors.any(axis=1).all()


def test_geojson(results: list[ImageResult], tmp_path: Path) -> None:
    folder = export(results, "polygons", tmp_path)
    for index, result in enumerate(results):
        content = json.loads((folder / f"{index}.geojson").read_text("utf-8"))
        assert {f["properties"]["name"] for f in content["features"]} == set(truth(result))
        for feature in content["features"]:
            mask = truth(result)[feature["properties"]["name"]]
            area = 0.0
            for polygon in feature["geometry"]["coordinates"]:
                for ring in polygon:
                    assert ring[0] == ring[-1]
                    x, y = np.array(ring, float).T
                    area += (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2
            assert abs(area) == mask.sum()
        ring = next(f for f in content["features"] if f["properties"]["name"] == "ring")
        assert len(ring["geometry"]["coordinates"][0]) == 2  # the outline and the hole


def test_geojson_on_a_map(results: list[ImageResult]) -> None:
    content = feature_collection(
        results[0], to_map=lambda x, y: (500 + 2 * x, 900 - 2 * y), crs="EPSG:32633"
    )
    sky = next(f for f in content["features"] if f["properties"]["name"] == "sky")
    corners = {tuple(point) for point in sky["geometry"]["coordinates"][0][0]}
    assert corners == {(500, 900), (660, 900), (660, 860), (500, 860)}
    assert content["crs"]["properties"]["name"] == "EPSG:32633"


def test_yolo_for_readers_that_cut(results: list[ImageResult], tmp_path: Path) -> None:
    """Other readers cast to integers before they fill the polygon."""
    folder = export(results, "yolo", tmp_path)
    for index, result in enumerate(results):
        found = {name: np.zeros(SIZE, np.uint8) for name in truth(result)}
        for line in (folder / "labels" / f"{index}.txt").read_text().splitlines():
            label, *values = line.split()
            points = (np.reshape(np.array(values, float), (-1, 2)) * SIZE[::-1]).astype(np.int32)
            cv2.fillPoly(found[NAMES[int(label)]], [points], 1)
        for name, mask in truth(result).items():
            assert iou(found[name] > 0, mask) >= 0.99


def test_masks_and_cutouts(results: list[ImageResult], tmp_path: Path) -> None:
    folder = export(results, "masks", tmp_path)
    for index, result in enumerate(results):
        for region in result.regions:
            mask = np.array(
                Image.open(folder / str(index) / f"{region.index:03d}_{region.name}.png")
            )
            np.testing.assert_array_equal(mask, region.mask * np.uint8(255))
    cut = Image.open(export(results, "cutouts", tmp_path) / "1" / "001_ring.png")
    assert cut.mode == "RGBA" and cut.size == (25, 25)
    original = np.array(Image.open(results[1].image))[25:50, 5:30]
    np.testing.assert_array_equal(np.array(cut)[..., :3], original)
    np.testing.assert_array_equal(np.array(cut)[..., 3] > 0, truth(results[1])["ring"][25:50, 5:30])


def test_csv(results: list[ImageResult], tmp_path: Path) -> None:
    with export(results, "csv", tmp_path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and rows[0]["name"] == "sky" and rows[0]["pixels"] == "1600"
    assert float(rows[0]["share"]) == pytest.approx(1600 / 4800) and rows[0]["score"] == "0.75"


# --- the command, and bad input


def test_the_command_exports_what_predict_wrote(tmp_path: Path, capsys) -> None:
    from openvocab.formats.run_length import encode_labels

    labels = label_map()
    for stem in ("a/x", "b/x"):
        image = tmp_path / "in" / f"{stem}.png"
        image.parent.mkdir(parents=True)
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(image)
        segments = [
            {"index": i, "name": NAMES[i], "area": 0.1, "rle": code}
            for i, code in encode_labels(labels).items()
        ]
        content = {"image": str(image), "size": SIZE, "names": NAMES, "segments": segments}
        path = tmp_path / "results" / f"{stem}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    assert main([str(tmp_path / "results"), "--format", *FORMATS]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(FORMATS)
    # Folders are flattened without losing an image.
    assert len(list((tmp_path / "results" / "yolo" / "images").iterdir())) == 2
    assert len(json.loads((tmp_path / "results" / "coco.json").read_text())["images"]) == 2
    # What an export wrote is not taken for a result by the next one.
    assert main([str(tmp_path / "results"), "--format", "coco"]) == 0
    assert len(json.loads((tmp_path / "results" / "coco.json").read_text())["images"]) == 2


def test_what_cannot_be_exported_is_one_sentence(
    results: list[ImageResult], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="there is no format 'voc'; give one of coco"):
        export(results, "voc", tmp_path)
    other = ImageResult("y.png", (2, 2), ("cat",), (), "y")
    with pytest.raises(InputError, match=r"'y.png' was segmented with other names"):
        write_coco([*results, other], io.StringIO())
    with pytest.raises(InputError, match=r"the image 'y.png' is not there"):
        export([other], "yolo", tmp_path)
    with pytest.raises(InputError, match="cannot hold the name 'a:b'"):
        export([ImageResult("y.png", (2, 2), ("a:b",), (), "y")], "cvat", tmp_path)
    with pytest.raises(InputError, match="holds no results as JSON"):
        list(read_results(tmp_path))
    (tmp_path / "bad.json").write_text('{"image": 1, "size": [1], "names": 3, "segments": [1]}')
    with pytest.raises(InputError, match=r"bad.json' is no result of predict"):
        list(read_results(tmp_path))
