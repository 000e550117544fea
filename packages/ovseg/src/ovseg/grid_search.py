"""The search of `ovseg.search_ensemble`: the networks run once, then every setting is scored.

Scores are taken at every fourth pixel in each direction, where they equal those of the full
evaluation up to the rounding of the stored masks (16 bit).

Source: SPEC ovseg 11.4, search_thr_ensemble_w.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from openvocab.datasets.label_check import check_labels, check_same_size
from openvocab.datasets.samples import Sample
from openvocab.errors import InputError, import_extra
from openvocab.evaluation.augmentation import labels_of_scores
from openvocab.evaluation.run import SampleSet, sample_set
from openvocab.files import atomic_path, sha256_of, write_text
from openvocab.image import read_image
from openvocab.metrics.scores import ConfusionMatrix, scores
from openvocab.reading.array_files import read_arrays
from openvocab.semantic import bilinear_matrix
from openvocab.vocabulary import Vocabulary
from ovseg.ensemble import Branches, ensemble
from ovseg.mask_clip import LOGIT_SCALE
from ovseg.model import mask_probability
from ovseg.options import load_from_arguments
from ovseg.segmenter import OVSegSegmenter


@dataclass(frozen=True)
class StoredImage:
    """The predictions of both branches for one image, at the sampled pixels.

    Attributes:
        masks: mask probabilities at the N sampled pixels (Q, N), float16.
        truth: ground truth there (N,).
        class_prob: MaskFormer's class probabilities (Q, W).
        clip_prob: CLIP's class probabilities (V, W), for each threshold.
        valid: the proposals with foreground (T, Q), for each of T thresholds.
    """

    masks: Tensor
    truth: NDArray[np.int64]
    class_prob: Tensor
    clip_prob: tuple[Tensor, ...]
    valid: Tensor

    def save(self, path: Path) -> None:
        """Write the image's file, atomically."""
        arrays: dict[str, Any] = {
            "masks": self.masks.numpy(),
            "truth": self.truth,
            "class_prob": self.class_prob.numpy(),
            "valid": self.valid.numpy(),
        }
        arrays |= {f"clip_prob_{i}": p.numpy() for i, p in enumerate(self.clip_prob)}
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> StoredImage:
        """Read an image's file.

        Raises:
            InputError: it is damaged.
        """
        data = read_arrays(path, "file of the search's cache")
        try:
            valid = torch.from_numpy(data["valid"])
            return cls(
                torch.from_numpy(data["masks"]),
                data["truth"],
                torch.from_numpy(data["class_prob"]),
                tuple(torch.from_numpy(data[f"clip_prob_{i}"]) for i in range(len(valid))),
                valid,
            )
        except KeyError as error:
            raise InputError(
                f"{path} has no array {error}; delete it, so that it is made anew"
            ) from None


@torch.inference_mode()
def look_at_image(
    segmenter: OVSegSegmenter,
    image: NDArray[np.uint8],
    truth: NDArray[np.int64],
    vocabulary: Vocabulary,
    thresholds: Sequence[float],
    stride: int,
) -> StoredImage:
    """Run MaskFormer once and CLIP once for each threshold.

    Args:
        segmenter: the model.
        image: (H, W, 3).
        truth: (H, W).
        vocabulary: the names.
        thresholds: mask thresholds.
        stride: score every so many pixels in each direction.
    """
    resized = segmenter.resize(image)
    plain = replace(segmenter.inference, clip_ensemble=False)
    found = segmenter.with_inference(plain).look(resized, vocabulary)
    mask_prob = mask_probability(found.mask_logits, found.padded, found.size)
    adapter = segmenter.model.clip_adapter
    tensor = torch.from_numpy(resized).permute(2, 0, 1).to(mask_prob.device)
    names = segmenter.classifier(vocabulary)[:-1]
    clip_prob, valid = [], []
    for threshold in thresholds:
        adapter.region = replace(segmenter.inference.region, mask_threshold=threshold)
        features, kept = adapter.encode_proposals(tensor, mask_prob)
        clip_prob.append((LOGIT_SCALE * features @ names.T).softmax(-1).cpu())
        valid.append(kept.cpu())
    rows, columns = (
        bilinear_matrix(mask_prob.shape[1 + axis], truth.shape[axis])[::stride].to(mask_prob)
        for axis in (0, 1)
    )
    sampled = (rows @ mask_prob @ columns.T).flatten(1)  # (Q, N)
    return StoredImage(
        sampled.half().cpu(),
        np.ascontiguousarray(truth[::stride, ::stride]).reshape(-1).astype(np.int64),
        found.branches.class_prob.cpu(),
        tuple(clip_prob),
        torch.stack(valid),
    )


