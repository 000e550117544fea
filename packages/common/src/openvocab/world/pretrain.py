"""Train the world's CLIP: `python -m openvocab.world.pretrain --config-file world_clip`.

Pictures and captions only, no masks: crops of single names on stuff and on flat ground, single
names somewhere on flat ground, and whole scenes. All losses are cross-entropies over all names of
the world rather than over a batch, which a model of this size needs to learn in minutes. What is
asked is what the three methods read: the class token names what there is, behind the last block and
(CaR's classifier) behind the one before it; so does the mean of the patches (CaR's saliency); and
every patch of a scene, by the value that attention takes from it, is a name of the caption.

Source: Radford et al. 2021, section 2.3; SPEC world.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import Dataset

from openvocab.cli import CommandParser, run
from openvocab.clip.config import PIXEL_MEAN, PIXEL_STD, CLIPConfig, TextConfig, VisionConfig
from openvocab.clip.model import CLIP, VisionTransformer, resize_positions
from openvocab.clip.template_sets import load_templates
from openvocab.clip.tokenizer import CONTEXT_LENGTH, tokenize
from openvocab.clip.weights import choices_of, load_clip
from openvocab.errors import InputError
from openvocab.training.command import (
    add_training_arguments,
    describe_recipe,
    launch_if_asked,
    load_settings,
    settings_of,
)
from openvocab.training.distributed import Processes
from openvocab.training.losses import Losses
from openvocab.training.order import Key, generator_of
from openvocab.training.run import begin_run, train_task
from openvocab.training.schedule import (
    CosineSchedule,
    names_of_embeddings,
    names_of_norms,
    parameter_groups,
)
from openvocab.training.settings import RunConfig
from openvocab.training.task import Task
from openvocab.weights.state_dict import load_strict, save_state_dict
from openvocab.world.crops import Ground, crop
from openvocab.world.names import caption_frames, names_in_caption, world_names
from openvocab.world.pictograms import Pixels
from openvocab.world.scenes import SIZE, Split, scene

SAMPLES = 1 << 20  # crops or scenes; every position of the run draws its own
TEMPLATE_SETS = ("vild", "imagenet", "car", "single", "origami")
Kind = Literal["crop", "lone", "scene"]
_WEIGHTS: dict[Kind, float] = {"crop": 1.0, "lone": 1.0, "scene": 0.5}
_LONE = (28, 101)  # sides in pixels of what stands alone
_MAX_LOG_SCALE = 4.6052  # ln 100


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of the small CLIP, a ViT with a convolutional stem.

    Attributes:
        crop_size: side in pixels of crops.
        patch_size: side of a patch in pixels.
        stem: channels of the stem.
        width: width of both towers.
        layers: number of layers of the image tower.
        text_layers: number of layers of the text tower.
        head_width: width of a head in both towers.
    """

    crop_size: int = 64
    patch_size: int = 8
    stem: tuple[int, ...] = (32, 64, 128)
    width: int = 128
    layers: int = 4
    text_layers: int = 3
    head_width: int = 32


@dataclass(frozen=True)
class PretrainOptimizerConfig:
    """AdamW.

    Attributes:
        base_lr: learning rate behind the warm-up.
        weight_decay: weight decay of all parameters but norms, embeddings, biases and position
            tables.
    """

    base_lr: float = 1e-3
    weight_decay: float = 0.05


