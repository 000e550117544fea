"""Miniature copies of the official archives, in their true folders and file formats."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

# Official names of the Pascal Context numbering, as its labels.txt lists them.
SIZES = ((24, 32), (30, 20), (21, 27))


def save_image(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (size[0] // 4 + 1, size[1] // 4 + 1, 3), dtype=np.uint8)
    pixels = coarse.repeat(4, axis=0).repeat(4, axis=1)[: size[0], : size[1]]
    Image.fromarray(pixels).save(path)


def save_labels(path: Path, labels: np.ndarray, dtype: type = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(dtype)).save(path)


def blocks(values: list[int], size: tuple[int, int], seed: int) -> np.ndarray:
    """A label map of rectangles with the given values, all of them present."""
    rng = np.random.default_rng(seed)
    grid = rng.choice(values, (6, 5))
    grid.ravel()[: len(values)] = values[:30]
    rows = -(-size[0] // 6)
    columns = -(-size[1] // 5)
    return grid.repeat(rows, axis=0).repeat(columns, axis=1)[: size[0], : size[1]]


class Archives:
    """Builds what the official downloads unpack to, below `root`; returns the raw label maps."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def ade(self, per_split: int = 3) -> dict[str, np.ndarray]:
        raw = {}
        for split, short in (("training", "train"), ("validation", "val")):
            for i in range(per_split):
                stem, size = f"ADE_{short}_{i + 1:08d}", SIZES[i % 3]
                raw[stem] = blocks([0, 1, 2, 3 + i, 150], size, i)
                base = self.root / "ADEChallengeData2016"
                save_image(base / "images" / split / f"{stem}.jpg", size, i)
                save_labels(base / "annotations" / split / f"{stem}.png", raw[stem])
        return raw

    def ade_full(self, sizes=((24, 32), (1100, 800), (600, 1300))) -> dict[str, np.ndarray]:
        """Object ids by stem, at full resolution; the RGB files hold instances in blue, too."""
        base, raw = self.root / "ADE20K_2021_17_01", {}
        index: dict[str, Any] = {"folder": [], "filename": []}
        ids = [0, 2978, 312, 2420, 3000, 1]
        for short, long in (("train", "training"), ("val", "validation")):
            for i, size in enumerate(sizes):
                stem = f"ADE_{short}_{i + 1:08d}"
                below = f"ADE20K_2021_17_01/images/ADE/{long}/urban/street"
                folder = self.root / below
                save_image(folder / f"{stem}.jpg", size, i)
                raw[stem] = blocks(ids, size, i)
                coded = np.stack(
                    [raw[stem] // 256 * 10 + i % 3, raw[stem] % 256, np.full(size, 7 * i)], axis=-1
                )
                save_labels(folder / f"{stem}_seg.png", coded)
                index["folder"].append(below)
                index["filename"].append(f"{stem}.jpg")
        index["objectPresence"] = np.zeros((3, len(index["folder"])), dtype=np.uint8)
        (base / "index_ade20k.pkl").write_bytes(pickle.dumps(index))
        return raw

    def voc(self) -> dict[str, np.ndarray]:
        base = self.root / "VOCdevkit/VOC2012"
        raw, lists = {}, {"train": [], "val": [], "trainaug": []}
        for i in range(7):
            stem, size = f"2007_{i:06d}", SIZES[i % 3]
            split = "train" if i < 3 else "val"
            values = [0, 255] if i == 5 else [0, 255, 1 + i, 20]
            raw[stem] = blocks(values, size, i)
            save_image(base / "JPEGImages" / f"{stem}.jpg", size, i)
            for folder in ("SegmentationClass", "SegmentationClassAug"):
                path = base / folder / f"{stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(raw[stem].astype(np.uint8))
                if folder == "SegmentationClass":  # the official files have a palette
                    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
                image.save(path)
            lists[split].append(stem)
        for name, stems in lists.items():
            if stems:
                path = base / "ImageSets/Segmentation" / f"{name}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("\n".join(stems) + "\n")
        (base / "train.txt").write_text("\n".join(lists["train"]) + "\n")
        return raw

    def pascal_context(self, names: tuple[str, ...], wanted=None) -> dict[str, np.ndarray]:
        """LabelMap (1..459, 0 none) by stem; .mat, labels.txt, Detail's JSON and polygons."""
        base = self.root / "VOCdevkit/VOC2010"
        pick = wanted or ["aeroplane", "sky", "grass", "accordion", "table", "unknown"]
        numbers = [names.index(name) + 1 for name in pick]
        raw, lists = {}, {"train": [], "val": []}
        for i in range(5):
            stem, size, split = f"2008_{i:06d}", SIZES[i % 3], "train" if i < 2 else "val"
            # Sky above, grass below: what any photograph has.
            raw[stem] = blocks([0, *numbers], size, i)
            raw[stem][: size[0] // 3], raw[stem][-size[0] // 4 :] = numbers[1], numbers[2]
            save_image(base / "JPEGImages" / f"{stem}.jpg", size, i)
            folder = self.root / "trainval"
            folder.mkdir(exist_ok=True)
            scipy.io.savemat(folder / f"{stem}.mat", {"LabelMap": raw[stem].astype(np.uint16)})
            lists[split].append(stem)
        lines = [f"{number}: {name}" for number, name in enumerate(names, 1)]
        (self.root / "labels.txt").write_text("\n".join(lines) + "\n")
        for split, stems in lists.items():
            (self.root / f"pascalcontext_{split}.txt").write_text("\n".join(stems) + "\n")
        self._context_json(names, raw, lists)
        return raw

    def _context_json(self, names, raw, lists) -> None:
        from openvocab.formats.run_length import encode_rle

        images = [
            {"image_id": i, "file_name": f"{s}.jpg", "height": r.shape[0], "width": r.shape[1]}
            for i, (s, r) in enumerate(raw.items())
        ]
        detail = {
            "images": images,
            "categories": [{"category_id": i, "name": n} for i, n in enumerate(names, 1)],
            "annos_segmentation": [
                {"image_id": i, "category_id": int(v), "segmentation": encode_rle(r == v)}
                for i, r in enumerate(raw.values())
                for v in np.unique(r)
                if v
            ],
        }
        (self.root / "trainval_merged.json").write_text(json.dumps(detail))
        sky, grass = names.index("sky") + 1, names.index("grass") + 1
        for split, stems in lists.items():
            mine = [image for image in images if image["file_name"][:-4] in stems]
            polygons = [
                {"image_id": image["image_id"], "category_id": number, "segmentation": [shape]}
                for image in mine
                for number, shape in (
                    (sky, [0, 0, 40, 0, 40, 9, 0, 9]),
                    (grass, [0, 5, 40, 5, 40, 40, 0, 40]),  # over the sky: file order decides
                )
            ]
            coco = {
                "images": [{**image, "id": image["image_id"]} for image in mine],
                "categories": [{"id": i, "name": n} for i, n in enumerate(names, 1)],
                "annotations": polygons,
            }
            (self.root / f"pascal_context_{split}.json").write_text(json.dumps(coco))

    def coco(self) -> dict[str, np.ndarray]:
        raw = {}
        for split, first in (("train2017", 10), ("val2017", 139)):
            for i in range(3):
                stem, size = f"{first + i:012d}", SIZES[i]
                # person, hole in the numbering (COCO id 12), wood (182), void
                raw[stem] = blocks([255] if i == 2 and first == 10 else [0, 11, 181, 255], size, i)
                save_image(self.root / split / f"{stem}.jpg", size, i)
                save_labels(self.root / "stuffthingmaps" / split / f"{stem}.png", raw[stem])
        return raw

    def cityscapes(self) -> dict[str, np.ndarray]:
        raw = {}
        for split, city in (("train", "aachen"), ("val", "munster"), ("val", "lindau")):
            for i in range(2):
                stem, size = f"{city}_{i:06d}_000019", SIZES[i]
                raw[f"{city}/{stem}"] = blocks([0, 3, 7, 8, 33, 29], size, i)
                image = self.root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
                save_image(image, size, i)
                folder = self.root / "gtFine" / split / city
                save_labels(folder / f"{stem}_gtFine_labelIds.png", raw[f"{city}/{stem}"])
                save_labels(
                    folder / f"{stem}_gtFine_instanceIds.png",
                    raw[f"{city}/{stem}"] * 1000,
                    np.uint16,
                )
        return raw

    def refer(self, folder: str = "refcoco", file: str = "refs(unc).p") -> None:
        """REFER's files: pickles as Python 2 wrote them (protocol 2), masks as polygons and RLE."""
        from openvocab.formats.run_length import encode_rle

        base = self.root / folder
        base.mkdir(parents=True, exist_ok=True)
        square = np.zeros((24, 32), dtype=bool)
        square[4:12, 8:20] = True
        images, annotations, refs = [], [], []
        for i, split in enumerate(("train", "val", "val", "testA", "testB", "test")):
            name = f"COCO_train2014_{i:012d}.jpg"
            save_image(self.root / "train2014" / name, (24, 32), i)
            images.append({"id": i, "file_name": name, "height": 24, "width": 32})
            shape = [[8, 4, 20, 4, 20, 12, 8, 12]] if i % 2 else encode_rle(square)
            annotations.append({"id": 100 + i, "image_id": i, "segmentation": shape})
            many = file.endswith(".json")
            sentences = [
                {"raw": f'The "{w}" man', "sent": w, "tokens": [w]} for w in ("left", "red")
            ]
            refs.append(
                {
                    "ref_id": i,
                    "ann_id": ([-1] if i == 2 else [100 + i]) if many else 100 + i,
                    "image_id": i,
                    "split": split,
                    "sentences": sentences,
                }
            )
        (base / "instances.json").write_text(
            json.dumps({"images": images, "annotations": annotations})
        )
        if file.endswith(".json"):
            (base / file).write_text(json.dumps(refs))
        else:
            (base / file).write_bytes(pickle.dumps(refs, protocol=2))


@pytest.fixture
def archives(tmp_path: Path) -> Archives:
    return Archives(tmp_path / "downloads")


@pytest.fixture
def make_image():
    return save_image


@pytest.fixture
def make_labels():
    return save_labels


@pytest.fixture
def make_blocks():
    return blocks
