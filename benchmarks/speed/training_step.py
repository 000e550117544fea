"""Measures training steps: where their time goes, what they keep in memory, and the loader.

`python benchmarks/speed/training_step.py --output benchmarks/measured/speed_training.json` runs SAN
ViT-B/16 and the proposals of OVSeg Swin-B at random weights on 640 x 640 pictures with 20 classes
each, as training does.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from benchmarks.measuring import (
    best_time,
    matrix_product,
    matrix_throughput,
    processor_name,
    synchronize,
)
from openvocab.cli import CommandParser, run
from openvocab.clip.config import VisionConfig
from openvocab.computation import add_device_argument, choose_device
from openvocab.datasets.transforms import TransformConfig
from openvocab.files import write_text
from openvocab.training.losses import (
    Draw,
    Losses,
    PerImageDraws,
    Targets,
    Totals,
    targets_of,
    totals_of,
)
from openvocab.training.matching import Match
from openvocab.training.order import EndlessShuffle, StepBatches
from openvocab.training.segmentation_data import (
    SegmentationBatch,
    SegmentationData,
    collate_segmentation,
    open_training_set,
)
from openvocab.training.settings import DataConfig
from ovseg.config import load_published
from ovseg.criterion import OVSegCriterion
from ovseg.model import OVSeg
from ovseg.task import make_optimizer as ovseg_optimizer
from ovseg.train_config import OVSegCriterionConfig as OVSegLosses
from ovseg.train_config import OVSegOptimizerConfig as OVSegOptimizer
from san.config import san_vit_b_16
from san.criterion import SANCriterion
from san.model import SAN
from san.task import make_optimizer as san_optimizer
from san.train_config import SANCriterionConfig as SANLosses
from san.train_config import SANOptimizerConfig as SANOptimizer

SIDE, CLASSES, PRESENT = 640, 171, 20


class MeasuredStep:
    """One training step, cut into its parts.

    Attributes:
        title: title of the model.
        network: network to train, with the embeddings of the vocabulary given.
        optimizer: optimizer of the trained parameters.
        queries: Q.
    """

    title: str
    network: nn.Module
    optimizer: torch.optim.Optimizer
    queries: int

    def __init__(self, images: int, *, device: str = "cpu", side: int = SIDE) -> None:
        self.device = device
        self.images = torch.randn(images, 3, side, side).to(device)
        self.labels = torch.stack([_label_map(seed, side) for seed in range(images)]).to(device)

    def targets(self) -> list[Targets]:
        """Make masks of the label maps."""
        return [targets_of(label, CLASSES) for label in self.labels]

    def forward(self) -> list[Any]:
        """Run the network; return what each supervised layer says."""
        raise NotImplementedError

    def match(self, layer: Any, targets: list[Targets], draw: Draw) -> list[Match]:
        """Pair the queries of a layer with targets."""
        raise NotImplementedError

    def compare(
        self, layer: Any, targets: list[Targets], found: list[Match], totals: Totals, draw: Draw
    ) -> Losses:
        """Return the losses of a layer."""
        raise NotImplementedError

    def times(self, loader: Iterator[SegmentationBatch]) -> dict[str, float]:
        """Make a step, and return the seconds of each part.

        The loader's batch is waited for as in training, where workers prepare it during the step
        before; what is computed with are pictures of constant content.
        """
        clock = Clock(self.device)
        next(loader)
        clock.stop("data")
        targets = self.targets()
        clock.stop("targets")
        layers = self.forward()
        clock.stop("forward")
        draw = PerImageDraws(range(len(targets)), torch.device(self.device))
        matches = [self.match(layer, targets, draw) for layer in layers]
        clock.stop("matching")
        totals = totals_of([len(target.labels) for target in targets], self.queries, 0.1)
        losses: list[Tensor] = []
        for layer, found in zip(layers, matches, strict=True):
            losses += self.compare(layer, targets, found, totals, draw).values()
        total = torch.stack(losses).sum()
        clock.stop("losses")
        self.optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        clock.stop("backward")
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, 0.01)
        self.optimizer.step()
        clock.stop("optimiser")
        return clock.seconds


class SANParts(MeasuredStep):
    """SAN ViT-B/16."""

    title = "SAN ViT-B/16, random weights"
    network: SAN
    architecture: type[SAN] = SAN

    def __init__(self, images: int, *, device: str = "cpu", side: int = SIDE) -> None:
        super().__init__(images, device=device, side=side)
        torch.manual_seed(0)
        self.network = self.architecture(san_vit_b_16()).to(device)
        self.optimizer = san_optimizer(self.network, SANOptimizer())
        self.criterion = SANCriterion(SANLosses())
        self.queries = self.network.config.num_queries
        width = self.network.config.clip.embed_dim
        self.text = F.normalize(torch.randn(CLASSES, width), dim=-1).to(device)

    def forward(self) -> list[Any]:
        """See `MeasuredStep`."""
        classifier = self.network.classifier(self.text)
        return list(self.network(self.images, classifier, all_layers=True))

    def match(self, layer: Any, targets: list[Targets], draw: Draw) -> list[Match]:
        """See `MeasuredStep`."""
        return self.criterion.match(layer, targets, draw)

    def compare(
        self, layer: Any, targets: list[Targets], found: list[Match], totals: Totals, draw: Draw
    ) -> Losses:
        """See `MeasuredStep`."""
        return self.criterion.compare(layer, targets, found, totals, draw)


class OVSegParts(MeasuredStep):
    """The proposals of OVSeg Swin-B; its CLIP sees no image in training, so a small one will do."""

    title = "OVSeg Swin-B, random weights"
    network: OVSeg

    def __init__(self, images: int, *, device: str = "cpu", side: int = SIDE) -> None:
        super().__init__(images, device=device, side=side)
        torch.manual_seed(0)
        config, _ = load_published("ovseg_swinB_vitL_bs32_120k")
        vision = VisionConfig(image_size=2, patch_size=2, width=8, layers=1, heads=1, mlp_width=8)
        clip = replace(config.clip, vision=vision, text=replace(config.clip.text, layers=1))
        self.network = OVSeg(replace(config, clip=clip)).train().to(device)
        self.optimizer = ovseg_optimizer(self.network, OVSegOptimizer())
        self.criterion = OVSegCriterion(OVSegLosses())
        self.queries = config.num_queries
        self.text = F.normalize(torch.randn(CLASSES + 1, clip.embed_dim), dim=-1).to(device)

    def forward(self) -> list[Any]:
        """See `MeasuredStep`."""
        proposals = self.network(list(self.images), self.text, all_layers=True)
        return list(zip(proposals.class_logits, proposals.mask_logits, strict=True))

    def match(self, layer: Any, targets: list[Targets], draw: Draw) -> list[Match]:
        """See `MeasuredStep`."""
        logits, masks = layer
        return self.criterion.match(logits, masks, targets)

    def compare(
        self, layer: Any, targets: list[Targets], found: list[Match], totals: Totals, draw: Draw
    ) -> Losses:
        """See `MeasuredStep`."""
        logits, masks = layer
        return self.criterion.compare(logits, masks, targets, found, totals)


class Clock:
    """Adds up the time between stops by name."""

    def __init__(self, device: str = "cpu") -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        synchronize(device)
        self._last = time.perf_counter()

    def stop(self, name: str) -> None:
        """Credit the time since the last stop to a name."""
        synchronize(self._device)
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def kept_for_backward(step: MeasuredStep) -> float:
    """Return the MiB of activations that a forward pass keeps, parameters not counted."""
    parameters = {p.untyped_storage().data_ptr() for p in step.network.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = step.forward()  # held until the sum is made, so that no address is used twice
    total = sum(seen.values()) / 2**20
    del kept
    return total


def memory(images: int) -> dict[str, float]:
    """Compare what SAN keeps with CLIP trained, frozen, and with recomputed blocks."""
    step = SANParts(images)
    frozen = kept_for_backward(step)
    step.network.requires_grad_(True)
    trained = kept_for_backward(step)
    san_optimizer(step.network, SANOptimizer())
    shallow = step.network.clip.visual.blocks[: step.network.config.split]
    for block in [*shallow, *step.network.side_adapter.vit_model.blocks]:
        whole = block.forward
        block.forward = lambda *a, f=whole, **k: checkpoint(f, *a, use_reentrant=False, **k)
    return {
        "CLIP trained": trained,
        "CLIP frozen": frozen,
        "CLIP frozen, blocks recomputed": kept_for_backward(step),
    }


@contextmanager
def loading(workers: int, steps: int, batch: int) -> Iterator[Iterator[SegmentationBatch]]:
    """Load and vary batches from JPEG and PNG files of COCO's size."""
    with tempfile.TemporaryDirectory() as folder:
        images, labels, names = (Path(folder, name) for name in ("images", "labels", "names"))
        _write_photographs(Path(folder), 16)
        config = DataConfig(None, None, images, labels, names)
        data = SegmentationData(open_training_set(config), TransformConfig(), seed=0)
        order = StepBatches(EndlessShuffle(16, 0), batch=batch, start=0, steps=steps)
        yield iter(
            DataLoader(
                data, batch_sampler=order, collate_fn=collate_segmentation, num_workers=workers
            )
        )