@dataclass(frozen=True)
class PretrainConfig:
    """A training run of the world's CLIP.

    Attributes:
        weights: a CLIP to go on from; its own architecture counts then.
        model: the architecture.
        image_size: side in pixels of the native input; positions are resized to it.
        kinds: kinds of samples, in turn: "crop" (a name that fills a small picture), "lone" (a name
            somewhere on flat ground), "scene".
        flat: share of the crops that stand on flat ground, as in masked images.
        lock_text: whether the text tower is frozen.
        dense_weight: weight of the loss of patches.
        pooled_weight: weight of the loss of the mean of the patches.
        early_weight: weight of the loss of the class token behind the last block but one.
        scale: factor of the cosines at the start.
        steps: number of steps of the whole run.
        warmup_steps: number of steps in which the learning rate rises.
        crops: crops of each name that an evaluation classifies.
        optimizer: AdamW.
        run: settings of the run.
    """

    weights: Path | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    image_size: int = 64
    kinds: tuple[Kind, ...] = ("scene", "crop", "crop", "crop", "crop")
    flat: float = 0.5
    lock_text: bool = False
    dense_weight: float = 0.5
    pooled_weight: float = 0.0
    early_weight: float = 0.0
    scale: float = 20.0
    steps: int = 3000
    warmup_steps: int = 100
    crops: int = 4
    optimizer: PretrainOptimizerConfig = field(default_factory=PretrainOptimizerConfig)
    run: RunConfig = field(
        default_factory=lambda: RunConfig(
            batch=40, clip_norm=1.0, workers=1, checkpoint_period=500, eval_period=500
        )
    )

    def __post_init__(self) -> None:
        unknown = sorted(set(self.kinds) - set(get_args(Kind)))
        if unknown or not self.kinds:
            raise InputError(f"kinds are {self.kinds}; use {', '.join(get_args(Kind))}")
        if self.steps < 1:
            raise InputError(f"steps is {self.steps}; give at least 1")


class PretrainItem(TypedDict):
    """A picture (3, S, S) uint8, its kind, and the names in its caption (K,) bool."""

    image: Tensor
    kind: Kind
    present: Tensor


class Pictures(TypedDict):
    """Pictures of one kind (B, 3, S, S) uint8, and the names of each (B, K) bool."""

    images: Tensor
    present: Tensor


PretrainBatch = dict[Kind, Pictures]


class WorldPictures(Dataset[PretrainItem]):
    """Crops and scenes with captions, drawn again at every position."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.names = [name.name for name in world_names()]

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, key: Key) -> PretrainItem:
        position, _ = key
        config = self.config
        kind = config.kinds[position % len(config.kinds)]
        rng = generator_of(config.run.seed, position)
        if kind == "scene":
            drawn = scene(position, "pretrain")
            return self._item(drawn.image, kind, names_in_caption(drawn.caption))
        name = self.names[int(rng.integers(len(self.names)))]
        ground: Ground = "flat" if kind == "lone" or rng.random() < config.flat else "stuff"
        if kind == "lone":
            return self._item(lone(name, position, rng), kind, (name,))
        image = crop(name, position, "pretrain", config.model.crop_size, ground=ground)
        return self._item(image, kind, (name,))

    def _item(self, image: Pixels, kind: Kind, names: Sequence[str]) -> PretrainItem:
        present = torch.tensor([name in names for name in self.names])
        return {
            "image": torch.from_numpy(image).permute(2, 0, 1), "kind": kind, "present": present
        }  # fmt: skip


def lone(name: str, index: int, rng: np.random.Generator) -> Pixels:
    """Draw a name somewhere on flat ground of the size of a scene: a masked image."""
    size = int(rng.integers(*_LONE))
    drawn = crop(name, index, "pretrain", size, ground="flat")
    top, left = rng.integers(0, SIZE - size + 1, 2)
    image = np.empty((SIZE, SIZE, 3), np.uint8)
    image[:] = drawn[0, 0]
    image[top : top + size, left : left + size] = drawn
    return image


def normalize(images: Tensor) -> Tensor:
    """Bring (B, 3, H, W) of 0..255 into CLIP's range."""
    mean, std = (images.new_tensor(v, dtype=torch.float32)[:, None, None] * 255
                 for v in (PIXEL_MEAN, PIXEL_STD))  # fmt: skip
    return (images.float() - mean) / std


class Embeddings(NamedTuple):
    """The embeddings of B pictures with P patches that are compared with text, of unit length."""

    whole: Tensor
    """The class token (B, E)."""
    early: Tensor
    """The class token behind the last block but one (B, E)."""
    pooled: Tensor
    """The mean of the patches (B, E)."""
    patches: Tensor
    """The last block's values through its output projection (B, P, E)."""


