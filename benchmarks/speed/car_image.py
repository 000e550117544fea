"""Measures CaR's speed and memory: stages, shares and utilisation, all in one run.

`python benchmarks/speed/car_image.py --output benchmarks/measured/speed_car.json` runs CaR with
CLIP ViT-B/16 and ViT-L/14 at random weights on a 500 x 375 picture with 20 names, and compares the
two CLIPs with a plain 4096^3 matrix product of the same run. No name is dropped, so there are two
full steps; names are embedded beforehand, as in an evaluation. With `--memory 150 3000 4000` the
peak memory of such a photo is measured, too; unlike times, it can be taken on a busy machine, alone
with `--memory-only`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.measuring import (
    add_measuring_arguments,
    best_times,
    count_flops,
    in_fresh_process,
    matrix_product,
    matrix_throughput,
    report,
)
from benchmarks.speed.known_texts import know_names
from car.config import CaRConfig
from car.crf import DenseCRF, add_background, crf_image
from car.recurrence import Recurrence
from car.segmenter import CaRSegmenter
from car.visual_prompts import VisualPrompter
from openvocab.cli import CommandParser, run
from openvocab.clip.model import CLIP
from openvocab.clip.weights import open_clip_config
from openvocab.computation import add_device_argument, choose_device, dtype_of
from openvocab.errors import InputError
from openvocab.reading.json_files import read_json_file

HEIGHT, WIDTH, NAMES = 375, 500, 20


def random_clip(name: str) -> CLIP:
    """Return a CLIP of a known architecture with random weights."""
    torch.manual_seed(0)
    return CLIP(open_clip_config(name, "quick_gelu")).eval().requires_grad_(False)


def random_segmenter(
    precision: str, proposer: str, classifier: str, *, device: str = "cpu", compile: bool = False
) -> CaRSegmenter:
    """Return CaR with random weights that keeps every name, and has all texts at hand."""
    config = CaRConfig(confidence_threshold=0.0, visual_prompt_type=("circle", "blur"))
    segmenter = CaRSegmenter(
        random_clip(proposer).to(device),
        random_clip(classifier).to(device),
        config,
        precision=precision,  # type: ignore[arg-type]
        compile=compile,
        cache_dir=False,
    )
    car = segmenter.car
    for encoder in (car.mask_proposal_generator.text, car.mask_classifier.text):
        know_names(encoder, random_table(encoder.clip.config.embed_dim, device), templates=15)
    return segmenter


def random_table(width: int, device: str = "cpu") -> Callable[..., torch.Tensor]:
    """Return a maker of unit vectors (..., width), the same for the same shape."""

    def make(*shape: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return F.normalize(torch.randn(*shape, width, generator=generator), dim=-1).to(device)

    return make


def picture(height: int, width: int) -> np.ndarray:
    """Return a picture (height, width, 3) with smooth regions, texture and noise."""
    generator = torch.Generator().manual_seed(0)
    image = torch.full((1, 3, height, width), 128.0)
    for cells, strength in ((4, 50), (16, 25), (64, 12)):
        coarse = torch.randn(1, 3, cells, cells, generator=generator) * strength
        image += F.interpolate(coarse, (height, width), mode="bicubic")
    image += 3 * torch.randn(image.shape, generator=generator)
    return image[0].clamp(0, 255).permute(1, 2, 0).to(torch.uint8).numpy()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Time the stages of one step, and the plain product, in turn."""
    device = choose_device(args.device)
    segmenter = random_segmenter(args.precision, args.proposer, args.classifier, device=device)
    car, image = segmenter.car, picture(args.height, args.width)
    generator = car.mask_proposal_generator
    names = generator.text.encode_names([""] * args.names)
    background = generator.text.encode_names([""] * 23)
    features = generator.encode(image)
    maps = generator.propose(features, names, background, 0.4).proposals
    prompted = [VisualPrompter(image, ("circle", "blur"))(mask, 0.5) for mask in maps]
    probability = add_background(maps, 1.0)

    def maps_of_a_new_image() -> object:
        """Compute also what is kept for later steps."""
        new = generator.mean_feature(features.feature.tokens)
        return generator.propose(replace(features, feature=new), names, background, 0.4)

    def prompt() -> None:
        prompter = VisualPrompter(image, ("circle", "blur"))
        for mask in maps:
            prompter(mask, 0.5)

    stages: dict[str, Callable[[], object]] = {
        "trunk": lambda: generator.encode(image),
        "gradients_and_maps": maps_of_a_new_image,
        "prompts": prompt,
        "classifier": lambda: car.mask_classifier.encode(prompted),
        "crf": lambda: DenseCRF(crf_image(image)).marginals(probability),
        "crf_6_labels": lambda: DenseCRF(crf_image(image)).marginals(probability[:6]),
    }
    product = {"product": matrix_product(dtype_of(args.precision), device)}
    times = best_times({**product, **stages}, args.repeats, device)
    peak = matrix_throughput(times["product"])
    flops = {stage: count_flops(stages[stage]) for stage in ("trunk", "classifier")}
    steps = ("gradients_and_maps", "prompts", "classifier")
    total = times["trunk"] + times["crf"] + 2 * sum(times[stage] for stage in steps)
    share = {stage: 2 * times[stage] / total for stage in steps}
    return {
        "matrix_product_gflops": peak / 1e9,
        "seconds": times,
        "two_step_image_seconds": total,
        "share": {"trunk": times["trunk"] / total, **share, "crf": times["crf"] / total},
        "utilisation": {stage: flops[stage] / times[stage] / peak for stage in flops},
        "gflop": {stage: flops[stage] / 1e9 for stage in flops},
        "lattice_points": [lattice.size for _, lattice, _ in DenseCRF(crf_image(image))._terms],
    }


