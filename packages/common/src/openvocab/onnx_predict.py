"""Segment photos with an exported SAN, without torch: `python -m openvocab.onnx_predict`.

    python -m openvocab.onnx_predict san_onnx photo.jpg --class-names cat sofa --output results

This needs onnxruntime, NumPy and Pillow only. The graphs hold the two towers of CLIP and the side
adapter. Around them, NumPy and Pillow do what is in no graph: resizing, normalizing and padding the
photo, prompts and their mean for each name, and the label of each pixel from masks and classes.
Only SAN can be exported; OVSeg and CaR cannot.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openvocab.cli import CommandParser, print_warning, run
from openvocab.clip.config import PIXEL_MEAN, PIXEL_STD
from openvocab.clip.plain_tokenizer import PlainTokenizer
from openvocab.errors import InputError, import_extra
from openvocab.files import atomic_paths
from openvocab.formats.run_length import encode_labels
from openvocab.image import ImageArray, ImageSource, list_images, read_image, resize_shortest_edge
from openvocab.reading.files import read_bytes
from openvocab.reading.json_files import read_json_file
from openvocab.vocabulary import Vocabulary, parse_names

IMAGE_GRAPH, TEXT_GRAPH = "image.onnx", "text.onnx"
MERGES, DESCRIPTION = "merges.txt", "description.json"
FORMAT = "san-onnx-1"
_TEXTS_AT_ONCE = 64
_STRIP = 1 << 24  # numbers that the masks and scores of a strip of pixels may take
_MOST_BYTES = 1 << 24
_FEW_NAMES = 255  # a PNG of 8 bits keeps one value for nothing

Floats = NDArray[np.float32]


class OnnxSegmenter:
    """An exported SAN.

    segmenter = OnnxSegmenter("san_onnx")
    labels = segmenter.segment("photo.jpg", ["cat", "sofa"])

    Args:
        folder: what `python -m san.export` wrote.

    Raises:
        InputError: the folder does not hold that, or onnxruntime is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        described = folder / DESCRIPTION
        if not described.is_file():
            raise InputError(
                f"'{folder}' holds no {DESCRIPTION}; give the folder that python -m san.export "
                "wrote"
            )
        self.about: dict[str, Any] = read_json_file(described, "description of an exported SAN")
        if not isinstance(self.about, dict) or self.about.get("format") != FORMAT:
            raise InputError(f"'{described}' is not of the format {FORMAT}; export the SAN anew")
        self._image = _session(folder / IMAGE_GRAPH)
        self._text = _session(folder / TEXT_GRAPH)
        merges = read_bytes(folder / MERGES, "file of the tokenizer", most_bytes=_MOST_BYTES)
        self._tokenizer = PlainTokenizer(merges.decode("utf-8").splitlines())

    def segment(self, image: ImageSource, names: Sequence[str]) -> NDArray[np.int32]:
        """Return the index of the best name at every pixel of an image: (H, W) int32.

        Raises:
            InputError: the image cannot be read, or a name cannot be encoded.
        """
        return self.label(read_image(image), self.class_embeddings(names))

    def class_embeddings(self, names: Sequence[str]) -> Floats:
        """Return the embeddings (K + 1, E) of K names and, last, of "no object"."""
        templates = self.about["templates"]
        prompts = [template.replace("{}", name) for name in names for template in templates]
        unique = list(dict.fromkeys(prompts))
        rows = self._rows(unique)
        parts = [
            self._text.run(None, {"tokens": rows[start : start + _TEXTS_AT_ONCE]})[0]
            for start in range(0, len(unique), _TEXTS_AT_ONCE)
        ]
        each = np.concatenate(parts)[[unique.index(prompt) for prompt in prompts]]
        means = each.reshape(len(names), len(templates), -1).mean(axis=1)
        no_object = np.array([self.about["no_object"]], np.float32)
        classes = _unit(np.concatenate([_unit(means), no_object]))
        return np.asarray(self.about["logit_scale"] * classes, np.float32)

    def label(self, image: ImageArray, class_embeddings: Floats) -> NDArray[np.int32]:
        """Label the pixels of an image (H, W, 3); see `segment`."""
        resized = resize_shortest_edge(image, self.about["short_side"], self.about["max_side"])
        pixels = padded_pixels(resized, self.about["size_divisibility"])
        masks, logits = self._image.run(
            None, {"pixels": pixels, "class_embeddings": class_embeddings}
        )
        probabilities = _softmax(logits[0])[:, :-1]  # (Q, K)
        rows, columns = (
            bilinear_matrix(resized.shape[axis], image.shape[axis])
            @ bilinear_matrix(masks.shape[2 + axis], pixels.shape[2 + axis])[: resized.shape[axis]]
            for axis in (0, 1)
        )
        return best_names(probabilities, masks[0], rows, columns)

    def _rows(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Tokenize texts, and find the rows of a token table that holds a few tokens only."""
        tokens = self._tokenizer.encode(texts, self.about["context_length"])
        if self.about["token_ids"] is None:
            return tokens
        known = np.array(self.about["token_ids"], np.int64)
        rows = np.minimum(np.searchsorted(known, tokens), len(known) - 1)
        unknown = ((known[rows] != tokens) & (tokens != 0)).any(axis=1)
        if unknown.any():
            raise InputError(
                f"the text {texts[int(unknown.argmax())]!r} has a word that this CLIP never "
                "learned; use its own names, or another CLIP"
            )
        return rows


def padded_pixels(image: ImageArray, unit: int) -> Floats:
    """Normalize (h, w, 3) and pad with zeros to a multiple of `unit`: (1, 3, H, W)."""
    mean, std = (255 * np.array(values, np.float32) for values in (PIXEL_MEAN, PIXEL_STD))
    height, width = image.shape[:2]
    padded = np.zeros((1, 3, *(math.ceil(n / unit) * unit for n in (height, width))), np.float32)
    padded[0, :, :height, :width] = ((image.astype(np.float32) - mean) / std).transpose(2, 0, 1)
    return padded


def bilinear_matrix(source: int, target: int) -> Floats:
    """Return the weights (target, source) of bilinear resizing without antialiasing."""
    scale = np.float32(source / target)
    places = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    places = np.clip(places, 0, source - 1)
    distance = np.abs(places[:, None] - np.arange(source, dtype=np.float32))
    weights: Floats = np.maximum(1 - distance, np.float32(0))
    return weights


def best_names(
    probabilities: Floats, masks: Floats, rows: Floats, columns: Floats
) -> NDArray[np.int32]:
    """Find the name with the highest score at every pixel, strip by strip.

    Args:
        probabilities: (Q, K) of each mask's names.
        masks: logits (Q, hs, ws).
        rows: (H, hs) resizes the masks to the image,
        columns: (W, ws) likewise.

    Returns:
        (H, W) indices of names; ties go to the lowest.
    """
    labels = np.empty((len(rows), len(columns)), np.int32)
    widened = masks @ columns.T  # (Q, hs, W)
    step = max(1, _STRIP // (sum(probabilities.shape) * len(columns)))
    for start in range(0, len(rows), step):
        logits = rows[start : start + step] @ widened  # (Q, r, W)
        soft = 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
        scores = probabilities.T @ soft.reshape(len(soft), -1)  # (K, r * W)
        labels[start : start + step] = scores.argmax(axis=0).reshape(logits.shape[1:])
    return labels


def _session(path: Path) -> Any:
    runtime = import_extra("onnxruntime", "onnx", "running an exported SAN")
    try:
        return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no other base
        raise InputError(
            f"onnxruntime cannot load '{path}' ({error!s:.200}); export the SAN anew"
        ) from error


def _unit(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


def _softmax(logits: Floats) -> Floats:
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True), np.float32)


def _save(
    source: Path, stem: str, labels: NDArray[np.int32], names: Sequence[str], folder: Path,
    colors: Sequence[Sequence[int]],
) -> None:  # fmt: skip
    """Write the label map and the run-length masks of one image, in the form of `predict`."""
    few = len(names) <= _FEW_NAMES
    picture = Image.fromarray(labels.astype(np.uint8 if few else np.uint16))
    if few:
        flat = [channel for color in colors[: len(names)] for channel in color]
        picture.putpalette([*flat, *[0] * (768 - len(flat))])
    codes, counts = encode_labels(labels), np.bincount(labels.ravel(), minlength=len(names))
    found = [
        {"index": i, "name": names[i], "area": int(counts[i]) / labels.size, "rle": codes[i]}
        for i in sorted(codes, key=lambda index: (-counts[index], index))
    ]
    content = {
        "image": str(source),
        "size": list(labels.shape),
        "names": list(names),
        "vocabulary": None,
        "segments": found,
        "method": {"method": "SAN", "runtime": "onnxruntime"},
    }
    targets = [folder / f"{stem}_labels.png", folder / f"{stem}.json"]
    with atomic_paths(targets) as (label_file, json_file):
        picture.save(label_file, "PNG")
        json_file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = CommandParser(
        prog="python -m openvocab.onnx_predict",
        description="Segment photos with a SAN that `python -m san.export` wrote; needs "
        "onnxruntime, NumPy and Pillow, and no torch. Writes a label map and run-length masks as "
        "JSON for each photo. OVSeg and CaR cannot be exported.",
    )
    parser.add_argument("model", type=Path, help="the folder of the exported SAN")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or quoted globs")
    names = parser.add_mutually_exclusive_group(required=True)
    names.add_argument(
        "--class-names",
        nargs="+",
        metavar="NAME",
        help="what to look for; quote names with spaces, or put commas between all names",
    )
    names.add_argument("--names", type=Path, metavar="FILE", help="a file with one name per line")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Segment; 0, or 1 if some images could not be used.

    Raises:
        InputError: the arguments, the exported model or all images cannot be used.
    """
    args = build_parser().parse_args(argv)
    if args.names:
        vocabulary = Vocabulary.from_file(args.names)
    else:
        vocabulary = Vocabulary.from_names(list(parse_names(args.class_names)))
    if vocabulary.synonyms is not None:
        raise InputError(f"'{args.names}' gives synonyms; write one name on each line")
    images = list_images(args.images)
    stems = [path.stem for path in images]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise InputError(f"two images are called '{twice}'; give them to two runs")
    segmenter = OnnxSegmenter(args.model)
    embeddings = segmenter.class_embeddings(vocabulary.names)
    failed = 0
    for path in images:
        try:
            labels = segmenter.label(read_image(path), embeddings)
        except InputError as error:
            print_warning(f"'{path}' is left out: {error}")
            failed += 1
            continue
        _save(path, path.stem, labels, vocabulary.names, args.output, segmenter.about["palette"])
        print(args.output / f"{path.stem}_labels.png")
    if failed == len(images):
        raise InputError("none of the images could be used; see the warnings above")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run(main))
