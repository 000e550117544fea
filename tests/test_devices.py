"""All three methods on a CUDA device that only pretends: no tensor stays behind on the CPU.

Torch's own `FakeTensorMode` is used only for what it can do here. Its tensors hold no numbers, so
that nothing that depends on them runs under it: which proposals are usable, which names are kept,
which target a query gets, the lattice of the CRF. Its backward pass asks the driver about CUDA, and
fails without one. `pretend_cuda` has the numbers and goes backwards, but torch's autocast does not
know its tensors, so that one test runs the forward pass of the training steps under both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from pretend_cuda import PretendTensor, pretend_cuda
from tiny_models import clip_config, tiny_ovseg, tiny_san
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from car.config import CaRConfig
from car.explain import explain as explain_car
from car.segmenter import CaRSegmenter
from openvocab import semantic
from openvocab.clip.model import CLIP
from openvocab.clip.prompts import TextEncoder
from openvocab.computation import dtype_of
from openvocab.inference.confidence import Evidence
from openvocab.segmenter import BaseSegmenter
from openvocab.semantic import MaskGeometry, semantic_labels
from openvocab.training.distributed import Processes
from openvocab.training.losses import Targets, totals_of
from openvocab.training.matching import Match
from openvocab.vocabulary import Background, Vocabulary
from ovseg import InferenceConfig, OVSegSegmenter, RegionConfig
from ovseg.criterion import OVSegCriterion
from ovseg.explain import explain as explain_ovseg
from ovseg.finetune_task import FinetuneStep, Known, PairBatch
from ovseg.mask_clip import MaskPromptedCLIP
from ovseg.task import OVSegStep
from ovseg.train_config import FinetuneConfig, OVSegCriterionConfig
from san import SANInference, SANSegmenter
from san.criterion import SANCriterion
from san.explain import explain as explain_san
from san.task import SANStep
from san.train_config import SANCriterionConfig

NAMES = Vocabulary.from_names(("sky", "grass", "dog"))
PRECISIONS = ("fp32", "bf16", "fp16")


@pytest.fixture
def pretend() -> Iterator[list[str]]:
    """Let "cuda" be a device that pretends; what the CPU has waited for."""
    with pretend_cuda() as waits:
        yield waits


@pytest.fixture
def cuda(pretend: list[str]) -> None:
    """The same for tests that do not ask what was waited for."""


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """An image (60, 80, 3) of a square on a gradient."""
    image = np.zeros((60, 80, 3), np.uint8)
    image[..., 0] = np.linspace(40, 200, 80).astype(np.uint8)
    image[20:40, 30:50] = (30, 90, 190)
    return image


def _same_as_on_the_cpu(
    make: Callable[..., BaseSegmenter], photo: np.ndarray, precision: str, names: Vocabulary = NAMES
) -> BaseSegmenter:
    """Segment on both devices, check the labels, and return the segmenter on the device."""
    evidence: list[Evidence] = []
    with _disable_current_modes():
        here = make("cpu", precision).segment(photo, names, return_scores=True)
    segmenter = make("cuda:0", precision)
    segmenter.on_evidence = evidence.append  # what confidences are computed from
    there = segmenter.segment(photo, names, return_scores=True)
    assert segmenter.describe()["device"].startswith("cuda")
    assert np.mean(there.labels == here.labels) >= 0.999
    assert there.scores is not None and here.scores is not None
    np.testing.assert_allclose(there.scores, here.scores, atol=1e-4, rtol=1e-3)
    assert np.isfinite(evidence[0].features()).all()
    return segmenter


def test_a_tensor_left_on_the_cpu_is_found(cuda: None) -> None:
    there, here = torch.ones(2, 3).to("cuda:0"), torch.ones(2, 3)
    layer = nn.Linear(3, 2).to("cuda:0")
    assert layer(there).device.type == there[:, 1].device.type == "cuda"
    assert isinstance(torch.arange(3, device="cuda:0"), PretendTensor)
    assert type((there + 1).cpu()) is torch.Tensor and (there + 1).sum().item() == 12
    for operation in (
        lambda: there + here,
        lambda: torch.cat([there, here]),
        lambda: layer(here),
        lambda: there.masked_fill(here > 0, 0.0),
        lambda: there.gather(1, torch.zeros(2, 1, dtype=torch.long)),
        lambda: torch.stack([there.sum(), here.sum()]),  # numbers do not join everywhere
    ):
        with pytest.raises(RuntimeError, match="same device"):
            operation()
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()


def _san(device: str, precision: Any) -> SANSegmenter:
    inference = SANInference(short_side=64)
    return SANSegmenter(tiny_san(), inference, device=device, precision=precision, cache_dir=False)


BACKGROUNDS = [Background.none(), Background.learned(), Background.threshold(0.5)]


@pytest.mark.parametrize(
    ("precision", "policy"), [*zip(PRECISIONS, BACKGROUNDS, strict=True), ("fp32", BACKGROUNDS[2])]
)
def test_san_segments(cuda: None, photo: np.ndarray, precision: str, policy: Background) -> None:
    names = replace(NAMES, background=policy)
    segmenter = _same_as_on_the_cpu(_san, photo, precision, names)
    assert isinstance(segmenter, SANSegmenter)
    assert segmenter.scores_at(photo, names, (30, 40)).device.type == "cuda"
    if policy.kind == "none":
        assert explain_san(segmenter, photo, names)


def _ovseg(inference: InferenceConfig, device: str, precision: Any) -> OVSegSegmenter:
    return OVSegSegmenter(
        tiny_ovseg(decoder_layers=2), inference, device=device, precision=precision, cache_dir=False
    )


@pytest.mark.parametrize(
    ("precision", "threshold", "mode"),  # every proposal is usable, some, or none
    [
        ("fp32", 0.0, "eval"),
        ("fp32", 0.5, "demo"),
        ("fp32", 1.0, "demo"),
        ("bf16", 0.5, "eval"),
        ("fp16", 1.0, "eval"),
    ],
)
def test_ovseg_segments(
    cuda: None, photo: np.ndarray, precision: str, threshold: float, mode: Any
) -> None:
    region = RegionConfig(mask_threshold=threshold)
    make = partial(_ovseg, InferenceConfig(min_size=64, mode=mode, region=region))
    segmenter = _same_as_on_the_cpu(make, photo, precision)
    assert isinstance(segmenter, OVSegSegmenter)
    assert segmenter.scores_at(photo, NAMES, (30, 40)).device.type == "cuda"
    if precision == "bf16":
        assert explain_ovseg(segmenter, photo, NAMES)
    if threshold == 0.0:  # masks from elsewhere, which the CPU made
        boxes = np.zeros((2, 60, 80), bool)
        boxes[0, :30], boxes[1, 30:] = True, True
        found = segmenter.with_proposals(lambda image: boxes).segment(photo, NAMES)
        assert found.labels.shape == (60, 80)


def _car(config: CaRConfig, device: str, precision: Any) -> CaRSegmenter:
    torch.manual_seed(0)
    proposer, classifier = (
        CLIP(clip_config(*sizes)).eval().requires_grad_(False).to(device)
        for sizes in ((16, 64), (14, 56))
    )
    return CaRSegmenter(proposer, classifier, config, precision=precision, cache_dir=False)


@pytest.mark.parametrize(  # all names are kept, some, or the best
    ("precision", "threshold"), [("fp32", 0.0), ("bf16", 0.34), ("fp16", 0.34), ("fp32", 1.0)]
)
def test_car_segments(cuda: None, photo: np.ndarray, precision: str, threshold: float) -> None:
    config = CaRConfig(confidence_threshold=threshold, mask_threshold=0.4)
    names = Vocabulary.from_names(NAMES.names, templates="car")
    segmenter = _same_as_on_the_cpu(partial(_car, config), photo, precision, names)
    assert isinstance(segmenter, CaRSegmenter)
    if precision == "bf16":
        assert explain_car(segmenter, photo, names)
    if threshold == 0.0:
        assert segmenter.find_object(photo, ["a dog", "a brown dog"]).shape == (60, 80)


@pytest.mark.parametrize("resize_logits", [True, False])
@pytest.mark.parametrize("threshold", [None, 0.6])
def test_a_gpu_paints_the_labels_of_the_cpu(
    cuda: None, resize_logits: bool, threshold: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = 6 * torch.randn(7, 6, 8, generator=generator) - 3
    prob = (4 * torch.randn(7, 30, generator=generator)).softmax(-1)
    geometry = MaskGeometry((96, 128), (90, 121), (123, 157), resize_logits)
    with _disable_current_modes():
        expected = semantic_labels(prob, masks, geometry, threshold=threshold)
    assert len(expected.unique()) > 5
    monkeypatch.setattr(semantic, "_STRIP", 100_000)  # in several strips
    painted = semantic_labels(prob.to("cuda:0"), masks.to("cuda:0"), geometry, threshold=threshold)
    assert painted.device.type == "cuda"
    assert (painted.cpu() == expected).double().mean() >= 0.999


@pytest.mark.parametrize("method", ["san", "ovseg", "car"])
def test_the_cpu_waits_for_the_gpu_no_more_than_it_must(
    pretend: list[str], photo: np.ndarray, method: str
) -> None:
    segmenter: BaseSegmenter
    names, steps = NAMES, []
    # Whether the text tower's weights are still those of the cached names is asked once for all
    # images of SAN, and for each of the others. Then each image tells whether its scores are
    # finite, and its labels. OVSeg asks which proposals are usable: only those are cut out.
    if method == "san":
        segmenter, at_once, each = _san("cuda:0", "fp32"), 1, 2
    elif method == "ovseg":
        inference = InferenceConfig(min_size=64)
        segmenter, at_once, each = _ovseg(inference, "cuda:0", "fp32"), 0, 4
    else:  # three times for texts, two for the lattice, and for the labels; see below for the steps
        config = CaRConfig(confidence_threshold=0.34, mask_threshold=0.4)
        car = _car(config, "cuda:0", "fp32")
        car.on_step = lambda _, step: steps.append(step)
        names = Vocabulary.from_names(NAMES.names, templates="car")
        segmenter, at_once, each = car, 0, 5
    segmenter.segment(photo, names)  # the names are known from now on
    pretend.clear()
    steps.clear()
    second = photo[::-1] if method == "car" else photo[:48]  # CaR keeps the lattice of positions
    segmenter.segment([photo, second], names)
    # A step encodes its queries, looks for empty maps, for boxes in maps and for masks in them, and
    # asks for finite scores; with rivals it also asks for the scores.
    of_steps = sum(5 + (len(step.names) > 1) for step in steps)
    assert len(pretend) == at_once + 2 * each + of_steps, pretend


def _check_training_step(step: nn.Module, totals: Any, names: Vocabulary = NAMES) -> None:
    """Make one step forwards and backwards, with labels of every kind, and move the weights."""
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    labels[0, 20:40, 10:50] = 1
    labels[1] = 255  # an image that shows nothing
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    batch = {
        "images": images.to("cuda:0"),
        "labels": labels.to("cuda:0"),
        "ids": ["a", "b"],
        "seeds": [1, 2],
    }
    step.train()
    losses = step(batch, totals)
    total = torch.stack(list(losses.values())).sum()
    assert total.device.type == "cuda" and np.isfinite(total.item())
    total.backward()
    moved = [parameter for parameter in step.parameters() if parameter.grad is not None]
    assert moved and all(parameter.grad.device.type == "cuda" for parameter in moved)
    optimizer = torch.optim.AdamW(moved)
    assert np.isfinite(float(nn.utils.clip_grad_norm_(moved, 1.0)))
    before = moved[0].detach().cpu().clone()
    optimizer.step()
    assert not torch.equal(before, moved[0].detach().cpu())


def test_san_makes_a_training_step(cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only a driver can make a generator of CUDA; the loss must ask for one there.
    asked: list[torch.device] = []
    make = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device: asked.append(device) or make())
    network = tiny_san()
    step = SANStep(network, SANCriterion(SANCriterionConfig(points=32))).to("cuda:0")
    step.text = TextEncoder(network.clip, False).encode_names(NAMES.names, "vild").clone()
    _check_training_step(step, totals_of([2, 0], 5, 0.1))
    assert asked and all(device.type == "cuda" for device in asked)


def test_ovseg_makes_a_training_step(cuda: None) -> None:
    model = tiny_ovseg(decoder_layers=2)
    step = OVSegStep(model, OVSegCriterion(OVSegCriterionConfig())).to("cuda:0")
    clip = model.clip_adapter.clip_model
    step.text = TextEncoder(clip, False).encode_names(NAMES.names, "vild").clone()
    _check_training_step(step, totals_of([2, 0], 5, 0.1))


@pytest.mark.parametrize("duplicates", ["negative", "ignore"])
def test_clip_tuning_makes_a_step(cuda: None, duplicates: Any) -> None:
    clip = MaskPromptedCLIP(clip_config(16, 64), 2)
    nn.init.normal_(clip.visual.mask_embedding)
    config = FinetuneConfig(mask_prompt_depth=2, duplicates=duplicates)
    step = FinetuneStep(clip, config, Processes(device=torch.device("cuda:0"))).to("cuda:0")
    masks = torch.zeros(2, 1, 64, 64)
    masks[..., :32] = 1
    batch: PairBatch = {
        "images": torch.randn(2, 3, 64, 64).to("cuda:0"),
        "masks": masks.to("cuda:0"),
        "titles": ["dog", "sky"],
    }
    texts = nn.functional.normalize(torch.randn(2, 32), dim=-1).to("cuda:0")
    for cached in (None, step.cache([batch], [texts])[0]):
        loss = step(batch, Known(texts, cached))["loss_contrastive"]
        assert loss.device.type == "cuda" and np.isfinite(loss.item())
        loss.backward()
        assert clip.visual.mask_embedding.grad.device.type == "cuda"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", ["san", "ovseg", "clip"])
def test_training_steps_are_autocast_on_cuda(
    method: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeTensorMode(), _autocast(dtype_of(precision)):
        # Choosing pairs needs numbers; any pairs will do for types and devices.
        pairs = Match(torch.arange(2), torch.arange(2))
        nothing = Match(pairs.queries[:0], pairs.targets[:0])
        for criterion in (SANCriterion, OVSegCriterion):
            monkeypatch.setattr(criterion, "match", lambda *_: [pairs, nothing])
        monkeypatch.setattr("san.task.PerImageDraws", _FakeDraws)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # needs a driver
        step, inner, batch, common = _fake_step(method)
        seen: list[torch.dtype] = []
        inner.register_forward_hook(lambda _layer, _input, output: seen.append(output.dtype))
        losses = step(batch, common)
    assert seen and set(seen) == {dtype_of(precision)}
    assert losses and all(loss.device.type == "cuda" for loss in losses.values())
    assert all(loss.dtype == torch.float32 and loss.requires_grad for loss in losses.values())


@contextmanager
def _autocast(dtype: torch.dtype) -> Iterator[None]:
    """Switch CUDA's autocast on; `torch.autocast` does not without a driver."""
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)
        torch.clear_autocast_cache()


