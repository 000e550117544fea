"""Large images in tiles, and rasters that keep their place on the earth."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from openvocab import cli
from openvocab.errors import InputError
from openvocab.image import ImageArray, read_label_map
from openvocab.inference.tiles import TiledSegmenter, tiles_of
from openvocab.predict import add_predict_arguments, run_prediction
from openvocab.segmenter import BaseSegmenter, Segmentation
from openvocab.vocabulary import Vocabulary

NAMES = ("--class-names", "red,green,blue")


class Contrast(BaseSegmenter):
    """Labels pixels by channel, brighter than the mean of all that it sees: tiles matter."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []

    def segment_arrays(
        self, images: list[ImageArray], vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        self.sizes += [image.shape for image in images]
        results = []
        for image in images:
            scores = (image - image.mean(axis=(0, 1))).transpose(2, 0, 1).astype(np.float32)
            labels = scores.argmax(axis=0).astype(np.int32)
            results.append(Segmentation(labels, vocabulary, scores if return_scores else None))
        return results

    def describe(self) -> dict[str, Any]:
        return {"method": "contrast"}


def picture(size: tuple[int, int], seed: int = 0) -> ImageArray:
    return np.random.default_rng(seed).integers(1, 256, (*size, 3), dtype=np.uint8)


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 90).flatmap(lambda t: st.tuples(st.just(t), st.integers(0, t // 2))),
)
def test_tiles_cover_every_pixel_once_and_reach_far_enough(
    height: int, width: int, sizes: tuple[int, int]
) -> None:
    tile, overlap = sizes
    covered = np.zeros((height, width), int)
    for one in tiles_of((height, width), tile, overlap):
        covered[one.kept] += 1
        for seen, kept, side in zip(one.seen, one.kept, (height, width), strict=True):
            assert seen.stop - seen.start == min(tile, side)
            assert kept.start - seen.start >= (overlap // 2 if seen.start else 0)
            assert seen.stop - kept.stop >= (overlap // 2 if seen.stop < side else 0)
    assert (covered == 1).all()


def test_inside_a_tile_labels_and_scores_are_those_of_the_tile_alone() -> None:
    image, method = picture((100, 150)), Contrast()
    found = TiledSegmenter(method, 64, 16).segment(image, "red,green,blue", return_scores=True)
    assert set(method.sizes) == {(64, 64, 3)}
    for tile in tiles_of((100, 150), 64, 16):
        alone = Contrast().segment(image[tile.seen], "red,green,blue", return_scores=True)
        np.testing.assert_array_equal(found.labels[tile.kept], alone.labels[tile.inner])
        scores = (found.scores[:, *tile.kept], alone.scores[:, *tile.inner])
        np.testing.assert_array_equal(*scores)
    small = picture((20, 30))
    whole = Contrast().segment(small, "red,green,blue").labels
    tiled = TiledSegmenter(Contrast(), 64, 16).segment(small, "red,green,blue").labels
    np.testing.assert_array_equal(tiled, whole)


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (64, 33), (64, -1)])
def test_tiles_that_make_no_sense(tile: int, overlap: int) -> None:
    with pytest.raises(InputError, match="half the tile"):
        TiledSegmenter(Contrast(), tile, overlap)


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)

    def main(arguments: Sequence[str] | None) -> int:
        parser = argparse.ArgumentParser()
        add_predict_arguments(parser)
        return run_prediction(parser.parse_args(arguments), lambda args: Contrast())

    return lambda *argv: cli.run(main, argv)


def test_the_command_takes_tiles_for_photos(predict: Callable[..., int]) -> None:
    Image.fromarray(picture((100, 150))).save("a.png")
    options = ("--tile", "64", "--overlap", "16")
    assert predict("a.png", *NAMES, *options, "--save", "label") == 0
    expected = TiledSegmenter(Contrast(), 64, 16).segment("a.png", "red,green,blue").labels
    np.testing.assert_array_equal(read_label_map("output/a_labels.png"), expected)


def test_a_raster_keeps_its_place_and_its_gaps(
    predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    rasterio = pytest.importorskip("rasterio")
    rasterize = pytest.importorskip("rasterio.features").rasterize
    image = picture((300, 420))
    image[:, 400:] = 0  # no data here, as at the edge of a satellite's swath
    place = rasterio.transform.from_origin(500_000, 4_100_000, 0.5, 0.5)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 300, "width": 420}
    with rasterio.open(
        "scene.tif", "w", **profile, crs="EPSG:32633", transform=place, nodata=0
    ) as file:
        file.write(image.transpose(2, 0, 1))
    save = ("--save", "label,polygons,csv")
    assert predict("scene.tif", *NAMES, "--tile", "128", "--overlap", "32", *save) == 0
    said = "of a raster in tiles, --save writes only label, polygons, and not csv"
    assert capsys.readouterr().err == said + "\n"
    with rasterio.open("output/scene_labels.tif") as file:
        labels, colors = file.read(1), file.colormap(1)
        assert (file.crs.to_epsg(), file.transform, file.nodata) == (32633, place, 255)
    expected = TiledSegmenter(Contrast(), 128, 32).segment(image, "red,green,blue").labels
    np.testing.assert_array_equal(labels[:, :400], expected[:, :400])
    assert (labels[:, 400:] == 255).all() and colors[0] != colors[1]
    np.testing.assert_array_equal(read_label_map("output/scene_labels.tif"), labels)
    (row,) = json.loads(Path("output/summary.json").read_text())["images"]
    assert row["file"] == "scene.tif" and row["failure"] is None
    shares = {name: (labels == index).mean() for index, name in enumerate(("red", "green", "blue"))}
    assert row["shares"] == pytest.approx({k: v for k, v in shares.items() if v}, abs=1e-6)

    outlines = json.loads(Path("output/polygons/scene.geojson").read_text())
    assert outlines["crs"]["properties"]["name"] == "EPSG:32633"
    shapes = [(one["geometry"], one["properties"]["index"]) for one in outlines["features"]]
    burnt = rasterize(shapes, (300, 420), fill=255, transform=place, dtype="uint8")
    np.testing.assert_array_equal(burnt, labels)
    listed = ["red", "green", "blue"]
    assert all(
        listed[one["properties"]["index"]] == one["properties"]["name"]
        for one in outlines["features"]
    )


@pytest.mark.parametrize(
    ("dtype", "count", "more", "message"),
    [
        ("uint16", 3, (), "gdal_translate"),
        ("uint8", 2, (), "2 bands"),
        ("uint8", 3, ("--min-area", "0.1"), "--min-area"),
        ("uint8", 3, ("--save", "json"), "--save"),
        ("uint8", 3, ("--overlap", "100"), "half the tile"),
    ],
)
def test_rasters_and_options_that_do_not_fit(
    predict: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    dtype: str,
    count: int,
    more: tuple[str, ...],
    message: str,
) -> None:
    rasterio = pytest.importorskip("rasterio")
    profile = {"driver": "GTiff", "dtype": dtype, "count": count, "height": 9, "width": 9}
    with rasterio.open(
        "a.tif", "w", **profile, transform=rasterio.transform.from_origin(0, 9, 1, 1)
    ) as file:
        file.write(np.ones((count, 9, 9), dtype))
    assert predict("a.tif", *NAMES, "--tile", "64", "--overlap", "8", *more) in (1, 2)
    assert message in capsys.readouterr().err
    assert not list(Path().rglob("*_labels.tif"))