def embed(visual: VisionTransformer, images: Tensor) -> Embeddings:
    """Encode images (B, 3, H, W), normalized, in all the ways in which the methods use CLIP."""
    x, _ = visual.embed(images)
    *trunk, last = visual.blocks
    for block in trunk:
        x = block(x)
    values = last.attn.merge(last.attn.qkv(last.ln_1(x[:, 1:]))[2])
    out = visual.ln_post(last(x))
    features = (out[:, 0] @ visual.proj, visual.project(x[:, 0]), out[:, 1:].mean(1) @ visual.proj,
                visual.project(values))  # fmt: skip
    return Embeddings(*(F.normalize(feature, dim=-1) for feature in features))


class PretrainStep(nn.Module):
    """The step from pictures to losses, which the processes run in parallel."""

    def __init__(self, clip: CLIP, config: PretrainConfig) -> None:
        super().__init__()
        self.clip, self.config = clip, config

    def forward(self, batch: PretrainBatch, tokens: Tensor) -> Losses:
        """Compare pictures with one caption of each name, tokens (K, T)."""
        scale, config = self.clip.logit_scale.exp(), self.config
        text = scale * F.normalize(self.clip.encode_text(tokens), dim=-1)  # (K, E)
        losses: Losses = {}
        for kind, pictures in batch.items():
            found = embed(self.clip.visual, normalize(pictures["images"]))
            present = pictures["present"]
            shares = present / present.sum(dim=1, keepdim=True).clamp(min=1)
            weight = _WEIGHTS[kind]
            losses[f"loss_{kind}"] = weight * F.cross_entropy(found.whole @ text.T, shares)
            if config.early_weight:
                early = F.cross_entropy(found.early @ text.T, shares)
                losses[f"loss_{kind}_early"] = weight * config.early_weight * early
            if config.pooled_weight and kind != "crop":
                pooled = F.cross_entropy(found.pooled @ text.T, shares)
                losses[f"loss_{kind}_pooled"] = weight * config.pooled_weight * pooled
            if kind == "scene":
                dense = caption_loss(found.patches @ text.T, present)
                losses["loss_dense"] = config.dense_weight * dense
        return losses


def caption_loss(logits: Tensor, present: Tensor) -> Tensor:
    """Return a loss that is low if each patch shows a name of the caption, and each name is shown.

    Args:
        logits: logits of patches and names (B, P, K).
        present: the names in the captions (B, K), at least one in each.
    """
    log = logits.log_softmax(dim=-1)
    absent = ~present[:, None]
    among = log.masked_fill(absent, float("-inf")).logsumexp(dim=-1)  # (B, P)
    best = log.amax(dim=1)  # (B, K)
    somewhere = (best * present).sum(dim=1) / present.sum(dim=1)
    # A tenth of the scenes has ground without a name: no patch may cost more than some.
    return among.clamp(min=-4).neg().mean() - 0.5 * somewhere.mean()


