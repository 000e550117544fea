"""The papers' rows: trees as they lie on disks, and published numbers where they belong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import run_all
from benchmarks.quality.published import published
from benchmarks.reporting.report import read_page
from PIL import Image

from car.config import CaRConfig
from openvocab.datasets.catalog import CATALOG
from openvocab.metrics.scores import CONVENTIONS
from ovseg import OVSeg, OVSegSegmenter, load_published
from san import SAN, SANSegmenter, san_vit_b_16, san_vit_large_14

SETS = ("ade20k-150", "pascal-context-459")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Both sets in the layouts of detectron2 and OVSeg, two images each."""
    folder, random = tmp_path_factory.mktemp("datasets"), np.random.default_rng(0)
    for name in SETS:
        layout = CATALOG[name].layouts[0]
        below = folder / layout.roots[0]
        images, labels = (below / layout.fill(x, "val") for x in (layout.images, layout.labels))
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        kind = np.uint16 if layout.label_end == ".tif" else np.uint8
        for stem in ("first", "second"):
            pixels = random.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / f"{stem}.jpg")
            truth = np.full((48, 64), np.iinfo(kind).max, kind)
            truth[8:] = random.integers(0, len(CATALOG[name].vocabulary_of(layout)), (40, 64))
            Image.fromarray(truth).save(labels / f"{stem}{layout.label_end}")
    return folder


@pytest.fixture(scope="module")
def finished(checkpoints, root, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("papers") / "out"
    words = ["--models", "san", "--weights", f"san={checkpoints['san']}", "--datasets", *SETS]
    words += ["--data-root", str(root), "--output", str(output), "--no-structure"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENVOCAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert run_all.main(words) == 0
    return output


def test_both_sets_are_scored_by_all_conventions(finished) -> None:
    sets = {data["slug"]: data for data in read_page(finished)["sets"]}
    assert sets.keys() == set(SETS)
    for data in sets.values():
        assert [row["convention"] for row in data["rows"]] == list(CONVENTIONS)
        assert all(0 <= row["low"] <= row["miou"] <= row["high"] for row in data["rows"])
        assert data["n_images"] == 2 and data["seen"]["classes"] < data["classes"]
    glance = read_page(finished)["glance"]
    assert [row["slug"] for row in glance] == sorted(SETS)
    for row in glance:
        assert row["miou"] == {"san": sets[row["slug"]]["scores"]["san"]["all"]}


def test_nothing_published_stands_beside_another_protocol(finished) -> None:
    page, text = ((finished / f"report.{kind}").read_text() for kind in ("html", "md"))
    for data in read_page(finished)["sets"]:
        assert not any(row["published"] for row in data["rows"])
        assert {row["method"] for row in data["published_apart"]} == {"SAN"}
    for said in ("it is on 2,000 images, and ours on 2", "it is on 5,104 or 5,105 images"):
        assert said in page and said in text


def test_architectures_are_named_as_cards_name_them() -> None:
    named = {
        f"{row['method']}, {row['variant']}": row["architecture"]
        for method in ("san", "ovseg", "car")
        for row in published(method)
    }
    with torch.device("meta"):  # names need no weights
        for title, config in {"B/16": san_vit_b_16(), "L/14": san_vit_large_14()}.items():
            segmenter = SANSegmenter(SAN(config), device="meta", cache_dir=False)
            assert segmenter.describe()["variant"] == named[f"SAN, CLIP ViT-{title}"]
        for title, name in {
            "Swin-B, CLIP ViT-L/14": "ovseg_swinB_vitL_bs32_120k",
            "R-101c, CLIP ViT-B/16": "ovseg_R101c_vitB_bs32_120k",
        }.items():
            config, inference = load_published(name)  # type: ignore[assignment]
            proposer = OVSegSegmenter(OVSeg(config), inference, device="meta", cache_dir=False)
            assert proposer.describe()["variant"] == named[f"OVSeg, {title}"]
    clips = CaRConfig()
    assert named["CaR, ViT-B/16 and ViT-L/14, CRF"] == (
        f"proposals {clips.clip}, classifier {clips.classifier_clip}"
    )
