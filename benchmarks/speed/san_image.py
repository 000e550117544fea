"""Measures SAN's speed and memory: shares, ratios and utilisation, all in one run.

`python benchmarks/speed/san_image.py --output benchmarks/measured/speed_san.json` runs SAN ViT-B/16
at random weights on a 640 x 640 picture and compares with a plain 4096^3 matrix product of the same
run. OVSeg and CaR have `ovseg_image.py` and `car_image.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import (
    add_measuring_arguments,
    best_times,
    conditions,
    count_flops,
    in_fresh_process,
    matrix_product,
    matrix_throughput,
    report,
)
from benchmarks.speed.known_texts import know_names
from openvocab.cli import CommandParser, run
from openvocab.computation import Precision, add_device_argument, choose_device, dtype_of
from openvocab.semantic import MaskGeometry, semantic_labels, semantic_scores
from openvocab.vocabulary import Vocabulary
from san import SAN, SANPrediction, SANSegmenter, san_vit_b_16

SIDE = 640


class DecidedSAN(SAN):
    """Computes all that SAN computes, then answers as a trained one might.

    Untrained, all queries predict the same faint mask and one name wins everywhere, which would
    flatter every step behind the network. So the prediction is replaced by smooth, decided masks
    and peaked class logits, the same for the same sizes.
    """

    def forward(
        self, images: torch.Tensor, class_embeddings: torch.Tensor, *, all_layers: bool = False
    ) -> list[SANPrediction]:
        """Run the network, and return a decided prediction of the same shapes."""
        real = super().forward(images, class_embeddings, all_layers=all_layers)[-1]
        generator = torch.Generator().manual_seed(0)
        height, width = real.mask_logits.shape[2:]
        classes = 5 * torch.randn(real.class_logits.shape, generator=generator)
        return [
            SANPrediction(
                classes.to(real.class_logits.device),
                decided_masks(real.mask_logits.shape[1], (height, width))
                .to(real.mask_logits.device)
                .expand_as(real.mask_logits)
                .contiguous(),
            )
        ]


def decided_masks(queries: int, grid: tuple[int, int]) -> torch.Tensor:
    """Return mask logits (Q, h, w) that are smooth and mostly far from zero, most of them off."""
    generator = torch.Generator().manual_seed(0)
    coarse = 6 * torch.randn(1, queries, 5, 5, generator=generator) - 3
    return torch.nn.functional.interpolate(coarse, grid, mode="bicubic")[0]


def random_san() -> SAN:
    """Return SAN ViT-B/16 with random weights."""
    torch.manual_seed(0)
    return DecidedSAN(san_vit_b_16()).eval().requires_grad_(False)


def picture(height: int = SIDE, width: int | None = None) -> np.ndarray:
    """Return a smooth random picture (height, width, 3), a square without a width."""
    width = height if width is None else width
    generator = np.random.default_rng(0)
    coarse = torch.from_numpy(generator.uniform(0, 255, (1, 3, 12, 12)))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return fine[0].clamp(0, 255).permute(1, 2, 0).to(torch.uint8).numpy()


def cached_text(segmenter: SANSegmenter, count: int) -> Vocabulary:
    """Return a vocabulary of `count` names whose embeddings are random and already there."""
    vocabulary = Vocabulary(tuple(f"name {index}" for index in range(count)))
    width = segmenter.config.clip.embed_dim
    table = torch.nn.functional.normalize(torch.randn(count, width), dim=-1)
    know_names(segmenter.text, lambda *shape: table)
    return vocabulary


def measure_network(repeats: int, device: str = "cpu") -> dict[str, Any]:
    """Measure the network at 150 names: utilisation, stages, batch of four."""
    network = random_san().to(device)
    pixels = torch.randn(1, 3, SIDE, SIDE).to(device)
    classes = torch.randn(151, network.config.clip.embed_dim).to(device)
    flops = count_flops(lambda: network(pixels, classes))
    four = pixels.repeat(4, 1, 1, 1)
    with torch.inference_mode():
        times = best_times(
            {
                "product": matrix_product(device=device),
                "network": lambda: network(pixels, classes),
                "four": lambda: network(four, classes),
            },
            repeats,
            device,
        )
    peak = matrix_throughput(times["product"])
    return {
        "gflop_per_image": flops / 1e9,
        "utilisation": flops / times["network"] / peak,
        "batch_of_4_per_image": times["four"] / 4 / times["network"],
        "seconds": times,
    }


def measure_labels(repeats: int, device: str = "cpu") -> dict[str, Any]:
    """Measure the step from masks to labels on smooth masks, against the network's time."""
    masks = decided_masks(100, (SIDE // 16, SIDE // 16)).to(device)
    geometry = MaskGeometry((SIDE, SIDE), (SIDE, SIDE), (SIDE, SIDE))
    network = random_san().to(device)
    pixels, classes = torch.randn(1, 3, SIDE, SIDE).to(device), torch.randn(151, 512).to(device)
    prob = {k: (5 * torch.randn(100, k + 1)).softmax(-1)[:, :-1].to(device) for k in (20, 150, 847)}
    with torch.inference_mode():
        times = best_times(
            {
                "network": lambda: network(pixels, classes),
                **{
                    f"labels_{k}": partial(semantic_labels, p, masks, geometry)
                    for k, p in prob.items()
                },
                "full_volume_150": lambda: semantic_scores(prob[150], masks, geometry).argmax(0),
            },
            repeats,
            device,
        )
    streamed = semantic_labels(prob[150], masks, geometry)
    full = semantic_scores(prob[150], masks, geometry).argmax(0)
    network_time = times["network"]
    return {
        "share_of_image_150": times["labels_150"] / (times["labels_150"] + network_time),
        "latency_847_over_20": (network_time + times["labels_847"])
        / (network_time + times["labels_20"]),
        "streamed_over_full_volume": times["labels_150"] / times["full_volume_150"],
        "label_agreement": (streamed == full).double().mean().item(),
        "seconds": times,
    }


def spread_san() -> SAN:
    """Return a random SAN whose queries differ in mask and meaning, as those of a trained one."""
    torch.manual_seed(0)
    network = SAN(san_vit_b_16()).eval().requires_grad_(False)
    decoder = network.side_adapter.mask_decoder
    network.side_adapter.query_embed.mul_(100)
    network.clip.logit_scale.fill_(math.log(100))
    for layer in (*decoder.query_mlp.layers, *decoder.pix_mlp.layers):
        layer.weight.mul_(1.4)
    assert decoder.bias_scaling is not None
    decoder.bias_scaling.weight.fill_(5)
    return network


@torch.inference_mode()
def names_of_queries(network: SAN, image: np.ndarray, count: int) -> torch.Tensor:
    """Return text embeddings (count, E) near those of the masks, so that many names win."""
    pixels = network.preprocess([torch.from_numpy(image).permute(2, 0, 1)])
    embeddings = network(pixels, torch.eye(network.config.clip.embed_dim))[-1].class_logits[0]
    apart = embeddings - embeddings.mean(dim=0)
    return torch.nn.functional.normalize(apart[torch.arange(count) % len(apart)], dim=-1)


def measure_precision(
    fewer_bits: Sequence[Precision], repeats: int, *, compiled: bool, device: str = "cpu"
) -> dict[str, Any]:
    """Measure whole images in fewer bits, and compiled, against fp32, and compare the labels."""
    dtypes = {name: dtype_of(name) for name in fewer_bits}
    image = picture()
    table = names_of_queries(spread_san(), image, 150).to(device)
    vocabulary = Vocabulary(tuple(f"name {index}" for index in range(150)))
    segmenters: dict[str, SANSegmenter] = {}
    works: dict[str, Callable[[], object]] = {"product_fp32": matrix_product(device=device)}
    precisions: tuple[Precision, ...] = ("fp32", *fewer_bits)
    for name in precisions:
        segmenters[name] = SANSegmenter(
            spread_san(), device=device, precision=name, cache_dir=False
        )
        know_names(segmenters[name].text, lambda *shape: table)
        works[name] = partial(segmenters[name].segment, image, vocabulary)
    if compiled:
        segmenters["compiled"] = SANSegmenter(
            spread_san(), device=device, compile=True, cache_dir=False
        )
        know_names(segmenters["compiled"].text, lambda *shape: table)
        works["compiled"] = lambda: segmenters["compiled"].segment(image, vocabulary)
    works |= {f"product_{name}": matrix_product(dtype, device) for name, dtype in dtypes.items()}
    times = best_times(works, repeats, device)
    labels = {name: s.segment(image, vocabulary).labels for name, s in segmenters.items()}
    return {
        "names_found_fp32": len(np.unique(labels["fp32"])),
        **{
            name: {
                "time_over_fp32": times[name] / times["fp32"],
                "label_agreement": float((labels[name] == labels["fp32"]).mean()),
            }
            for name in segmenters
            if name != "fp32"
        },
        "product_over_fp32": {
            name: times[f"product_{name}"] / times["product_fp32"] for name in fewer_bits
        },
    }


def segment_large(names: int, height: int, width: int) -> dict[str, Any]:
    """Segment one large picture with many names; run in a process of its own for its memory."""
    segmenter = SANSegmenter(random_san(), cache_dir=False)
    result = segmenter.segment(picture(height, width), cached_text(segmenter, names))
    return {"names": names, "height": height, "width": width, "names_found": len(result.areas())}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = CommandParser(description=__doc__.split("\n\n")[0])
    add_measuring_arguments(parser)
    add_device_argument(parser)
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the best counts")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=("bf16", "fp16"),
        default=["bf16", "fp16"],
        help="compared with fp32; without hardware for it a product in fp16 takes minutes",
    )
    parser.add_argument("--large", nargs=3, type=int, metavar=("NAMES", "HEIGHT", "WIDTH"),
                        help="only segment one picture of this size, for its memory")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the JSON."""
    args = build_parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.large:
        print(json.dumps(segment_large(*args.large)))
        return 0
    device = choose_device(args.device)
    result = {
        **conditions(device),
        "network": measure_network(args.repeats, device),
        "labels": measure_labels(args.repeats, device),
        "precision": measure_precision(
            args.precisions, args.repeats, compiled=args.compile, device=device
        ),
        "memory": in_fresh_process(
            "benchmarks.speed.san_image", ["--large", "10000", "1024", "1536"]
        ),
    }
    report(result, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