class _FakeDraws:
    """Random points without the generators, which only a driver can make."""

    def __init__(self, _seeds: object, device: torch.device) -> None:
        self.device = device

    def __call__(self, counts: Sequence[int], points: int) -> torch.Tensor:
        """Draw points."""
        return torch.rand(sum(counts), points, 2, device=self.device)


def _fake_step(method: str) -> tuple[nn.Module, nn.Module, Any, Any]:
    """Return a step in training, a layer in it that must be autocast, and the step's arguments."""
    images, masks = torch.zeros(2, 3, 64, 64), torch.zeros(2, 1, 64, 64)
    step: Any
    with _disable_current_modes():
        clip = MaskPromptedCLIP(clip_config(16, 64), 2)
        san, ovseg = tiny_san(), tiny_ovseg(decoder_layers=2)
    if method == "clip":
        processes = Processes(device=torch.device("cuda:0"))
        step = FinetuneStep(clip, FinetuneConfig(mask_prompt_depth=2), processes)
        pairs = {"images": images.cuda(), "masks": masks.cuda(), "titles": ["dog", "sky"]}
        inner, common = clip.visual.blocks[0].mlp, Known(torch.zeros(2, 32).cuda(), None)
        return _to_fake_cuda(step), inner, pairs, common
    if method == "san":
        step = SANStep(san, SANCriterion(SANCriterionConfig(points=32)))
        inner = san.side_adapter.vit_model.blocks[0].mlp.fc1
    else:
        step = OVSegStep(ovseg, OVSegCriterion(OVSegCriterionConfig()))
        inner = ovseg.backbone.layers[0].blocks[0].mlp.fc1
    step.text = torch.zeros(len(NAMES.names), 32).cuda()
    here = [torch.zeros(count, 64, 64, dtype=torch.bool).cuda() for count in (2, 0)]
    labels = [torch.arange(len(mask)).cuda() for mask in here]
    step.targets = lambda _batch: list(map(Targets, labels, here))
    batch = {"images": images.byte().cuda(), "ids": ["a", "b"], "seeds": [1, 2]}
    return _to_fake_cuda(step), inner, batch, totals_of([2, 0], 5, 0.1)


def _to_fake_cuda(step: nn.Module) -> nn.Module:
    """Give a step fake tensors of CUDA, as `to` would if there were one."""
    for part in step.train().modules():
        known: dict[str, Any] = part._parameters
        buffers: dict[str, Any] = part._buffers
        for tensors in (known, buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda:0")
                    tensors[name] = nn.Parameter(fake) if tensors is known else fake
    return step
