"""Measures what loading costs: seconds, and peak memory beside the size of the weights.

`python benchmarks/speed/loading.py --output benchmarks/measured/loading.json` writes full-size
models with random weights to files, and loads each in a process of its own, once the file is in the
system's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.measuring import (
    add_measuring_arguments,
    in_fresh_process,
    peak_memory_gib,
    report,
    resident_memory_gib,
)
from benchmarks.speed.car_image import random_clip
from benchmarks.speed.ovseg_image import VARIANT, random_ovseg
from openvocab.cli import CommandParser, run
from openvocab.methods import load
from openvocab.weights.state_dict import save_state_dict
from ovseg.config import InferenceConfig, load_published
from ovseg.weights import save_model
from san import SAN, san_vit_b_16
from san.weights import save_network

KINDS = (".safetensors", ".pth")


def write_san(folder: Path, kind: str) -> str:
    """Write SAN ViT-B/16; return what its loader takes."""
    path = folder / f"san{kind}"
    save_network(SAN(san_vit_b_16()), path)
    return str(path)


def write_ovseg(folder: Path, kind: str) -> str:
    """Write OVSeg Swin-B with CLIP ViT-L/14; return what its loader takes."""
    path = folder / f"ovseg{kind}"
    save_model(random_ovseg(load_published(VARIANT)[0], 100), path, InferenceConfig())
    return str(path)


def write_car(folder: Path, kind: str) -> str:
    """Write CLIP ViT-B/16 and ViT-L/14; return what CaR's loader takes."""
    return ",".join(_write_clip(folder, name, kind) for name in ("ViT-B-16", "ViT-L-14"))


def _write_clip(folder: Path, name: str, kind: str) -> str:
    path = folder / f"{name}{kind}"
    clip: nn.Module = random_clip(name)
    save_state_dict(path, clip.state_dict(), {"activation": "quick_gelu"})
    return str(path)


WRITERS: Mapping[str, Callable[[Path, str], str]] = {
    "san": write_san,
    "ovseg": write_ovseg,
    "car": write_car,
}


def measure(key: str, kind: str) -> dict[str, Any]:
    """Measure how the weights of a method load from files of a kind.

    Returns:
        The weights in GiB, how often those fit into the memory that loading takes at most, and the
        shortest seconds of three runs.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = WRITERS[key](Path(folder), kind)
        gib = sum(os.path.getsize(path) for path in weights.split(",")) / 2**30
        arguments = ["--load", key, weights]
        runs = [in_fresh_process("benchmarks.speed.loading", arguments) for _ in range(3)]
    return {
        "weights_gib": gib,
        "peak_over_weights": max(one["taken_gib"] for one in runs) / gib,
        "seconds": min(one["seconds"] for one in runs),
    }


def load_once(key: str, weights: str) -> dict[str, float]:
    """Load a method; the imports are done before."""
    load(key, "world", device="cpu")
    before, start = resident_memory_gib(), time.perf_counter()
    segmenter = load(key, weights, device="cpu")
    seconds = time.perf_counter() - start
    del segmenter
    return {"seconds": seconds, "taken_gib": peak_memory_gib() - before}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = CommandParser(description=__doc__.split("\n\n")[0])
    add_measuring_arguments(parser)
    parser.add_argument("--methods", nargs="+", choices=WRITERS, default=list(WRITERS))
    parser.add_argument("--load", nargs=2, metavar=("METHOD", "WEIGHTS"),
                        help="only load these weights, for their memory")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the JSON."""
    args = build_parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.load:
        print(json.dumps(load_once(*args.load)))
        return 0
    found = {key: {kind[1:]: measure(key, kind) for kind in KINDS} for key in args.methods}
    report({"torch": torch.__version__, "methods": found}, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
