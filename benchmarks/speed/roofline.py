"""Measures how fast SAN's stages can be at all: their matrix products alone, and the whole stages.

`python -m benchmarks.speed.roofline --threads 2 --output benchmarks/measured/roofline.json` runs
SAN ViT-B/16 at random weights on 640 x 640 pixels with 150 names. The matrix products, convolutions
and attentions of a stage are run once more with nothing between them. What these alone reach of a
plain 4096^3 product is the most that the stage can reach with products of these shapes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.measuring import (
    FORMULAS,
    FlopCounter,
    add_measuring_arguments,
    best_times,
    conditions,
    matrix_product,
    matrix_throughput,
    report,
)
from benchmarks.speed.formulations import PRECISIONS
from benchmarks.speed.san_image import SIDE, decided_masks
from openvocab.cli import CommandParser, run
from openvocab.computation import add_device_argument, choose_device, dtype_of
from openvocab.semantic import MaskGeometry, semantic_labels
from san.config import SANConfig, san_vit_b_16
from san.model import SAN
from san.recognition import recognize

NAMES = 150
Work = Callable[[], Any]


class ProductRecorder(FlopCounter):  # type: ignore[no-untyped-call]
    """Counts floating-point operations, and remembers the products that make them.

    Attributes:
        products: the products so far; each can be called again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Work] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and remember it if it has a formula."""
        if func.overloadpacket in FORMULAS:
            self.products.append(partial(func, *args, **(kwargs or {})))
        return super().__torch_dispatch__(func, types, args, kwargs)


@torch.inference_mode()
def san_stages(config: SANConfig, side: int, precision: str, device: str) -> dict[str, Work]:
    """Return the stages of SAN on a picture of `side` x `side` pixels, each with its input."""
    torch.manual_seed(0)
    network = SAN(config).eval().requires_grad_(False).to(device)
    for tower in (network.clip.visual, network.side_adapter):
        tower.to(dtype_of(precision))
    pixels = torch.randn(1, 3, side, side).to(device)
    classes = torch.randn(NAMES + 1, config.clip.embed_dim).to(device)
    shallow, tokens, grid = network.clip_features(pixels)
    mask_logits, biases = network.side_adapter(pixels, shallow, grid, all_layers=False)[-1]
    prob = (5 * torch.randn(config.num_queries, NAMES + 1)).softmax(-1)[:, :-1].to(device)
    masks = decided_masks(config.num_queries, tuple(mask_logits.shape[2:])).to(device)
    geometry = MaskGeometry((side, side), (side, side), (side, side))

    def deep() -> torch.Tensor:
        embeddings = recognize(
            network.clip.visual, network.deep_blocks, tokens, grid, biases, config.num_queries
        )
        return embeddings.float() @ classes.T

    return {
        "shallow": lambda: network.clip_features(pixels),
        "side": lambda: network.side_adapter(pixels, shallow, grid, all_layers=False),
        "deep": deep,
        "network": lambda: network(pixels, classes),
        "labels": lambda: semantic_labels(prob, masks, geometry),
    }


@torch.inference_mode()
def measure(stages: dict[str, Work], precision: str, repeats: int, device: str) -> dict[str, Any]:
    """Measure stages and their products alone in turn, against the plain product of the type."""
    works: dict[str, Work] = {"plain": matrix_product(dtype_of(precision), device)}
    flops: dict[str, int] = {}
    for name, stage in stages.items():
        with ProductRecorder() as recorder:
            stage()
        flops[name] = recorder.total
        works |= {name: stage, f"{name} products": partial(_run, recorder.products)}
    seconds = best_times(works, repeats, device)
    peak = matrix_throughput(seconds["plain"])
    rows = {
        name: {
            "gflop": flops[name] / 1e9,
            "seconds": seconds[name],
            "share_of_plain_product": flops[name] / seconds[name] / peak,
            "share_of_products_alone": flops[name] / seconds[f"{name} products"] / peak,
        }
        for name in stages
    }
    return {"plain_gflop_per_second": peak / 1e9, "stages": rows}


def _run(products: list[Work]) -> None:
    for product in products:
        product()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = CommandParser(description=__doc__.split("\n\n")[0])
    add_measuring_arguments(parser)
    add_device_argument(parser)
    parser.add_argument("--repeats", type=int, default=7, help="runs of which the best counts")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the JSON."""
    args = build_parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device, config = choose_device(args.device), san_vit_b_16()
    result: dict[str, Any] = {
        **conditions(device),
        **{
            name: measure(san_stages(config, SIDE, name, device), name, args.repeats, device)
            for name in PRECISIONS
        },
    }
    report(result, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
