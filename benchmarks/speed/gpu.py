"""Measures everything that needs a GPU, once one is lent: `python benchmarks/speed/gpu.py`.

In one run of at most `--minutes`: whether the labels are those of the CPU, in each precision and
compiled; seconds, throughput and peak memory, beside the plain 4096^3 matrix product; a training
step of SAN and OVSeg; and what two processes exchange. It prints a table and writes JSON. With
`--models world` it uses the small trained models instead of full-size random ones; with `--device
cpu` it runs without a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.measuring import (
    add_measuring_arguments,
    best_time,
    count_flops,
    matrix_product,
    matrix_throughput,
    report,
    synchronize,
)
from benchmarks.speed.gpu_models import METHODS, Variant, make, vocabulary_of
from benchmarks.speed.san_image import picture
from benchmarks.speed.training_step import MeasuredStep, OVSegParts, SANParts
from openvocab.cli import CommandParser, run
from openvocab.computation import (
    PRECISIONS,
    Precision,
    add_device_argument,
    choose_device,
    dtype_of,
)
from openvocab.errors import InputError
from openvocab.files import write_text
from openvocab.image import ImageArray
from openvocab.methods import title_of
from openvocab.reading.json_files import read_json_file
from openvocab.segmenter import BaseSegmenter
from openvocab.training.distributed import join_processes, launch
from openvocab.training.losses import PerImageDraws, totals_of
from openvocab.vocabulary import Vocabulary

_EXCHANGED = 1 << 26  # numbers that processes sum up


class Deadline:
    """How much of the time is left."""

    def __init__(self, minutes: float) -> None:
        self._end = time.perf_counter() + 60 * minutes
        self.skipped: list[str] = []

    def allows(self, what: str) -> bool:
        """Tell whether there is time left; else take note of what is left out."""
        if time.perf_counter() < self._end:
            return True
        self.skipped.append(what)
        return False


@contextmanager
def peak_memory(device: str) -> Iterator[dict[str, float]]:
    """Fill in the GiB that a GPU holds at most; nothing on a CPU."""
    found: dict[str, float] = {}
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    if torch.device(device).type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30


def measure_method(
    key: str, args: argparse.Namespace, device: str, deadline: Deadline
) -> dict[str, Any]:
    """Compare a method with itself on the CPU in fp32, then measure how fast it is in batches."""
    vocabulary, image = vocabulary_of(args.models, args.names), picture(args.side)
    plain = make(key, args.models, Variant("cpu"), args.names)
    expected = plain.segment(image, vocabulary).labels
    flops = count_flops(partial(plain.segment, image, vocabulary))
    del plain
    variants = [Variant(device, precision) for precision in _precisions()]
    if args.compile:
        variants.append(Variant(device, compile=True))
    result: dict[str, Any] = {
        "names_found": len(np.unique(expected)),
        "gflop": flops / 1e9,
        "variants": {},
    }
    for variant in variants:
        if deadline.allows(f"{key} {variant.title}"):
            segmenter = make(key, args.models, variant, args.names)
            result["variants"][variant.title] = {
                **measure_variant(segmenter, variant, image, vocabulary, expected, flops),
                "images_per_second": {
                    str(size): throughput(segmenter, variant, [image] * size, vocabulary)
                    for size in args.batches
                    if deadline.allows(f"{key} {variant.title} in batches of {size}")
                },
            }
    return result


def measure_variant(
    segmenter: BaseSegmenter,
    variant: Variant,
    image: ImageArray,
    vocabulary: Vocabulary,
    expected: np.ndarray,
    flops: int,
) -> dict[str, Any]:
    """Measure one image: labels, seconds, memory, and the share of the plain product."""
    labels = segmenter.segment(image, vocabulary).labels
    work = partial(segmenter.segment, image, vocabulary)
    with peak_memory(variant.device) as memory:
        seconds = best_time(work, device=variant.device)
    product = matrix_product(dtype_of(variant.precision), variant.device)
    peak = matrix_throughput(best_time(product, device=variant.device))
    return {
        "equal_labels": float((labels == expected).mean()),
        "seconds": seconds,
        "share_of_product": flops / seconds / peak,
        "product_gflops": peak / 1e9,
        **memory,
    }


def throughput(
    segmenter: BaseSegmenter, variant: Variant, images: list[Any], vocabulary: Vocabulary
) -> float:
    """Return how many images a second are segmented that are given together."""
    work = partial(segmenter.segment, images, vocabulary)
    return len(images) / best_time(work, device=variant.device, repeats=2)


def measure_training(
    make_step: Callable[..., MeasuredStep], side: int, device: str
) -> dict[str, Any]:
    """Make a training step in fp32 and bf16: losses, seconds, memory."""
    result: dict[str, Any] = {}
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        step = make_step(1, device=device, side=side)
        with peak_memory(device) as memory:
            losses = [train_once(step, precision, device) for _ in range(2)]
            synchronize(device)
            start = time.perf_counter()
            losses.append(train_once(step, precision, device))
            synchronize(device)
        result[precision] = {
            "losses": losses,
            "seconds": time.perf_counter() - start,
            **memory,
        }
    return result


def train_once(step: MeasuredStep, precision: Precision, device: str) -> float:
    """Make one step forwards and backwards, move the weights, and return the loss."""
    kind, dtype = torch.device(device).type, dtype_of(precision)
    targets = step.targets()
    with torch.autocast(kind, dtype, enabled=precision != "fp32"):
        layers = step.forward()
        draw = PerImageDraws(range(len(targets)), torch.device(device))
        totals = totals_of([len(target.labels) for target in targets], step.queries, 0.1)
        losses: list[torch.Tensor] = []
        for layer in layers:
            found = step.match(layer, targets, draw)
            losses += step.compare(layer, targets, found, totals, draw).values()
    loss = torch.stack(losses).sum()
    step.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    step.optimizer.step()
    return loss.item()


def exchange(device: str, numbers: int, output: Path) -> None:
    """Sum numbers over all processes, check the sum, and let the first write how fast it was."""
    with join_processes(device) as processes:
        tensor = torch.full((numbers,), 1.0 + processes.rank, device=processes.device)
        dist.all_reduce(tensor)
        if not bool((tensor == processes.size * (processes.size + 1) / 2).all()):
            raise RuntimeError("the processes have summed something else")
        name = str(processes.device)
        seconds = best_time(lambda: dist.all_reduce(tensor), device=name)
        if processes.is_main:
            found = {
                "engine": dist.get_backend(),
                "processes": processes.size,
                "gigabytes_per_second": tensor.nbytes / seconds / 1e9,
            }
            write_text(output, json.dumps(found))


def measure_exchange(device: str, numbers: int) -> dict[str, Any]:
    """Let two processes sum numbers, each on its own GPU.

    Raises:
        InputError: a process failed; it has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "exchange.json")
        argv = ["--exchange", str(numbers), "--device", device, "--output", str(output)]
        if launch("benchmarks.speed.gpu", argv, 2):
            raise InputError("two processes could not exchange numbers; see what they said above")
        found: dict[str, Any] = read_json_file(output, "measurement")
    return found