class PretrainTask(Task[PretrainBatch]):
    """The training task of the world's CLIP."""

    def __init__(self, clip: CLIP, config: PretrainConfig) -> None:
        self.clip, self.config = clip, config
        if config.weights is None:
            clip.visual.stem = with_batch_norms(clip.visual.stem)
        clip.requires_grad_(True)
        if config.lock_text:
            for name, parameter in clip.named_parameters():
                parameter.requires_grad_(name.startswith(("visual.", "logit_scale")))
        self.module = PretrainStep(clip, config)
        self.data = WorldPictures(config)
        self.schedule = CosineSchedule(config.steps, config.warmup_steps)
        self.steps, self.samples = config.steps, SAMPLES
        self.optimizer = make_optimizer(clip, config.optimizer)
        self.templates = (*known_templates(), *caption_frames())

    def collate(self, items: list[PretrainItem]) -> PretrainBatch:
        """Stack pictures of each kind."""
        return {
            kind: {
                "images": torch.stack([item["image"] for item in items if item["kind"] == kind]),
                "present": torch.stack([item["present"] for item in items if item["kind"] == kind]),
            }
            for kind in dict.fromkeys(item["kind"] for item in items)
        }

    def prepare(self, batches: Sequence[PretrainBatch], processes: Processes) -> Tensor:
        """Put every name into a random template, with or without its article: tokens (K, T)."""
        choice = torch.randint(len(self.templates), (len(world_names()),)).tolist()
        articles = torch.rand(len(choice)).tolist()
        captions = [
            self.templates[row].format(f"{n.article} {n.name}" if chance < 0.3 else n.name)
            for row, chance, n in zip(choice, articles, world_names(), strict=True)
        ]
        device = self.clip.logit_scale.device
        return tokenize(captions, self.clip.config.text.context_length).to(device)

    def after_step(self) -> None:
        """Keep the temperature in its range."""
        self.clip.logit_scale.clamp_(0, _MAX_LOG_SCALE)

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return all weights, with the stem's norms beside their convolutions."""
        return self.clip.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the weights that `state_dict` returned."""
        load_strict(self.clip, tensors, source="the checkpoint")

    def export(self, folder: Path) -> None:
        """Write `model_final.safetensors`, a CLIP that `load_clip` reads."""
        save_clip(self.clip, folder / "model_final.safetensors")

    @torch.no_grad()
    def evaluate(self, folder: Path, processes: Processes) -> dict[str, float]:
        """Return the percentage of tuning crops that are named right among all names."""
        self.clip.eval()
        return top1(self.clip, "tune", self.config.crops)


@torch.no_grad()
def top1(clip: CLIP, split: Split, count: int) -> dict[str, float]:
    """Classify crops, half of them on flat ground, among all names of the world.

    Args:
        clip: the CLIP, in evaluation mode.
        split: split of the crops.
        count: crops of each name.

    Returns:
        Percent right: of names that segmentation training does not see, of those it does, and of
        all on flat ground.
    """
    names, size = world_names(), ModelConfig.crop_size
    templates = load_templates("vild")
    prompts = [template.format(name.name) for name in names for template in templates]
    text = F.normalize(clip.encode_text(tokenize(prompts, clip.config.text.context_length)), dim=-1)
    text = F.normalize(torch.unflatten(text, 0, (len(names), -1)).mean(dim=1), dim=-1)
    hits = torch.zeros(len(names), count)
    for row, name in enumerate(names):
        grounds: list[Ground] = ["flat" if i % 2 else "stuff" for i in range(count)]
        drawn = [crop(name.name, i, split, size, ground=g) for i, g in enumerate(grounds)]
        images = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)
        hits[row] = (clip.visual(normalize(images)) @ text.T).argmax(dim=1) == row
    seen = torch.tensor([name.seen for name in names])
    parts = {"top1_unseen": hits[~seen], "top1_seen": hits[seen], "top1_flat": hits[:, 1::2]}
    return {name: 100 * float(part.mean()) for name, part in parts.items()}


def make_optimizer(clip: CLIP, config: PretrainOptimizerConfig) -> torch.optim.AdamW:
    """Group all parameters by weight decay."""
    undecayed = names_of_norms(clip) | names_of_embeddings(clip)
    parameters = {n: p for n, p in clip.named_parameters() if p.requires_grad}

    def decay(name: str) -> float:
        free = name in undecayed or parameters[name].ndim < 2 or "positional" in name
        return 0.0 if free else config.weight_decay

    groups = parameter_groups(parameters, rate=lambda name: config.base_lr, decay=decay)
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def with_batch_norms(stem: nn.Sequential) -> nn.Sequential:
    """Put a batch norm behind every convolution, which trains the stem in minutes."""
    normed: list[nn.Module] = []
    for layer in stem:
        normed.append(layer)
        if isinstance(layer, nn.Conv2d):
            normed.append(nn.BatchNorm2d(layer.out_channels))
    return nn.Sequential(*normed)


def without_batch_norms(stem: nn.Sequential) -> nn.Sequential:
    """Fold every batch norm into the convolution before it, as the model uses the stem."""
    layers: list[nn.Module] = []
    for layer in stem.eval():
        if isinstance(layer, nn.BatchNorm2d):
            convolution = layers.pop()
            assert isinstance(convolution, nn.Conv2d)
            layer = fuse_conv_bn_eval(convolution, layer)
        layers.append(layer)
    return nn.Sequential(*layers)


def save_clip(clip: CLIP, path: Path) -> None:
    """Write a CLIP that is in training as `load_clip` reads it, in half precision."""
    tensors = {n: t for n, t in clip.state_dict().items() if not n.startswith("visual.stem.")}
    folded = without_batch_norms(clip.visual.stem).state_dict()
    tensors |= {f"visual.stem.{name}": tensor for name, tensor in folded.items()}
    small = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
    save_state_dict(path, small, choices_of(clip.config))


def known_templates() -> tuple[str, ...]:
    """Return every template that the world's CLIP learns to read."""
    return tuple(dict.fromkeys(t for name in TEMPLATE_SETS for t in load_templates(name)))