def score_setting(
    images: Sequence[Path], vocabulary: Vocabulary, data: SampleSet, threshold: int, weight: float
) -> float:
    """Return mean IoU in percent (convention "detectron2") of one setting.

    Args:
        images: files of `StoredImage`.
        vocabulary: the names.
        data: tells the void values.
        threshold: index of the threshold.
        weight: ensemble weight, the exponent of CLIP's probabilities.
    """
    counts = ConfusionMatrix(len(vocabulary), data.ignore_index)
    for path in images:
        image = StoredImage.load(path)
        branches = Branches(image.class_prob, image.clip_prob[threshold], image.valid[threshold])
        votes = ensemble(branches, weight)
        words = votes.weights.T @ image.masks[votes.rows].float()  # (W, N)
        labels = labels_of_scores(words[:, None], vocabulary)
        counts.update(labels, image.truth[None])
    return scores(counts.matrix, "detectron2").miou


def search(args: argparse.Namespace, options: Mapping[str, Any]) -> None:
    """Score every setting, print the best, and write the grid.

    Args:
        args: parsed arguments of `ovseg.search_ensemble`.
        options: detectron2's keys, from `read_opts`.

    Raises:
        InputError: the data or the weights cannot be used.
    """
    data = sample_set(args)
    check_labels(data, samples=data.samples[: args.limit], progress=True)
    segmenter = load_from_arguments(args, options, defaults={"mode": "eval"})
    files = _store(segmenter, data, data.samples[: args.limit], args)
    table = np.array(
        [
            [score_setting(files, data.vocabulary, data, i, w) for w in args.ensemble_weights]
            for i in tqdm(range(len(args.thresholds)), desc="scoring", unit="threshold")
        ]
    )
    _write(args, table)
    best = np.unravel_index(np.nanargmax(table), table.shape)
    print(
        f"best of {table.size} settings on {len(files)} images: mask threshold "
        f"{args.thresholds[best[0]]:g}, ensemble weight {args.ensemble_weights[best[1]]:g}, mIoU "
        f"{table[best]:.2f}; grid and heat map in {args.output}"
    )


def _store(
    segmenter: OVSegSegmenter,
    data: SampleSet,
    samples: Sequence[Sample],
    args: argparse.Namespace,
) -> list[Path]:
    """Store the missing images; another model or other settings use another folder."""
    known = {
        **segmenter.describe(),
        "names": data.vocabulary.sha256(),
        "templates": data.vocabulary.templates,
        "thresholds": list(args.thresholds),
        "stride": args.stride,
        "label_offset": args.label_offset,
    }
    folder = args.output / "cache"
    key = folder / "key.json"
    text = json.dumps(known, default=str, indent=1)
    if not key.is_file() or key.read_text("utf-8") != text:
        for old in folder.glob("*.npz"):
            old.unlink()
        write_text(key, text)
    files = []
    for index, sample in enumerate(tqdm(samples, desc="looking", unit="image")):
        path = folder / f"{index:06d}-{sha256_of(sample.label)[:16]}.npz"
        if not path.is_file():
            image, truth = read_image(sample.image), data.read_label(sample)
            check_same_size(sample, image, truth)
            stored = look_at_image(
                segmenter, image, truth, data.vocabulary, args.thresholds, args.stride
            )
            stored.save(path)
        files.append(path)
    if not files:
        raise InputError("there are no images to search on; give labelled images")
    return files


def _write(args: argparse.Namespace, table: NDArray[np.float64]) -> None:
    """Write the grid as JSON and CSV, and a heat map."""
    grid = {
        "thresholds": args.thresholds,
        "ensemble_weights": args.ensemble_weights,
        "miou": [[None if np.isnan(v) else v for v in row] for row in table.tolist()],
    }
    write_text(args.output / "grid.json", json.dumps(grid, indent=1) + "\n")
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(["threshold", *args.ensemble_weights])
    writer.writerows([t, *row] for t, row in zip(args.thresholds, table.tolist(), strict=True))
    write_text(args.output / "grid.csv", lines.getvalue())
    _draw(args, table)


def _draw(args: argparse.Namespace, table: NDArray[np.float64]) -> None:
    rows, columns = table.shape
    size = (2 + 0.9 * columns, 1.6 + 0.6 * rows)
    figure = import_extra("matplotlib.figure", "train", "the heat map").Figure(figsize=size)
    axes = figure.subplots()
    picture = axes.imshow(table, aspect="auto")
    axes.set_xticks(range(columns), [f"{w:g}" for w in args.ensemble_weights])
    axes.set_yticks(range(rows), [f"{t:g}" for t in args.thresholds])
    axes.set(xlabel="ensemble weight of CLIP", ylabel="mask threshold", title="mIoU in percent")
    for row in range(rows):
        for column in range(columns):
            axes.text(column, row, f"{table[row, column]:.1f}", ha="center", va="center", color="w")
    figure.colorbar(picture)
    figure.tight_layout()
    with atomic_path(args.output / "grid.png") as temporary:
        figure.savefig(temporary, dpi=150)
