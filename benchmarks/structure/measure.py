"""Measures how the methods are built and what they cost, from the running models.

`python benchmarks/structure/measure.py san` prints the anatomy of SAN as JSON: parameters by part,
floating point operations and time by stage, what is fed to CLIP, which of its layers are read or
changed, and, with --curves, latency against the number of names and the size of the image.
Weights are random: nothing here depends on what a model has learned, except where the JSON says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import car.stages
import ovseg.stages
import san.stages
from benchmarks.measuring import count_flops, peak_memory_gib
from benchmarks.structure.latency import NAME_COUNTS, curves, picture
from benchmarks.structure.metering import REST, kept_for_training, metered, traced
from car.config import CaRConfig
from car.segmenter import CaRSegmenter
from openvocab.cli import run
from openvocab.clip.model import CLIP
from openvocab.clip.weights import open_clip_config
from openvocab.stages import Anatomy
from openvocab.vocabulary import Vocabulary
from ovseg import OVSeg, OVSegSegmenter, RegionConfig, load_published
from san import SAN, SANSegmenter, san_vit_b_16

METHODS = ("san", "ovseg", "car")
SIDE = 480
REGIONS = 2  # crops that OVSeg's CLIP is shown here; it is shown up to 100
NAMES = ("sky", "grass", "road", "dog")
OTHER_NAMES = ("sea", "sand", "path", "cat")  # not yet encoded
FORMAT = "openvocab-structure-4"


@dataclass(frozen=True)
class Subject:
    """A method as it is measured.

    Attributes:
        title: with its networks.
        segmenter: random weights.
        anatomy: what it says about itself.
        sides: of square images, for the latency against their size.
        notes: what the measurement depends on.
        templates: of the names, for each call of the text stage.
        at_most: pictures that CLIP is shown in real use, where that is fixed.
        forward: the pass that training differentiates, at 640 x 640; None: nothing is trained.
    """

    title: str
    segmenter: Any
    anatomy: Anatomy
    sides: tuple[int, ...]
    notes: tuple[str, ...]
    templates: tuple[Any, ...]
    at_most: int | None = None
    forward: Callable[[], Any] | None = None


class Noise(TorchFunctionMode):
    """Fills weights with a piece of noise again and again: drawing them all takes too long."""

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
            for piece in tensor.view(-1).split(len(self.values)):
                torch.mul(self.values[: len(piece)], std, out=piece)
        return tensor


def make_san() -> Subject:
    network = SAN(san_vit_b_16())
    segmenter = SANSegmenter(network, cache_dir=False)
    trained = set(network.trainable_parameters())
    classes = torch.randn(172, network.config.clip.embed_dim)

    def forward() -> Any:
        _train_only(network, trained)
        return network(torch.randn(1, 3, 640, 640), classes, all_layers=True)

    return Subject(
        "SAN, CLIP ViT-B/16",
        segmenter,
        san.stages.anatomy(segmenter),
        (240, 480, 960),
        ("Images are resized to a short side of 640 pixels, whatever they measure.",),
        ("vild",),
        forward=forward,
    )


def make_ovseg() -> Subject:
    config, inference = load_published("ovseg_swinB_vitL_bs32_120k")
    model = OVSeg(config)
    # Prompts are zero until they are trained; any other value shows where they enter.
    torch.nn.init.normal_(model.clip_adapter.clip_model.visual.mask_embedding)
    region = RegionConfig(mask_threshold=0.5, max_regions=REGIONS, memory_mb=256)
    segmenter = OVSegSegmenter(model, replace(inference, region=region), cache_dir=False)
    classes = torch.randn(172, config.clip.embed_dim)
    first = {n for n, _ in model.named_parameters() if n.startswith(("backbone.", "sem_seg_head."))}

    def forward() -> Any:
        _train_only(model, first)
        return model([torch.randint(0, 255, (3, 640, 640))], classes, all_layers=True)

    return Subject(
        "OVSeg, Swin-B and CLIP ViT-L/14",
        segmenter,
        ovseg.stages.anatomy(segmenter),
        (240, 480, 960),
        (
            "Images are resized to a short side of 640 pixels, whatever they measure.",
            f"CLIP is shown {REGIONS} crops here, and up to {config.num_queries} in real use; "
            "cost per crop is the same for each.",
        ),
        ("vild",),
        at_most=config.num_queries,
        forward=forward,
    )


def make_car() -> Subject:
    proposer = CLIP(open_clip_config("ViT-B-16", "quick_gelu")).eval().requires_grad_(False)
    judge = CLIP(open_clip_config("ViT-L-14", "quick_gelu")).eval().requires_grad_(False)
    segmenter = CaRSegmenter(proposer, judge, CaRConfig(classifier_batch=4), cache_dir=False)
    return Subject(
        "CaR, CLIP ViT-B/16 and ViT-L/14",
        segmenter,
        car.stages.anatomy(segmenter),
        (240, 480, 960),
        (
            "Images keep their size.",
            "How often it repeats depends on what it finds: random weights stop after two steps, "
            "and the second has one name left. Cost per picture is the same for each.",
        ),
        (("{}",), "car"),
    )


MAKERS = {"san": make_san, "ovseg": make_ovseg, "car": make_car}


def _train_only(model: torch.nn.Module, names: set[str]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def measure(
    method: str, seconds: float | None = None, subject: Subject | None = None
) -> dict[str, Any]:
    """Measure a method.

    Args:
        method: one of `METHODS`.
        seconds: after which the curves of latency end early, and say so; None: no curves.
        subject: what is measured instead of the published architecture.
    """
    start = time.monotonic()
    torch.manual_seed(3)
    if subject is None:
        with Noise():
            subject = MAKERS[method]()
    stages, towers = measure_stages(subject)
    image_gib = peak_memory_gib()  # before anything is trained
    result = {
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
    }
    if seconds is not None:
        end = start + seconds
        left = lambda: end - time.monotonic()  # noqa: E731
        result["curves"] = curves(subject.segmenter, NAME_COUNTS, subject.sides, SIDE, left)
    result["seconds"] = time.monotonic() - start
    return result


def parameters_of(anatomy: Anatomy) -> dict[str, Any]:
    """Count parameters: all, trained, frozen, by part."""
    trained = sum(part.count for part in anatomy.parts if part.trained)
    total = sum(part.count for part in anatomy.parts)
    parts = [{"title": p.title, "count": p.count, "trained": p.trained} for p in anatomy.parts]
    return {"total": total, "trained": trained, "frozen": total - trained, "parts": parts}


def measure_stages(subject: Subject) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run twice: once counted and watched, once on the clock."""
    image, vocabulary, anatomy = picture(SIDE), Vocabulary(NAMES), subject.anatomy
    with ExitStack() as stack:
        distinct = {id(clip): (role, clip) for role, clip in anatomy.clips.items()}
        traces = [(r, clip, stack.enter_context(traced(clip))) for r, clip in distinct.values()]
        with metered(anatomy.stages, flops=True) as counted:
            subject.segmenter.segment(image, vocabulary)
    with metered(anatomy.stages, flops=False) as clock:
        subject.segmenter.segment(image, Vocabulary(OTHER_NAMES))
    rows = [
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
    rest = {
        "key": REST,
        "title": "resizing and the rest",
        "weights": "none",
        "detail": "",
        "calls": 1,
        "gflop": counted.spent[REST].flops / 1e9,
        "seconds": clock.spent[REST].seconds,
    }
    towers = [
        {"role": role, "vision": _plain(asdict(clip.config.vision)), **trace.to_json()}
        for role, clip, trace in traces
    ]
    return [*rows, rest], towers


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as JSON gives them back."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def added_names(subject: Subject, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what one more name costs: once for its text, and on every image after that."""
    text = next(stage for stage in subject.anatomy.stages if stage.key == "text")
    once = sum(
        count_flops(lambda owner=owner, name=name, sets=sets: getattr(owner, name)(["zebra"], sets))
        for (owner, name), sets in zip(text.calls, subject.templates, strict=True)
    )
    judge = next((stage for stage in stages if stage["key"] == "classifier"), None)
    # CaR's two random steps show all names and then one; the one is not scored.
    each = 0.0 if judge is None else judge["gflop"] / len(NAMES)
    return {"text_gflop_once": once / 1e9, "clip_gflop_each_image": each}


def training_mib(subject: Subject) -> float:
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
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--curves", type=float, metavar="SECONDS", help="also measure latency")
    args = parser.parse_args(argv)
    print(json.dumps(measure(args.method, args.curves)))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
