"""The models that `gpu.py` measures: full-size ones with random weights, or those of the world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.speed import car_image, ovseg_image, san_image
from benchmarks.speed.known_texts import know_names
from openvocab.computation import Precision
from openvocab.methods import load
from openvocab.segmenter import BaseSegmenter
from openvocab.vocabulary import WORLD, Vocabulary
from ovseg.config import load_published
from san import SANSegmenter

METHODS = ("san", "ovseg", "car")
_PROPOSALS = 27


@dataclass(frozen=True)
class Variant:
    """How a model is run."""

    device: str
    precision: Precision = "fp32"
    compile: bool = False

    @property
    def title(self) -> str:
        """Its name in results."""
        return "compiled" if self.compile else self.precision


def full_san(variant: Variant, names: int) -> BaseSegmenter:
    """Return SAN ViT-B/16 with random weights whose masks and names differ."""
    found = san_image.spread_san()
    table = san_image.names_of_queries(found, san_image.picture(), names)
    segmenter = SANSegmenter(
        found,
        device=variant.device,
        precision=variant.precision,
        compile=variant.compile,
        cache_dir=False,
    )
    know_names(segmenter.text, lambda *shape: table.to(variant.device))
    return segmenter


def full_ovseg(variant: Variant, names: int) -> BaseSegmenter:
    """Return OVSeg Swin-B with CLIP ViT-L/14 and random weights."""
    config, inference = load_published(ovseg_image.VARIANT)
    model = ovseg_image.random_ovseg(config, _PROPOSALS)
    return ovseg_image.segmenter_of(
        model,
        inference,
        names,
        variant.precision,
        device=variant.device,
        compile=variant.compile,
    )


def full_car(variant: Variant, names: int) -> BaseSegmenter:
    """Return CaR with CLIP ViT-B/16 and ViT-L/14 and random weights, which keeps every name."""
    return car_image.random_segmenter(
        variant.precision,
        "ViT-B-16",
        "ViT-L-14",
        device=variant.device,
        compile=variant.compile,
    )


FULL: dict[str, Callable[[Variant, int], BaseSegmenter]] = {
    "san": full_san,
    "ovseg": full_ovseg,
    "car": full_car,
}


def make(key: str, models: str, variant: Variant, names: int) -> BaseSegmenter:
    """Return a method, "full" or "world"."""
    if models == "full":
        return FULL[key](variant, names)
    found = load(
        key,
        WORLD,
        device=variant.device,
        precision=variant.precision,
        compile=variant.compile,
    )
    assert isinstance(found, BaseSegmenter)
    return found


def vocabulary_of(models: str, names: int) -> Vocabulary:
    """Return so many names: those of the world, or any."""
    if models == "full":
        return Vocabulary(tuple(f"name {index}" for index in range(names)))
    return Vocabulary.from_names(Vocabulary.load(WORLD).names[:names])
