"""Results as files to download: label map, overlay, JSON, COCO and cut-outs."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openvocab.drawing.overlay import label_shares
from openvocab.files import atomic_path, write_text
from openvocab.formats.run_length import encode_labels
from openvocab.image import ImageArray
from openvocab.segmenter import Segmentation


def write_files(image: ImageArray, result: Segmentation, folder: Path, stem: str) -> list[Path]:
    """Write all files of a result into a folder, and return them.

    Args:
        image: (H, W, 3) uint8, that was segmented.
        result: of this image.
        folder: where to write.
        stem: the beginning of each file's name.
    """
    endings = ("_labels.png", "_overlay.png", ".json", "_coco.json", "_cutouts.zip")
    labels, overlay, plain, coco, cutouts = (folder / f"{stem}{ending}" for ending in endings)
    result.save(labels)
    with atomic_path(overlay) as temporary:
        Image.fromarray(result.overlay(image)).save(temporary)
    result.save(plain)
    write_text(coco, json.dumps(to_coco(result, stem), ensure_ascii=False))
    write_cutouts(image, result, cutouts)
    return [labels, overlay, plain, coco, cutouts]


def label_png(result: Segmentation) -> bytes:
    """Return the label map as the bytes of a PNG, see `Segmentation.save`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "labels.png")
        result.save(path)
        return path.read_bytes()


def to_coco(result: Segmentation, file_name: str) -> dict[str, Any]:
    """Return a result in COCO's format: one annotation for each name, as a run-length mask."""
    height, width = result.labels.shape
    codes = encode_labels(result.labels)
    annotations: list[dict[str, Any]] = []
    for label, _ in label_shares(result.labels):
        rows, columns = np.nonzero(result.labels == label)
        left, top = int(columns.min()), int(rows.min())
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": 1,
                "category_id": label + 1,
                "segmentation": codes[label],
                "area": len(rows),
                "bbox": [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1],
                "iscrowd": 1,
            }
        )
    names = enumerate(result.vocabulary.names, start=1)
    return {
        "images": [{"id": 1, "file_name": file_name, "width": width, "height": height}],
        "categories": [{"id": number, "name": name} for number, name in names],
        "annotations": annotations,
    }


def write_cutouts(image: ImageArray, result: Segmentation, path: Path) -> None:
    """Write a zip with what each name won, cut out of the picture, transparent around it."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for label, _ in label_shares(result.labels):
            inside = result.labels == label
            rows, columns = np.nonzero(inside)
            box = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
            alpha = np.where(inside[box], np.uint8(255), np.uint8(0))
            stream = io.BytesIO()
            Image.fromarray(np.dstack([image[box], alpha])).save(stream, "PNG")
            name = f"{label}_{_safe(result.vocabulary.names[label])}.png"
            archive.writestr(name, stream.getvalue())


def _safe(name: str) -> str:
    """Return a name as part of a file's name on any system."""
    kept = "".join(letter if letter.isalnum() or letter in " -_" else "_" for letter in name)
    return kept.strip()[:60] or "name"
