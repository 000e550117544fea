"""Measures SAN against its plain formulation: whole images, and training steps.

`python -m benchmarks.speed.formulations --threads 2 --output benchmarks/measured/formulations.json`
runs SAN ViT-B/16 at random weights on 640 x 640 pixels, and `benchmarks.speed.plain_san` with the
same weights in turn with it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.measuring import add_measuring_arguments, best_times, conditions, report
from benchmarks.speed.gpu import train_once
from benchmarks.speed.plain_san import PlainSAN
from benchmarks.speed.san_image import SIDE, DecidedSAN, cached_text, picture
from benchmarks.speed.training_step import SANParts
from openvocab.cli import CommandParser, run
from openvocab.computation import Precision, add_device_argument, choose_device
from openvocab.image import ImageArray
from openvocab.semantic import MaskGeometry, semantic_scores
from san.config import SANConfig, SANInference, san_vit_b_16
from san.segmenter import SANSegmenter

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


class DecidedPlainSAN(DecidedSAN, PlainSAN):
    """The plain formulation, with the decided prediction that `DecidedSAN` explains."""


class PlainParts(SANParts):
    """The training step of the plain formulation."""

    architecture = PlainSAN


def random_networks(config: SANConfig) -> dict[str, DecidedSAN]:
    """Return a plain network with random weights, and one for each precision that shares them."""
    torch.manual_seed(0)
    networks: dict[str, DecidedSAN] = {"plain": DecidedPlainSAN(config)}
    for precision in PRECISIONS:
        networks[precision] = DecidedSAN(config)
        networks[precision].load_state_dict(networks["plain"].state_dict(), assign=True)
    return networks


@torch.inference_mode()
def plain_labels(network: DecidedSAN, image: ImageArray, classifier: torch.Tensor) -> torch.Tensor:
    """Return the labels (H, W) of an image (H, W, 3) as the best of the scores of all names."""
    pixels = network.preprocess([torch.from_numpy(image).permute(2, 0, 1)])
    prediction = network(pixels, classifier)[-1]
    prob = prediction.class_logits[0].softmax(-1)[:, :-1]  # (Q, K)
    size = (image.shape[0], image.shape[1])
    geometry = MaskGeometry((pixels.shape[2], pixels.shape[3]), size, size)
    return semantic_scores(prob, prediction.mask_logits[0], geometry).argmax(0)


def image_works(
    config: SANConfig, side: int, names: int, device: str
) -> dict[str, Callable[[], Any]]:
    """Return what segments a picture of `side` x `side` pixels with so many names, three ways."""
    networks, image = random_networks(config), picture(side)
    works: dict[str, Callable[[], Any]] = {}
    for name in PRECISIONS:
        segmenter = SANSegmenter(
            networks[name],
            SANInference(short_side=side),
            device=device,
            precision=name,
            cache_dir=False,
        )
        works[name] = partial(segmenter.segment, image, cached_text(segmenter, names))
    plain = networks["plain"].eval().requires_grad_(False).to(device)
    classifier = plain.classifier(torch.randn(names, config.clip.embed_dim, device=device))
    return {"plain": partial(plain_labels, plain, image, classifier), **works}


def measure_images(names: int, repeats: int, device: str) -> dict[str, Any]:
    """Segment a picture with so many names, formulations in turn."""
    return _against_plain(
        best_times(image_works(san_vit_b_16(), SIDE, names, device), repeats, device)
    )


def measure_training(repeats: int, device: str, side: int = SIDE) -> dict[str, Any]:
    """Make training steps of one picture of `side` x `side` pixels, formulations in turn."""
    plain, ours = (parts(1, device=device, side=side) for parts in (PlainParts, SANParts))
    works: dict[str, Callable[[], object]] = {
        "plain": partial(train_once, plain, "fp32", device),
        **{name: partial(train_once, ours, name, device) for name in PRECISIONS},
    }
    return _against_plain(best_times(works, repeats, device))


def _against_plain(seconds: dict[str, float]) -> dict[str, Any]:
    times = {f"{name}_times": seconds["plain"] / seconds[name] for name in PRECISIONS}
    return {"seconds": seconds, **times}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = CommandParser(description=__doc__.split("\n\n")[0])
    add_measuring_arguments(parser)
    add_device_argument(parser)
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the best counts")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the JSON."""
    args = build_parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    result = {
        **conditions(device),
        "side": SIDE,
        "images": {str(names): measure_images(names, args.repeats, device) for names in (20, 150)},
        "training": measure_training(args.repeats, device),
    }
    report(result, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
