"""Large images in tiles, each as if it were an image of its own; and rasters of any size.

Neighbouring tiles overlap, and a pixel takes its label from the tile in which it lies farther from
the edge, where a network sees more of its surroundings.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from openvocab.drawing.overlay import palette
from openvocab.errors import InputError, import_extra
from openvocab.files import atomic_paths
from openvocab.image import ImageArray
from openvocab.inference.progress import Progress
from openvocab.inference.summary import Row, Shares
from openvocab.segmenter import (
    BaseSegmenter,
    Names,
    Segmentation,
    Segmenter,
)
from openvocab.vocabulary import NOTHING_8BIT, NOTHING_16BIT, Vocabulary

RASTER_SUFFIXES = frozenset((".tif", ".tiff"))
RASTER_KINDS = ("label", "polygons")
_BLOCK = 256  # side of the pieces in which a raster of labels is stored


@dataclass(frozen=True)
class Tile:
    """A piece of an image: what the network sees (rows, columns), and what of it is kept."""

    seen: tuple[slice, slice]
    kept: tuple[slice, slice]

    @property
    def inner(self) -> tuple[slice, slice]:
        """The kept part, counted from the corner of the seen part."""
        rows, columns = (
            slice(kept.start - seen.start, kept.stop - seen.start)
            for seen, kept in zip(self.seen, self.kept, strict=True)
        )
        return rows, columns


def tiles_of(size: tuple[int, int], tile: int, overlap: int) -> Iterator[Tile]:
    """Cut an image (height, width) into tiles whose kept parts cover every pixel once.

    Args:
        size: of the image.
        tile: side of a tile; the image where that is smaller.
        overlap: pixels that neighbours share at least.
    """
    rows, columns = (list(_cuts(side, tile, overlap)) for side in size)
    for seen_rows, kept_rows in rows:
        for seen_columns, kept_columns in columns:
            yield Tile((seen_rows, seen_columns), (kept_rows, kept_columns))


def _cuts(side: int, tile: int, overlap: int) -> Iterator[tuple[slice, slice]]:
    last = max(0, side - tile)
    starts = [*range(0, last, tile - overlap), last]
    ends = [min(side, start + tile) for start in starts]
    edges = [(end + start) // 2 for end, start in zip(ends, starts[1:], strict=False)]
    for start, end, low, high in zip(starts, ends, [0, *edges], [*edges, side], strict=True):
        yield slice(start, end), slice(low, high)


def check_tiles(tile: int | None, overlap: int) -> None:
    """Check the sizes of tiles.

    Raises:
        InputError: the overlap is no part of the tile.
    """
    if tile is not None and not (tile >= 1 and 0 <= overlap <= tile // 2):
        raise InputError(
            f"tiles of {tile} pixels cannot overlap by {overlap}; give an overlap from 0 to half "
            "the tile"
        )


class TiledSegmenter(BaseSegmenter):
    """Segments large images tile by tile with another segmenter.

    Args:
        segmenter: the method.
        tile: side of a tile in pixels.
        overlap: pixels that neighbours share at least.
    """

    def __init__(self, segmenter: Segmenter, tile: int, overlap: int) -> None:
        check_tiles(tile, overlap)
        self.segmenter, self.tile, self.overlap = segmenter, tile, overlap
        self.calibrated = bool(getattr(segmenter, "calibrated", False))

    def vocabulary(self, names: Names) -> Vocabulary:
        """Return the vocabulary of names, as the method makes it."""
        if isinstance(self.segmenter, BaseSegmenter):
            return self.segmenter.vocabulary(names)
        return super().vocabulary(names)

    def segment_arrays(
        self, images: list[ImageArray], vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        """Segment every tile as if it were alone, and put the kept parts together."""
        return [self._segment(image, vocabulary, return_scores) for image in images]

    def _segment(
        self, image: ImageArray, vocabulary: Vocabulary, return_scores: bool
    ) -> Segmentation:
        size = (image.shape[0], image.shape[1])
        labels = np.full(size, -1, np.int32)
        scores = np.zeros((len(vocabulary), *size), np.float32) if return_scores else None
        confidence = np.zeros(size, np.float32) if self.calibrated else None
        named = np.zeros(size, np.float32) if self.calibrated else None
        for tile in tiles_of(size, self.tile, self.overlap):
            crop = np.ascontiguousarray(image[tile.seen])
            found = self.segmenter.segment(crop, vocabulary, return_scores=return_scores)
            labels[tile.kept] = found.labels[tile.inner]
            if scores is not None and found.scores is not None:
                scores[(slice(None), *tile.kept)] = found.scores[(slice(None), *tile.inner)]
            if confidence is not None and found.confidence is not None:
                confidence[tile.kept] = found.confidence[tile.inner]
            if named is None or found.named is None:
                named = None  # a method may know how sure its labels are, and nothing more
            else:
                named[tile.kept] = found.named[tile.inner]
        return Segmentation(labels, vocabulary, scores, confidence, named)

    def describe(self) -> dict[str, Any]:
        """Return what decides the labels, with the tiles."""
        return {**self.segmenter.describe(), "tiles": f"{self.tile}, overlap {self.overlap}"}


@dataclass(frozen=True)
class RasterPrediction:
    """A checked order for one GeoTIFF of any size; its result is a GeoTIFF of labels.

    Only a tile is in memory at a time. Georeference and size are kept, and pixels without data in
    the raster have none in the result.

    Attributes:
        path: the raster: 8-bit, grey or with red, green and blue as its first bands.
        folder: of the result, `NAME_labels.tif`.
        vocabulary: the names.
        tile: side of a tile in pixels.
        overlap: pixels that neighbours share at least.
        polygons: also write the outlines of all parts as GeoJSON, `polygons/NAME.geojson`, in the
            coordinates of the raster.
        quiet: print no progress.
    """

    path: Path
    folder: Path
    vocabulary: Vocabulary
    tile: int
    overlap: int
    polygons: bool = False
    quiet: bool = False

    def run(self, segmenter: Segmenter) -> Row:
        """Segment the raster.

        Returns:
            What the summary says about it.

        Raises:
            InputError: it cannot be read, has not 8 bits, or rasterio is not installed.
        """
        rasterio = import_extra("rasterio", "geo", "reading a raster")
        start, shares = time.perf_counter(), Shares()
        try:
            with rasterio.open(self.path) as source:
                self._check(source)
                targets = [self.folder / f"{self.path.stem}_labels.tif"]
                if self.polygons:
                    targets.append(self.folder / "polygons" / f"{self.path.stem}.geojson")
                with atomic_paths(targets) as (labels, *outlines):
                    names = self._write(rasterio, source, labels, segmenter, shares).names
                    for file in outlines:
                        write_outlines(labels, names, file)
        except rasterio.errors.RasterioError as error:
            raise InputError(
                f"'{self.path}' cannot be read as a raster: {error}; convert it to GeoTIFF"
            ) from error
        return shares.row(self.path, time.perf_counter() - start)

    def _check(self, source: Any) -> None:
        kinds = set(source.dtypes[:3])
        if kinds != {"uint8"} or source.count == 2:
            raise InputError(
                f"'{self.path}' has {source.count} bands of {', '.join(sorted(kinds))}, expected "
                "1, 3 or more of uint8; convert it with gdal_translate -ot Byte -scale"
            )

    def _write(
        self, rasterio: Any, source: Any, file: Path, segmenter: Segmenter, shares: Shares
    ) -> Vocabulary:
        if isinstance(segmenter, BaseSegmenter):
            vocabulary = segmenter.vocabulary(self.vocabulary)
        else:
            vocabulary = self.vocabulary
        few = len(vocabulary) <= NOTHING_8BIT
        nothing = NOTHING_8BIT if few else NOTHING_16BIT
        profile = {
            "driver": "GTiff",
            "dtype": "uint8" if few else "uint16",
            "count": 1,
            "height": source.height,
            "width": source.width,
            "crs": source.crs,
            "transform": source.transform,
            "nodata": nothing,
            "compress": "deflate",
            "tiled": True,
            "blockxsize": _BLOCK,
            "blockysize": _BLOCK,
            "BIGTIFF": "IF_SAFER",
        }
        pieces = list(tiles_of((source.height, source.width), self.tile, self.overlap))
        progress = Progress(len(pieces), quiet=self.quiet)
        with rasterio.open(file, "w", **profile) as target:
            if few:
                colors = enumerate(palette(len(vocabulary)).tolist())
                target.write_colormap(1, {index: (*color, 255) for index, color in colors})
            for piece in pieces:
                seen, kept = (
                    rasterio.windows.Window.from_slices(*part) for part in (piece.seen, piece.kept)
                )
                labels = self._labels(source, seen, segmenter, vocabulary)[piece.inner]
                shares.add(Segmentation(labels, vocabulary))
                stored = np.where(labels < 0, nothing, labels).astype(profile["dtype"])
                target.write(stored, 1, window=kept)
                progress.advance()
        progress.close()
        return vocabulary

    def _labels(
        self, source: Any, window: Any, segmenter: Segmenter, vocabulary: Vocabulary
    ) -> npt.NDArray[np.int32]:
        bands = [1, 2, 3] if source.count >= 3 else [1, 1, 1]
        image = np.ascontiguousarray(source.read(bands, window=window).transpose(1, 2, 0))
        missing = source.dataset_mask(window=window) == 0
        if missing.all():
            return np.full(missing.shape, -1, np.int32)
        labels = segmenter.segment(image, vocabulary).labels
        return np.where(missing, np.int32(-1), labels)


def write_outlines(labels: Path, names: Sequence[str], file: Path) -> None:
    """Write the parts of a GeoTIFF of labels as GeoJSON, in its coordinates and one by one.

    Args:
        labels: the GeoTIFF, whose pixels without a name have no data.
        names: of the labels.
        file: to write; it has a polygon with its holes for each connected part.
    """
    rasterio = import_extra("rasterio", "geo", "writing polygons of a raster")
    shapes = import_extra("rasterio.features", "geo", "writing polygons of a raster").shapes
    with rasterio.open(labels) as source, file.open("w", encoding="utf-8") as target:
        crs = {"type": "name", "properties": {"name": str(source.crs)}}
        head = {"type": "FeatureCollection", **({"crs": crs} if source.crs else {})}
        target.write(json.dumps(head)[:-1] + ', "features": [')
        band = rasterio.band(source, 1)
        parts = shapes(band, mask=source.dataset_mask() > 0, transform=source.transform)
        for count, (geometry, label) in enumerate(parts):
            properties = {"name": names[int(label)], "index": int(label)}
            feature = {"type": "Feature", "properties": properties, "geometry": geometry}
            text = json.dumps(feature, ensure_ascii=False)
            target.write((",\n" if count else "\n") + text)
        target.write("\n]}\n")
