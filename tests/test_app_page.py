"""The page in Debian's Chromium, with the world's weights: what is seen is what was computed."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import TOO_WIDE, Browser, start_browser
from PIL import Image
from visit import (
    PHOTO,
    SHOWN,
    choose_all_methods,
    choose_example,
    open_fold,
    open_page,
    open_tab,
    sentence,
)

from openvocab.app.engine import whole
from openvocab.drawing.overlay import palette
from openvocab.formats.run_length import decode_labels, decode_rle
from openvocab.methods import find_method
from openvocab.segmenter import Segmentation
from openvocab.world.names import world_names
from openvocab.world.scenes import scene, visible_labels

NAMES = [name.name for name in world_names()]
SCENES = {index: scene(index, "val") for index in (0, 3)}


def judged(found: Segmentation) -> np.ndarray:
    """Return what thresholds are compared with."""
    return found.certainty() if found.named is None else found.named


def mean_units(found: Segmentation, labels: np.ndarray) -> dict[int, float]:
    """Return the mean confidence of each label, in the whole numbers of the page."""
    units = whole(found.certainty()) / 1000
    return {int(one): float(units[labels == one].mean()) for one in np.unique(labels) if one >= 0}


def asked_for(index: int) -> str:
    """Return names that a scene shows, and one that it does not."""
    shown = [NAMES[label] for label in sorted(visible_labels(SCENES[index].label))]
    return ", ".join([*shown, "penguin"])


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("scenes")
    paths = {index: folder / f"scene{index}.png" for index in SCENES}
    for index, path in paths.items():
        Image.fromarray(SCENES[index].image).save(path)
    return paths


@pytest.fixture(scope="module")
def expected() -> dict[int, Segmentation]:
    """What SAN finds in the scenes without any page."""
    san = find_method("san").load("world")
    return {
        index: san.segment(SCENES[index].image, asked_for(index), return_scores=True)
        for index in SCENES
    }


@pytest.fixture
def browser(tmp_path, app_url) -> Iterator[Browser]:
    found = start_browser(tmp_path / "profile")
    yield found
    said = found.complaints()
    found.close()
    # gradio itself logs warnings when a page is left, and these tests read pixels often.
    assert [one for one in said if not re.search('"(type|level)": "warning"', one)] == []


def give(browser: Browser, picture: Path, names: str) -> None:
    """Upload a picture and type names."""
    browser.upload("#photo input[type=file]", picture)
    browser.wait(f"!!{PHOTO}")
    browser.enter("#names textarea", names)
    browser.settle()


def segment(browser: Browser, url: str, picture: Path, names: str, **screen: Any) -> None:
    """Open the page and have a picture segmented by SAN."""
    open_page(browser, url, **screen)
    give(browser, picture, names)
    browser.click("#segment")
    browser.wait(SHOWN)


def drawn(browser: Browser) -> np.ndarray:
    """Return the pixels of the first overlay, (H, W, 3)."""
    canvas = "document.querySelector('#viewer canvas')"
    height, width = browser.look(f"[{canvas}.height, {canvas}.width]")
    values = browser.look(
        f"Array.from({canvas}.getContext('2d').getImageData(0, 0, {width}, {height}).data)"
    )
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def bare(browser: Browser) -> None:
    """Show plain colors: no edges, nothing of the picture."""
    browser.enter("#viewer .opacity", "100")
    browser.click("#viewer .edges")


def colors_of(labels: np.ndarray, image: np.ndarray, count: int) -> np.ndarray:
    """Paint labels as the viewer does at full opacity."""
    return np.where(labels[..., None] < 0, image, palette(count)[np.maximum(labels, 0)])


def test_the_overlay_is_what_segment_gives(browser, app_url, files, expected) -> None:
    segment(browser, app_url, files[0], asked_for(0))
    bare(browser)
    found, image = expected[0], SCENES[0].image
    count = len(found.vocabulary)
    assert np.array_equal(drawn(browser), colors_of(found.labels, image, count))

    # Hover says the name and score of the pixel below the mouse.
    box = browser.look(
        "(() => { const b = document.querySelector('#viewer canvas').getBoundingClientRect();"
        "return [b.left, b.top, b.width, b.height] })()"
    )
    height, width = found.labels.shape
    column, row = width // 4, height // 4
    scale = min(box[2] / width, box[3] / height)
    left, top = box[0] + (box[2] - scale * width) / 2, box[1] + (box[3] - scale * height) / 2
    browser.point(left + (column + 0.5) * scale, top + (row + 0.5) * scale)
    name = found.vocabulary.names[found.labels[row, column]]
    score = whole(found.certainty())[row, column] / 1000
    said = f"{name}, confidence {score:.2f} (column {column}, row {row})"
    browser.wait(f"document.querySelector('#viewer .said').innerText === {json.dumps(said)}")

    # The arrow keys read pixels as well.
    browser.look("document.querySelector('#viewer canvas').focus()")
    browser.press("ArrowRight")
    step = max(1, width >> 5)
    place = json.dumps(f"(column {column + step}, row {row})")
    browser.wait(f"document.querySelector('#viewer .said').innerText.endsWith({place})")

    # A name that is switched off is not drawn.
    switched = int(found.labels[row, column])
    browser.click(f"#viewer tr:has([data-label='{switched}']) input")
    hidden = np.where(found.labels == switched, -1, found.labels)
    assert np.array_equal(drawn(browser), colors_of(hidden, image, count))
    browser.click(f"#viewer tr:has([data-label='{switched}']) input")

    # The threshold works in the browser, on the numbers from which the server makes files.
    browser.enter("#viewer input.pixel", "0.9")
    below = whole(judged(found)) < 900
    assert 0.05 < below.mean() < 0.95
    kept = np.where(below, -1, found.labels)
    assert np.array_equal(drawn(browser), colors_of(kept, image, count))
    share = browser.look("document.querySelector('#viewer [data-label=\"65535\"]').innerText")
    assert share == f"{100 * below.mean():.1f} %"

    # A name that is uncertain on average goes altogether, and its mean stands in the table.
    means = mean_units(found, kept)
    least = sorted(means.values())[1] + 0.005
    browser.enter("#viewer input.name", f"{least:.2f}")
    dropped = [label for label, mean in means.items() if mean < round(least, 2)]
    assert 0 < len(dropped) < len(means)
    sure = np.where(np.isin(kept, dropped), -1, kept)
    assert np.array_equal(drawn(browser), colors_of(sure, image, count))
    label = max(means, key=means.__getitem__)
    cell = browser.look(f"document.querySelector('#viewer [data-label=\"{label}\"]').innerText")
    assert cell.split("\n")[-1] == f"{means[label]:.2f}"


ENDS = {
    "labels": "san_labels.png",
    "overlay": "san_overlay.png",
    "json": "san.json",
    "coco": "san_coco.json",
    "coco-polygons": "san_coco-polygons.json",
    "csv": "san_csv.csv",
} | {
    name: f"san_{name}.zip"
    for name in ("cvat", "yolo", "labelme", "labelstudio", "masks", "cutouts", "polygons")
}


def test_files_are_what_is_seen(browser, app_url, files, expected) -> None:
    segment(browser, app_url, files[0], asked_for(0))
    browser.enter("#viewer input.pixel", "0.9")
    browser.enter("#viewer input.name", "0.5")
    open_fold(browser, "#files", "#formats input", len(ENDS))
    # One at a time, as a person does.
    while browser.look("document.querySelectorAll('#formats input:not(:checked)').length"):
        browser.click("#formats input:not(:checked)")
        browser.settle()
    browser.click("#make-files")
    links = browser.wait(
        "(() => { const a = [...document.querySelectorAll('#files a[href*=\"/file=\"]')]"
        f".map(a => a.href); return a.length >= {len(ENDS)} ? a : null }})()"
    )
    assert not [link for link in links if tempfile.gettempdir() in link]
    got = {}
    for link in links:
        with urllib.request.urlopen(link) as answer:
            got[link.rsplit("/", 1)[-1]] = answer.read()
    assert set(got) == set(ENDS.values())
    packed = {name: unzipped(data) for name, data in got.items() if name.endswith(".zip")}

    found, image = expected[0], SCENES[0].image
    below = whole(judged(found)) < 900
    labels = np.where(below, -1, found.labels)
    unsure = [label for label, mean in mean_units(found, labels).items() if mean < 0.5]
    labels = np.where(np.isin(labels, unsure), -1, labels)
    there = {int(label): found.vocabulary.names[label] for label in np.unique(labels) if label >= 0}
    stored = np.asarray(Image.open(io.BytesIO(got["san_labels.png"])))
    assert np.array_equal(stored, np.where(labels < 0, 255, labels))
    overlay = Image.open(io.BytesIO(got["san_overlay.png"]))
    assert overlay.size[0] > image.shape[1]
    plain = json.loads(got["san.json"])
    codes = {one["index"]: one["rle"] for one in plain["segments"]}
    assert np.array_equal(decode_labels(codes, labels.shape), labels)
    coco = json.loads(got["san_coco.json"])
    assert [one["file_name"] for one in coco["images"]] == ["photo.png"]
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert {names[one["category_id"]] for one in coco["annotations"]} == set(there.values())
    for one in coco["annotations"]:
        mask = decode_rle(one["segmentation"])
        assert np.array_equal(mask, labels == one["category_id"] - 1)
        assert one["area"] == mask.sum()
        left, top, width, height = one["bbox"]
        assert mask[top : top + height, left : left + width].sum() == mask.sum()
    outlined = json.loads(got["san_coco-polygons.json"])["annotations"]
    assert [one["area"] for one in outlined] == [one["area"] for one in coco["annotations"]]
    rows = list(csv.DictReader(io.StringIO(got["san_csv.csv"].decode())))
    assert {int(row["index"]): int(row["pixels"]) for row in rows} == {
        label: int((labels == label).sum()) for label in there
    }
    assert {row["image"] for row in rows} == {"photo.png"}

    for entry, data in packed["san_cutouts.zip"].items():
        cut = np.asarray(Image.open(io.BytesIO(data)))
        down, right = np.nonzero(labels == int(Path(entry).name.partition("_")[0]))
        assert (cut[..., 3] > 0).sum() == len(down)
        assert np.array_equal(cut[down - down.min(), right - right.min(), :3], image[down, right])
    for entry, data in packed["san_masks.zip"].items():
        mask = np.asarray(Image.open(io.BytesIO(data)))
        assert np.array_equal(mask > 0, labels == int(Path(entry).name.partition("_")[0]))
    assert len(packed["san_cutouts.zip"]) == len(packed["san_masks.zip"]) == len(there)
    for name in ("san_yolo.zip", "san_labelme.zip"):
        (photo,) = (entry for entry in packed[name] if entry.endswith(".png"))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(packed[name][photo]))), image)
    shapes = json.loads(packed["san_labelme.zip"]["photo.json"])["shapes"]
    assert {shape["label"] for shape in shapes} == set(there.values())
    boxes = packed["san_yolo.zip"]["labels/photo.txt"].decode().splitlines()
    assert {int(line.split()[0]) for line in boxes} == set(there)
    (shown,) = (data for name, data in packed["san_cvat.zip"].items() if "Class" in name)
    colors = np.asarray(Image.open(io.BytesIO(shown)))
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) == len(np.unique(labels))
    (task,) = json.loads(packed["san_labelstudio.zip"]["labelstudio.json"])
    assert "labelstudio.xml" in packed["san_labelstudio.zip"] and "photo.png" in json.dumps(task)
    features = json.loads(packed["san_polygons.zip"]["photo.geojson"])["features"]
    assert len(features) >= len(there)


def unzipped(data: bytes) -> dict[str, bytes]:
    """Return the files of an archive by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_all_methods_stand_side_by_side_on_a_phone_in_the_dark(browser, app_url, files) -> None:
    open_page(browser, app_url, width=390, scheme="dark")
    choose_example(browser)
    choose_all_methods(browser)
    browser.click("#segment")
    browser.wait(SHOWN)
    titles = browser.look(
        "[...document.querySelectorAll('#viewer figcaption strong')].map(e => e.innerText)"
    )
    assert titles == ["SAN", "OVSeg", "CaR"]
    assert browser.look(TOO_WIDE) == 0
    assert browser.look("document.body.classList.contains('dark')")
    assert browser.look("[...document.images].every(image => image.alt)")