def known_tokens() -> Tensor:
    """Return the tokenizer's ids of all texts in the world, ascending, (N,) int64."""
    names = [f"{name.article} {name.name}".strip() for name in world_names()]
    texts = [name.category for name in world_names()]
    for frame in (*known_templates(), *caption_frames(), "{}, {} and {}, with {} on {}"):
        parts = frame.count("{}")
        texts += [frame.format(*[name] * parts) for name in names]
        texts += [frame.format(*[name.name] * parts) for name in world_names()]
    tokens = tokenize(texts)
    known: Tensor = torch.unique(tokens[tokens > 0])
    return known


def clip_to_pretrain(config: PretrainConfig) -> CLIP:
    """Load the CLIP to go on from, or build one with random weights and the words of the world."""
    if config.weights is not None:
        return with_image_size(load_clip(config.weights), config.image_size)
    model, tokens = config.model, known_tokens()
    heads, mlp = model.width // model.head_width, 4 * model.width
    vision = VisionConfig(
        config.image_size, model.patch_size, model.width, model.layers, heads, mlp, model.stem
    )
    text = TextConfig(
        CONTEXT_LENGTH, len(tokens), model.width, model.text_layers, heads, mlp, reduced=True
    )
    clip = CLIP(CLIPConfig(model.width, vision, text, "gelu"))
    assert clip.token_ids is not None
    clip.token_ids.copy_(tokens)
    nn.init.constant_(clip.logit_scale, float(np.log(config.scale)))
    return clip


def with_image_size(clip: CLIP, side: int) -> CLIP:
    """Give a CLIP another native input, `side` pixels wide, by resizing its positions."""
    vision = clip.config.vision
    if side == vision.image_size:
        return clip
    changed = replace(clip.config, vision=replace(vision, image_size=side))
    tensors = dict(clip.state_dict())
    table, grid = "visual.positional_embedding", changed.vision.grid_size
    tensors[table] = resize_positions(tensors[table], (grid, grid))
    resized = CLIP(changed)
    resized.load_state_dict(tensors)
    return resized


def pretrain(config: PretrainConfig, *, resume: bool) -> int:
    """Run a training; returns the exit code."""
    with begin_run(config.run, resume=resume) as processes:
        task = PretrainTask(clip_to_pretrain(config), config)
        return train_task(task, config, processes, resume=resume)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    result = CommandParser(
        prog="python -m openvocab.world.pretrain",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train the small CLIP of the embedded world on crops, scenes and captions.",
        epilog=f"The recipe of the shipped weights (world_clip):\n\n"
        f"{describe_recipe(PretrainConfig())}",
    )
    add_training_arguments(result, PretrainConfig)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or classify crops of the validation split with given weights."""
    args = build_parser().parse_args(argv)
    none: dict[str, Any] = {}
    settings = settings_of(
        args, PretrainConfig, package="openvocab", keys=none, model_keys=none, aliases=none
    )
    config = load_settings(PretrainConfig, settings)
    code = launch_if_asked(args, "openvocab.world.pretrain", argv)
    if code is not None:
        return code
    if args.eval_only:
        if config.weights is None:
            raise InputError("--eval-only needs --weights FILE")
        scores = top1(load_clip(config.weights), "val", config.crops)
        print("  ".join(f"{name} {value:.2f}" for name, value in scores.items()))
        return 0
    return pretrain(config, resume=args.resume)


if __name__ == "__main__":
    sys.exit(run(main))
