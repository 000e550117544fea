"""Measures how the methods are built and what they cost, from the running models.

`python benchmarks/structure/measure.py san` prints the anatomy of SAN as JSON: parameters by part,
floating point operations and time by stage, what is fed to CLIP, which of its layers are read or
changed, and, with --curves, latency against the number of names and the size of the image.
Weights are random: nothing here depends on what a model has learned, except where the JSON says so.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from benchmarks.forms import AddedName, Parameters, PartCount, StageCost, Structure, Tower
from benchmarks.measuring import count_flops, peak_memory_gib
from benchmarks.structure.latency import NAME_COUNTS, measure_curves, picture
from benchmarks.structure.stage_costs import REST, kept_for_training, metered, traced
from openvocab.cli import CommandParser, run
from openvocab.errors import InputError
from openvocab.methods import find_method
from openvocab.stages import Anatomy, Architecture
from openvocab.vocabulary import Vocabulary

SIDE = 480
NAMES = ("sky", "grass", "road", "dog")
OTHER_NAMES = ("sea", "sand", "path", "cat")  # not yet encoded
FORMAT = "openvocab-structure-5"


class Noise(TorchFunctionMode):
    """Fills weights with one piece of noise again and again, since drawing all takes too long."""

    def __init__(self) -> None:
        super().__init__()
        # A prime number of values, so that no two rows of a matrix are the same ones.
        self.values = torch.randn(1_000_003)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the two ways in which nearly all weights are drawn."""
        bound = dict(zip(("tensor", "mean", "std"), args, strict=False)) | (kwargs or {})
        if func is nn.init.normal_:
            return self.fill(bound["tensor"], bound["std"])
        if func is nn.init.kaiming_uniform_:  # as `nn.Linear` uses it
            return self.fill(bound["tensor"], (3 * bound["tensor"][0].numel()) ** -0.5)
        return func(*args, **(kwargs or {}))

    def fill(self, tensor: torch.Tensor, std: float) -> torch.Tensor:
        """Fill a tensor with values of a standard deviation."""
        with torch.no_grad():
            for piece in torch.split(tensor.view(-1), len(self.values)):
                torch.mul(self.values[: len(piece)], std, out=piece)
        return tensor


def build(key: str) -> Architecture:
    """Build the published architecture of an installed method with random weights.

    Raises:
        InputError: there is no such method, or it has none.
    """
    method = find_method(key)
    if method.architecture is None:
        raise InputError(
            f"{method.title} says nothing about its published architecture; "
            "give its Method an architecture"
        )
    torch.manual_seed(3)
    with Noise():
        return method.architecture()


def measure(
    method: str, seconds: float | None = None, subject: Architecture | None = None
) -> Structure:
    """Measure a method.

    Args:
        method: key of an installed method.
        seconds: time after which the curves of latency end early, with a note; None: no curves.
        subject: architecture to measure in place of the published one.
    """
    start = time.monotonic()
    if subject is None:
        subject = build(method)
    stages, towers = measure_stages(subject)
    image_gib = peak_memory_gib()  # before anything is trained
    result: Structure = {
        "format": FORMAT,
        "method": method,
        "title": subject.title,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "image": [SIDE, SIDE],
        "names": len(NAMES),
        "notes": list(subject.notes),
        "parameters": parameters_of(subject.anatomy),
        "stages": stages,
        "clip": towers,
        "pictures_at_most": subject.at_most,
        "names_enter": list(subject.anatomy.names_enter),
        "ways": [list(way) for way in subject.anatomy.ways],
        "image_gib": image_gib,
        "added_names": added_names(subject, stages),
        "training_mib": None if subject.forward is None else training_mib(subject),
        "seconds": 0.0,
    }
    if seconds is not None:
        end = start + seconds
        left = lambda: end - time.monotonic()  # noqa: E731
        result["curves"] = measure_curves(subject.segmenter, NAME_COUNTS, subject.sides, SIDE, left)
    result["seconds"] = time.monotonic() - start
    return result


def parameters_of(anatomy: Anatomy) -> Parameters:
    """Count parameters: all, trained, frozen, by part."""
    trained = sum(part.count for part in anatomy.parts if part.trained)
    total = sum(part.count for part in anatomy.parts)
    parts: list[PartCount] = [
        {"title": p.title, "count": p.count, "trained": p.trained} for p in anatomy.parts
    ]
    return {"total": total, "trained": trained, "frozen": total - trained, "parts": parts}


def measure_stages(subject: Architecture) -> tuple[list[StageCost], list[Tower]]:
    """Run twice: once to count operations and watch CLIP, and once to measure time."""
    image, vocabulary, anatomy = picture(SIDE), Vocabulary(NAMES), subject.anatomy
    with ExitStack() as stack:
        distinct = {id(clip): (role, clip) for role, clip in anatomy.clips.items()}
        traces = [(r, clip, stack.enter_context(traced(clip))) for r, clip in distinct.values()]
        with metered(anatomy.stages, flops=True) as counted:
            subject.segmenter.segment(image, vocabulary)
    with metered(anatomy.stages, flops=False) as clock:
        subject.segmenter.segment(image, Vocabulary(OTHER_NAMES))
    rows: list[StageCost] = [
        {
            "key": stage.key,
            "title": stage.title,
            "weights": stage.weights,
            "detail": stage.detail,
            "calls": counted.spent[stage.key].calls,
            "gflop": counted.spent[stage.key].flops / 1e9,
            "seconds": clock.spent[stage.key].seconds,
        }
        for stage in anatomy.stages
    ]
    rest: StageCost = {
        "key": REST,
        "title": "resizing and the rest",
        "weights": "none",
        "detail": "",
        "calls": 1,
        "gflop": counted.spent[REST].flops / 1e9,
        "seconds": clock.spent[REST].seconds,
    }
    towers: list[Tower] = [
        {"role": role, "vision": {"layers": clip.config.vision.layers}, **trace.to_json()}
        for role, clip, trace in traces
    ]
    return [*rows, rest], towers


def added_names(subject: Architecture, stages: Sequence[StageCost]) -> AddedName:
    """Return the cost of one more name: once for its text, and on every image."""
    texts = [stage for stage in subject.anatomy.stages if stage.key == "text"]
    calls = [
        (getattr(owner, name), templates)
        for stage in texts
        for (owner, name), templates in zip(stage.calls, subject.templates, strict=True)
    ]
    once = sum(count_flops(partial(encode, ["zebra"], sets)) for encode, sets in calls)
    # CaR's two random steps show all names and then one; the one is not scored.
    each = sum(stage["gflop"] for stage in stages if stage["key"] == subject.each_name)
    return {"text_gflop_once": once / 1e9, "clip_gflop_each_image": each / len(NAMES)}


def training_mib(subject: Architecture) -> float:
    """Return the MiB that one 640 x 640 image keeps for the backward pass of training."""
    assert subject.forward is not None
    parameters = [p for part in subject.anatomy.parts for p in part.parameters.values()]
    with kept_for_training(parameters) as sizes, torch.enable_grad():
        subject.forward()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return sum(sizes) / 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one method and print JSON in one line."""
    parser = CommandParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("method", help="key of an installed method")
    parser.add_argument("--curves", type=float, metavar="SECONDS", help="also measure latency")
    args = parser.parse_args(argv)
    print(json.dumps(measure(args.method, args.curves)))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
