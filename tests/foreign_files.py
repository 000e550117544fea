"""Predictions in the formats of other programs, for the tests of all that reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openvocab.formats.detectron2 import PredictedClass, write_predictions
from openvocab.formats.run_length import encode_labels

Labels = Mapping[str, NDArray[Any]]  # label maps (H, W) by the stem of their image


def _pngs(folder: Path, predicted: Labels, end: str = "", dtype: Any = np.uint8) -> Path:
    folder.mkdir()
    for stem, labels in predicted.items():
        Image.fromarray(labels.astype(dtype)).save(folder / f"{stem}{end}.png")
    return folder


def plain(folder: Path, predicted: Labels, names: Sequence[str]) -> Path:
    """Write label maps with 8 bits."""
    return _pngs(folder, predicted)


def sixteen_bit(folder: Path, predicted: Labels, names: Sequence[str]) -> Path:
    """Write label maps with 16 bits."""
    return _pngs(folder, predicted, dtype=np.uint16)


def from_one(folder: Path, predicted: Labels, names: Sequence[str]) -> Path:
    """Write label maps that count from 1, which need the offset -1."""
    return _pngs(folder, {stem: labels + 1 for stem, labels in predicted.items()})


def our_label_maps(folder: Path, predicted: Labels, names: Sequence[str]) -> Path:
    """Write what `openvocab.predict` writes, taken out of its folder."""
    return _pngs(folder, predicted, end="_labels")


def mmsegmentation(folder: Path, predicted: Labels, names: Sequence[str]) -> Path:
    """Write a folder such as mmsegmentation's `--out`, with a palette as its tools add one."""
    folder.mkdir()
    for stem, labels in predicted.items():
        image = Image.fromarray(labels.astype(np.uint8)).convert("P")
        image.putpalette([(37 * place) % 256 for place in range(768)])
        image.save(folder / f"{stem}.png")
    return folder


def score_volumes(folder: Path, predicted: Labels, names: Sequence[str]) -> Path:
    """Write scores (K, H, W), as `.npy` and as `.npz` with one array of two possible names."""
    folder.mkdir()
    for number, (stem, labels) in enumerate(predicted.items()):
        scores = np.eye(len(names), dtype=np.float32)[labels].transpose(2, 0, 1) - 0.5
        if number == 0:
            np.save(folder / f"{stem}.npy", np.asfortranarray(scores))
        else:
            key = "scores" if number == 1 else "probabilities"
            np.savez_compressed(folder / f"{stem}.npz", **{key: scores})
    return folder


def labels_beside_scores(folder: Path, predicted: Labels, names: Sequence[str]) -> Path:
    """Write `.npz` with labels, and with scores that say something else and must not count."""
    folder.mkdir()
    for stem, labels in predicted.items():
        wrong = np.zeros((len(names), *labels.shape), np.float32)
        np.savez(folder / f"{stem}.npz", scores=wrong, labels=labels.astype(np.int32))
    return folder


def detectron2(folder: Path, predicted: Labels, names: Sequence[str]) -> Path:
    """Write detectron2's `sem_seg_predictions.json` with the paths of another machine."""
    path = folder.with_suffix(".json")
    entries = (
        PredictedClass(f"/elsewhere/images/{stem}.jpg", label, code)
        for stem, labels in predicted.items()
        for label, code in encode_labels(labels.astype(np.int32)).items()
    )
    write_predictions(path, entries)
    return path


def panoptic(folder: Path, predicted: Labels, names: Sequence[str], listed: bool = True) -> Path:
    """Write COCO's panoptic format: ids of segments in colors, categories with ids of their own.

    Args:
        folder: gets the PNG files; the JSON lies beside it.
        predicted: label maps.
        names: names of the categories.
        listed: whether the JSON lists the categories; without, their ids are labels.
    """
    path = folder.with_suffix(".json")
    ids = [7 + 293 * k if listed else k for k in range(len(names))]
    annotations = []
    folder.mkdir()
    for stem, labels in predicted.items():
        segments = (labels.astype(np.int64) + 1) * 70_003
        colors = np.stack([segments % 256, segments // 256 % 256, segments // 65536], axis=-1)
        Image.fromarray(colors.astype(np.uint8)).save(folder / f"{stem}.png")
        infos = [{"id": (k + 1) * 70_003, "category_id": ids[k]} for k in range(len(names))]
        annotations.append({"file_name": f"{stem}.png", "segments_info": infos})
    categories = [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)]
    content = {"annotations": annotations, **({"categories": categories} if listed else {})}
    path.write_text(json.dumps(content))
    return path


FORMATS: tuple[Callable[[Path, Labels, Sequence[str]], Path], ...] = (
    plain,
    sixteen_bit,
    from_one,
    our_label_maps,
    mmsegmentation,
    score_volumes,
    labels_beside_scores,
    detectron2,
    panoptic,
)