def loader_rate(workers: int, samples: int, batch: int) -> float:
    """Return the samples a second that the loader gives, when nothing else is done."""
    with loading(workers, samples // batch + 1, batch) as batches:
        next(batches)
        began = time.perf_counter()
        count = sum(len(found["ids"]) for found in batches)
        return count / (time.perf_counter() - began)


def _write_photographs(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    (folder / "names").write_text("\n".join(f"class {i}" for i in range(CLASSES)))
    for index in range(count):
        small = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        label = _label_map(index)[:480].numpy().astype(np.uint8)
        for name, image, suffix in (
            ("images", small.resize((640, 480), Image.Resampling.BICUBIC), "jpg"),
            ("labels", Image.fromarray(label), "png"),
        ):
            (folder / name).mkdir(exist_ok=True)
            image.save(folder / name / f"{index}.{suffix}")


def _label_map(seed: int, side: int = SIDE) -> Tensor:
    """A map of rectangles of `PRESENT` classes."""
    rng = np.random.default_rng(seed)
    classes = rng.permutation(CLASSES)[:PRESENT]
    cells = rng.permutation(np.arange(100) % PRESENT).reshape(10, 10)
    return torch.from_numpy(classes[cells].repeat(side // 10, 0).repeat(side // 10, 1))


def split(step: MeasuredStep, repeats: int, workers: int) -> dict[str, Any]:
    """Return the seconds and shares of the parts of a step, the best of some."""
    images = len(step.images)
    with loading(workers, repeats + 1, images) as batches:
        step.times(batches)
        runs = [step.times(batches) for _ in range(repeats)]
    seconds = {name: min(r[name] for r in runs) for name in runs[0]}
    total = sum(seconds.values())
    return {
        "model": step.title,
        "queries": step.queries,
        "seconds": seconds,
        "seconds_per_step": total,
        "share": {name: value / total for name, value in seconds.items()},
        "step_needs_per_second": images / total,
    }


def measure(images: int, repeats: int, workers: int, device: str = "cpu") -> dict[str, Any]:
    """Run everything."""
    product = matrix_throughput(best_time(matrix_product(device=device), device=device))
    return {
        "image": f"{SIDE} x {SIDE}, {PRESENT} classes each",
        "classes_in_an_image": PRESENT,
        "images_per_step": images,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processor": processor_name(),
        "device": device,
        "torch": torch.__version__,
        "matrix_product_gflops": product / 1e9,
        "san": split(SANParts(images, device=device), repeats, workers),
        "ovseg": split(OVSegParts(images, device=device), repeats, workers),
        "kept_for_backward_mib": memory(images),
        "loader": {"workers": workers, "samples_per_second": loader_rate(workers, 48, 4)},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1, help="in a step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path)
    add_device_argument(parser)
    args = parser.parse_args(argv)
    text = json.dumps(
        measure(args.images, args.repeats, args.workers, choose_device(args.device)), indent=2
    )
    print(text)
    if args.output is not None:
        write_text(args.output, text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
