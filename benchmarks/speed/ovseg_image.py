"""Measures OVSeg's speed and memory: stages, utilisation, precision and peak memory.

`python benchmarks/speed/ovseg_image.py --output benchmarks/measured/speed_ovseg.json` runs Swin-B
with CLIP ViT-L/14 at random weights on a 640 x 640 picture with 20, 50 and 100 valid proposals, and
compares with a plain 4096^3 matrix product of the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.measuring import (
    add_measuring_arguments,
    count_flops,
    in_fresh_process,
    matrix_product,
    matrix_throughput,
    report,
    timed,
)
from benchmarks.speed.known_texts import know_names
from openvocab.cli import CommandParser, run
from openvocab.computation import Precision, add_device_argument, choose_device
from openvocab.semantic import MaskGeometry, semantic_labels
from openvocab.vocabulary import Vocabulary
from ovseg.config import InferenceConfig, OVSegConfig, load_published
from ovseg.ensemble import Branches, ensemble
from ovseg.mask_clip import LOGIT_SCALE
from ovseg.model import OVSeg, Proposals, mask_probability
from ovseg.segmenter import OVSegSegmenter

SIDE = 640
VARIANT = "ovseg_swinB_vitL_bs32_120k"


class DecidedOVSeg(OVSeg):
    """Computes all that OVSeg computes, but proposes smooth masks of which `valid` are not empty.

    Untrained masks hover about the threshold, which would make their number and their regions
    arbitrary. The replacement is the same for the same sizes.
    """

    valid = 100

    def forward(
        self,
        images: Sequence[torch.Tensor],
        classifier: torch.Tensor,
        *,
        all_layers: bool | None = None,
    ) -> Proposals:
        """Run MaskFormer, and return decided proposals of the same shapes."""
        real = super().forward(images, classifier, all_layers=all_layers)
        masks = decided_masks(real.mask_logits.shape[2], self.valid, real.mask_logits.shape[-2:])
        return real._replace(mask_logits=masks.to(real.mask_logits).expand_as(real.mask_logits))


def decided_masks(queries: int, valid: int, grid: Sequence[int]) -> torch.Tensor:
    """Return mask logits (Q, h, w) of smooth blobs; all but the first `valid` are empty."""
    generator = torch.Generator().manual_seed(0)
    coarse = 6 * torch.randn(1, queries, 5, 5, generator=generator) - 3
    coarse.flatten(2)[..., 12] = 6.0  # something in the middle
    coarse[:, valid:] = -12.0
    return F.interpolate(coarse, tuple(grid), mode="bicubic")[0]


def random_ovseg(config: OVSegConfig, valid: int) -> DecidedOVSeg:
    """Return the model with random weights of a sensible size."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = DecidedOVSeg(config)
    model.to_empty(device="cpu")
    fresh = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("relative_position_index"):
            tensor.random_(0, 100, generator=fresh)
        elif name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "running_var")):
            tensor.fill_(1.0)
        elif "pixel_" in name:
            tensor.fill_(120.0 if name.endswith("mean") else 60.0)
        else:
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 2500
            tensor.normal_(0, fan_in**-0.5, generator=fresh)
    model.valid = valid
    return model.eval().requires_grad_(False)


def picture() -> np.ndarray:
    """Return a smooth random picture (640, 640, 3)."""
    coarse = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (1, 3, 12, 12)))
    fine = F.interpolate(coarse, (SIDE, SIDE), mode="bicubic")
    return fine[0].clamp(0, 255).permute(1, 2, 0).to(torch.uint8).numpy()


def segmenter_of(
    model: OVSeg,
    inference: InferenceConfig,
    names: int,
    precision: Precision = "fp32",
    *,
    device: str = "cpu",
    compile: bool = False,
) -> OVSegSegmenter:
    """Return a segmenter whose text embeddings are random and already there."""
    segmenter = OVSegSegmenter(
        model, inference, device=device, precision=precision, compile=compile, cache_dir=False
    )
    width = model.config.clip.embed_dim
    generator = torch.Generator().manual_seed(1)
    table = F.normalize(torch.randn(names, width, generator=generator), dim=-1).to(device)
    know_names(model.clip_adapter.text_encoder, lambda *shape: table)
    return segmenter


def vocabulary_of(names: int) -> Vocabulary:
    """Return a vocabulary of so many names."""
    return Vocabulary(tuple(f"name {index}" for index in range(names)))