def segment_large(args: argparse.Namespace) -> dict[str, Any]:
    """Segment one large picture with many names; run in a process of its own for its memory."""
    names, height, width = args.large
    segmenter = random_segmenter(
        args.precision, args.proposer, args.classifier, device=choose_device(args.device)
    )
    start = time.perf_counter()
    asked = [f"name {index}" for index in range(names)]
    recurrences: list[Recurrence] = []
    segmenter.on_start = recurrences.append
    with warnings.catch_warnings(record=True) as reductions:
        warnings.simplefilter("always")
        found = segmenter.segment(picture(height, width), asked)
    seconds = time.perf_counter() - start
    result = recurrences[0].result
    assert result is not None  # the image is segmented
    return {
        **{"names": names, "height": height, "width": width, "seconds": seconds},
        **{"proposer": args.proposer, "classifier": args.classifier},
        "warnings": [str(one.message) for one in reductions],
        "names_in_crf": int((result.scores > 0).sum()),
        "names_found": len(found.areas()),
    }


def measure_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Return the peak memory of `segment_large` in a process of its own; its time is left out."""
    options = ["--precision", args.precision, "--proposer", args.proposer]
    options += ["--classifier", args.classifier, "--large", *map(str, args.memory)]
    options += ["--threads", str(torch.get_num_threads()), "--device", args.device]
    found = in_fresh_process("benchmarks.speed.car_image", options)
    found.pop("seconds")
    return found


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = CommandParser(description=__doc__.split("\n\n")[0])
    add_measuring_arguments(parser)
    add_device_argument(parser)
    parser.add_argument("--repeats", type=int, default=2, help="runs of which the best counts")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--names", type=int, default=NAMES)
    parser.add_argument("--height", type=int, default=HEIGHT)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--proposer", default="ViT-B-16", help="architecture known to open_clip")
    parser.add_argument("--classifier", default="ViT-L-14", help="architecture known to open_clip")
    parser.add_argument("--large", nargs=3, type=int, metavar=("NAMES", "HEIGHT", "WIDTH"),
                        help="only segment one picture of this size, for its time")  # fmt: skip
    parser.add_argument("--memory", nargs=3, type=int, metavar=("NAMES", "HEIGHT", "WIDTH"),
                        help="also run --large in a fresh process and read its memory")  # fmt: skip
    parser.add_argument("--memory-only", action="store_true",
                        help="only measure --memory; keep the times in --output")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the JSON."""
    args = build_parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.large:
        print(json.dumps(segment_large(args)))
        return 0
    if args.memory_only:
        if not args.memory or not args.output or not args.output.is_file():
            raise InputError("--memory-only needs --memory, and an --output with times to keep")
        kept = read_json_file(args.output, "measurements")
        report({**kept, "memory": measure_memory(args)}, args.output)
        return 0
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    result = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_average_before": load,
        "device": choose_device(args.device),
        "precision": args.precision,
        "names": args.names,
        "size": [args.height, args.width],
        **measure(args),
    }
    if args.memory:
        result["memory"] = measure_memory(args)
    report(result, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