def measure(args: argparse.Namespace, device: str) -> dict[str, Any]:
    """Run everything there is time for."""
    deadline, methods, training = Deadline(args.minutes), {}, {}
    kind = torch.device(device).type
    for key in args.methods:
        if deadline.allows(key):
            methods[key] = measure_method(key, args, device, deadline)
    steps: dict[str, Callable[..., MeasuredStep]] = {"san": SANParts, "ovseg": OVSegParts}
    for key, make_step in steps.items():
        if key in args.train and deadline.allows(f"training {key}"):
            training[key] = measure_training(make_step, args.train_side, device)
    result = {
        "device": torch.cuda.get_device_name(device) if kind == "cuda" else platform.processor(),
        "kind": device,
        "torch": torch.__version__,
        "models": args.models,
        "names": args.names,
        "side": args.side,
        "methods": methods,
        "training": training,
    }
    if (kind == "cpu" or torch.cuda.device_count() > 1) and deadline.allows("two processes"):
        result["exchange"] = measure_exchange(kind, _EXCHANGED if kind == "cuda" else 1 << 16)
    return {**result, "skipped": deadline.skipped}


def table(result: dict[str, Any]) -> str:
    """Write the measurements of the methods as a table in Markdown."""
    lines = [
        "| | | equal labels | seconds | of the plain product | images a second | peak GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, method in result["methods"].items():
        for variant, found in method["variants"].items():
            fastest = max(found["images_per_second"].values(), default=1 / found["seconds"])
            memory = f"{found['peak_gib']:.2f}" if "peak_gib" in found else ""
            lines.append(
                f"| {title_of(key)} | {variant} | {100 * found['equal_labels']:.2f} % | "
                f"{found['seconds']:.4f} | {100 * found['share_of_product']:.0f} % | "
                f"{fastest:.1f} | {memory} |"
            )
    return "\n".join(lines)


def _precisions() -> tuple[Precision, ...]:
    return PRECISIONS  # type: ignore[return-value]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = CommandParser(description=__doc__.split("\n\n")[0])
    add_measuring_arguments(parser)
    add_device_argument(parser)
    parser.add_argument("--minutes", type=float, default=8, help="after which nothing is begun")
    parser.add_argument(
        "--models",
        choices=("full", "world"),
        default="full",
        help="full size with random weights, or the world's trained ones",
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--names", type=int, default=20)
    parser.add_argument("--side", type=int, default=640, help="of the picture")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--train", nargs="*", choices=("san", "ovseg"), default=["san", "ovseg"],
                        help="of which methods a training step is made")  # fmt: skip
    parser.add_argument("--train-side", type=int, default=640, help="of a training picture")
    parser.add_argument(
        "--no-compile",
        dest="compile",
        action="store_false",
        help="leave out torch.compile, which takes a minute for each model",
    )
    parser.add_argument("--exchange", type=int, metavar="NUMBERS",
                        help="only sum numbers with the other processes")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the JSON."""
    args = build_parser().parse_args(argv)
    if args.exchange:
        exchange(args.device, args.exchange, args.output)
        return 0
    if args.threads:
        torch.set_num_threads(args.threads)
    result = measure(args, choose_device(args.device))
    report(result, args.output)
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