@torch.inference_mode()
def measure_stages(
    model: DecidedOVSeg, valid: int, names: int, repeats: int, device: str = "cpu"
) -> dict[str, Any]:
    """Measure every stage of one image, and the matrix product before and after."""
    model.valid = valid
    inference = load_published(VARIANT)[1]
    segmenter = segmenter_of(model, inference, names, device=device)
    adapter, vocabulary = model.clip_adapter, vocabulary_of(names)
    image = torch.from_numpy(picture()).permute(2, 0, 1).to(device)
    classifier = segmenter.classifier(vocabulary)
    product = matrix_product(device=device)
    product()
    seconds: dict[str, float] = {}
    before, _ = timed(product, 3, device)
    seconds["maskformer"], out = timed(lambda: model([image], classifier), repeats, device)
    logits = out.mask_logits[-1, 0]
    seconds["masks"], prob = timed(
        lambda: mask_probability(logits, (SIDE, SIDE), (SIDE, SIDE)), repeats, device
    )
    binary = prob > inference.region.mask_threshold
    rows = binary.flatten(1).any(1).nonzero().squeeze(1)
    normalized = adapter.normalize(image)
    chunks = torch.split(rows, adapter.regions_per_batch)
    seconds["cut"], regions = timed(
        lambda: [adapter.cut(normalized, prob[c], binary[c]) for c in chunks], repeats, device
    )
    seconds["clip"], features = timed(
        lambda: torch.cat([adapter.encode_regions(r) for r in regions]), repeats, device
    )
    after, _ = timed(product, 3, device)
    flops = {
        "maskformer": count_flops(lambda: model([image], classifier)),
        "clip": len(rows) * count_flops(lambda: adapter.encode_regions(_first(regions[0]))),
    }
    label = partial(_labels, segmenter, vocabulary, out, features)
    seconds["labels"], _ = timed(label, repeats, device)
    total = sum(seconds.values())
    peak = matrix_throughput(min(before, after))
    return {
        "valid_proposals": len(rows),
        "regions_per_batch": adapter.regions_per_batch,
        "seconds": seconds,
        "seconds_per_region": seconds["clip"] / len(rows),
        "gflop": {name: count / 1e9 for name, count in flops.items()},
        "product_gflop_per_second": {
            "before": matrix_throughput(before) / 1e9,
            "after": matrix_throughput(after) / 1e9,
        },
        "clip_utilisation": flops["clip"] / seconds["clip"] / peak,
        "image_utilisation": sum(flops.values()) / total / peak,
    }


def _first(regions: Any) -> Any:
    """Return the first region of a batch."""
    return type(regions)(regions.images[:1], regions.masks[:1])


def _labels(
    segmenter: OVSegSegmenter,
    vocabulary: Vocabulary,
    out: Proposals,
    features: torch.Tensor,
) -> torch.Tensor:
    """Combine the branches and label every pixel."""
    classifier = segmenter.classifier(vocabulary)
    class_prob = out.class_logits[-1, 0].softmax(-1)[:, :-1]
    clip_prob = (LOGIT_SCALE * features @ classifier[:-1].T).softmax(-1)
    valid = torch.arange(len(class_prob), device=class_prob.device) < len(clip_prob)
    votes = ensemble(Branches(class_prob, clip_prob, valid), segmenter.inference.ensemble_weight)
    geometry = MaskGeometry((SIDE, SIDE), (SIDE, SIDE), (SIDE, SIDE), resize_logits=False)
    return semantic_labels(votes.weights, out.mask_logits[-1, 0], geometry)


def measure_precision(
    config: OVSegConfig, valid: int, names: int, repeats: int, device: str = "cpu"
) -> dict[str, Any]:
    """Measure a whole image in bfloat16 against fp32, with the agreement of the labels."""
    inference = load_published(VARIANT)[1]
    image, vocabulary = picture(), vocabulary_of(names)
    seconds, labels, products = {}, {}, {}
    dtypes: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
    for precision, dtype in dtypes.items():
        model = random_ovseg(config, valid)
        segmenter = segmenter_of(model, inference, names, precision, device=device)
        product = matrix_product(dtype, device)
        product()
        products[precision], _ = timed(product, 3, device)
        seconds[precision], found = timed(
            partial(segmenter.segment, image, vocabulary), repeats, device
        )
        labels[precision] = found.labels
    return {
        "valid_proposals": valid,
        "seconds": seconds,
        "time_over_fp32": seconds["bf16"] / seconds["fp32"],
        "product_over_fp32": products["bf16"] / products["fp32"],
        "label_agreement": float((labels["bf16"] == labels["fp32"]).mean()),
        "names_in_fp32": len(np.unique(labels["fp32"])),
    }


def segment_once(names: int, valid: int) -> dict[str, Any]:
    """Segment one picture; run in a process of its own for its memory."""
    config, inference = load_published(VARIANT)
    segmenter = segmenter_of(random_ovseg(config, valid), inference, names)
    found = segmenter.segment(picture(), vocabulary_of(names))
    return {"names": names, "valid_proposals": valid, "names_found": len(np.unique(found.labels))}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = CommandParser(description=__doc__.split("\n\n")[0])
    add_measuring_arguments(parser)
    add_device_argument(parser)
    parser.add_argument("--proposals", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--names", type=int, default=150)
    parser.add_argument("--precision-proposals", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2, help="runs of which the best counts")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--once", nargs=2, type=int, metavar=("NAMES", "PROPOSALS"),
                        help="only segment one picture, for its memory")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the JSON."""
    args = build_parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.once:
        print(json.dumps(segment_once(*args.once)))
        return 0
    config, device = load_published(VARIANT)[0], choose_device(args.device)
    model = random_ovseg(config, max(args.proposals))
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": device,
        "load_before": os.getloadavg(),
        "stages": [
            measure_stages(model, valid, args.names, args.repeats, device)
            for valid in args.proposals
        ],
    }
    del model
    result["precision"] = measure_precision(
        config, args.precision_proposals, args.names, args.repeats, device
    )
    result["load_after"] = os.getloadavg()
    if not args.no_memory:
        result["memory"] = in_fresh_process(
            "benchmarks.speed.ovseg_image", ["--once", "847", "100"]
        )
    report(result, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
