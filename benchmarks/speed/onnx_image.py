"""Compares an exported SAN with SAN under torch: labels and speed at full size, in one run.

`python -m benchmarks.speed.onnx_image --output benchmarks/measured/onnx.json` exports SAN ViT-B/16
and ViT-L/14 with random weights, and labels a picture by both with 1, 60 and 847 names. The weights
of the side adapter are enlarged, so that masks differ and many names are found; the names are
random directions. The text graph is compared by the embedding of one name.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import add_measuring_arguments, best_times, report
from benchmarks.speed.known_texts import know_names
from benchmarks.speed.san_image import picture
from openvocab.cli import CommandParser, run
from openvocab.image import ImageArray
from openvocab.onnx_predict import OnnxSegmenter
from openvocab.vocabulary import Vocabulary
from san import SAN, SANConfig, SANInference, SANSegmenter, san_vit_b_16, san_vit_large_14
from san.export import export_san

VARIANTS = {"san_vit_b_16": san_vit_b_16, "san_vit_large_14": san_vit_large_14}
COUNTS = (1, 60, 847)
SIZE = (480, 640)  # of the picture; its short side becomes 640 pixels
_LARGER = 3.0  # than random weights of the side adapter usually are


def random_network(config: SANConfig) -> SAN:
    """Return a SAN with random weights whose masks differ from each other."""
    torch.manual_seed(0)
    network = SAN(config).eval().requires_grad_(False)
    for name, weights in network.side_adapter.named_parameters():
        if weights.ndim > 1 and "pos" not in name:
            weights.mul_(_LARGER)
    return network


def random_names(segmenter: SANSegmenter, count: int) -> Vocabulary:
    """Return a vocabulary whose embeddings are random directions, known without encoding texts."""
    vocabulary = Vocabulary(tuple(f"name {index}" for index in range(count)))
    generator = torch.Generator().manual_seed(count)
    shape = (count, segmenter.config.clip.embed_dim)
    table = torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)
    know_names(segmenter.text, lambda *_: table)
    return vocabulary


def compare(config: SANConfig, image: ImageArray, counts: Sequence[int], repeats: int) -> Any:
    """Export a SAN with random weights and compare labels and times.

    Args:
        config: the architecture.
        image: (H, W, 3) to label.
        counts: numbers of names.
        repeats: of each measurement of time.

    Returns:
        For each number of names: the share of equal labels, how many names were found, and seconds
        for an image by both; and how far the embeddings of one name are apart.
    """
    ours = SANSegmenter(random_network(config), SANInference(), cache_dir=False)
    with tempfile.TemporaryDirectory() as folder:
        export_san(ours.network, ours.inference, Path(folder))
        megabytes = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
        theirs = OnnxSegmenter(folder)
    gc.collect()
    embedding = ours.network.classifier(ours.text.encode_names(["crab"], ours.templates))
    apart = np.abs(theirs.class_embeddings(["crab"]) - embedding.numpy()).max()
    found: dict[str, Any] = {}
    for count in counts:
        names = random_names(ours, count)
        table = ours.text.encode_names(names.words, names.templates)
        classes = ours.network.classifier(table).numpy()
        labels = ours.segment(image, names).labels
        found[str(count)] = {
            "equal": float((labels == theirs.label(image, classes)).mean()),
            "names_found": len(np.unique(labels)),
            "seconds": best_times(
                {
                    "torch": lambda names=names: ours.segment(image, names),  # type: ignore[misc]
                    "onnxruntime": lambda classes=classes: theirs.label(image, classes),  # type: ignore[misc]
                },
                repeats,
            ),
        }
    relative = float(apart / np.abs(embedding.numpy()).max())
    return {"megabytes": round(megabytes), "embedding_apart": relative, "names": found}


def table(variants: dict[str, Any]) -> str:
    """Write measurements by variant as a table in Markdown."""
    lines = [
        "| | names | equal labels | time of onnxruntime, torch's is 1 |",
        "|---|---|---|---|",
    ]
    for variant, measured in variants.items():
        for count, found in measured["names"].items():
            seconds = found["seconds"]
            ratio = seconds["onnxruntime"] / seconds["torch"]
            lines.append(f"| {variant} | {count} | {100 * found['equal']:.4f} % | {ratio:.2f} |")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = CommandParser(
        prog="benchmarks.speed.onnx_image",
        description="Compare labels and speed of exported SANs with those under torch.",
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--counts", nargs="+", type=int, default=list(COUNTS), metavar="N",
                        help="numbers of names, each measured alone")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the best counts")
    add_measuring_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report."""
    args = build_parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    image = picture(*SIZE)
    found = {
        name: compare(VARIANTS[name](), image, args.counts, args.repeats) for name in args.variants
    }
    libraries = {name: version(name) for name in ("torch", "onnx", "onnxruntime")}
    result = {
        "image": list(SIZE),
        "threads": torch.get_num_threads(),
        "libraries": libraries,
        "variants": found,
    }
    report(result, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