def test_two_methods_are_compared_and_a_name_is_explained(browser, app_url, files) -> None:
    open_page(browser, app_url)
    give(browser, files[0], asked_for(0) + ", water pig")
    open_tab(browser, 2, "#compare")
    browser.click("#compare")
    browser.wait("!!document.querySelector('#comparison table')")
    text = browser.look("document.querySelector('#comparison').innerText")
    assert "SAN and CaR differ on" in text
    assert browser.look("[...document.querySelectorAll('#comparison img')].every(i => i.alt)")
    browser.click("#why")
    browser.wait("!!document.querySelector('#comparison ul')")
    text = browser.look("document.querySelector('#comparison').innerText")
    assert "“pig” is an umbrella term for “water pig”" in text


def test_all_methods_show_their_steps(browser, app_url, files) -> None:
    open_page(browser, app_url)
    give(browser, files[0], asked_for(0))
    choose_all_methods(browser)
    open_tab(browser, 3, "#teach")
    browser.click("#teach")
    browser.wait("document.querySelectorAll('#steps section').length == 3")
    titles = browser.look("[...document.querySelectorAll('#steps h2')].map(e => e.innerText)")
    assert titles == ["SAN", "OVSeg", "CaR"]
    for number in (1, 2, 3):
        section = f"document.querySelector('#steps section:nth-of-type({number})')"
        assert browser.look(f"{section}.querySelectorAll('h3').length") >= 2
        assert browser.look(f"[...{section}.querySelectorAll('img')].every(i => i.alt)")
        assert browser.look(f"{section}.querySelectorAll('img').length") >= 5
    text = browser.look("document.querySelector('#steps').innerText")
    assert "bias" in text and "crop" in text and "threshold" in text


def test_what_cannot_be_used_gets_a_sentence(browser, app_url, files, tmp_path) -> None:
    open_page(browser, app_url)
    browser.click("#segment")
    assert sentence(browser).startswith("there is no picture; upload one")
    give(browser, files[0], " , ")
    browser.click("#segment")
    assert sentence(browser).startswith("there is no name to look for")
    browser.enter("#names textarea", ", ".join(f"name {number}" for number in range(10_000)))
    browser.click("#segment")
    assert sentence(browser).startswith("there are 10000 names, more than the")
    browser.enter("#names textarea", "dog")
    broken = tmp_path / "broken.png"
    broken.write_bytes(files[0].read_bytes()[:2000])
    browser.upload("#photo input[type=file]", broken)
    browser.wait("document.querySelector('#photo img')?.src.endsWith('broken.png')")
    browser.click("#segment")
    assert "is damaged or cut short" in sentence(browser)


def test_many_and_long_names_stay_readable(browser, app_url, files) -> None:
    names = [" ".join(NAMES[:24]), *(f"{one} {NAMES[0]} {NAMES[1]}" for one in NAMES)]
    names += [f"{one} {NAMES[2]}" for one in NAMES] + NAMES[:29]  # 150 in all
    segment(browser, app_url, files[0], ", ".join(names), width=390)
    assert browser.look(TOO_WIDE) == 0
    listed = browser.look("document.querySelector('#viewer .names').textContent")
    assert len(names) == 150 and all(name in listed for name in names)


def test_two_visitors_at_once_get_their_own(browser, app_url, files, expected, tmp_path) -> None:
    other = start_browser(tmp_path / "other")
    for one, index in ((browser, 0), (other, 3)):
        open_page(one, app_url)
        give(one, files[index], asked_for(index))
    for one in (browser, other):
        one.click("#segment")
    for one, index in ((browser, 0), (other, 3)):
        one.wait(SHOWN)
        bare(one)
        found = expected[index]
        painted = colors_of(found.labels, SCENES[index].image, len(found.vocabulary))
        assert np.array_equal(drawn(one), painted)
    other.close()
