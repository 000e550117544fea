"""The training task that adapts CLIP to masked crops: its parameters, initial weights and scores.

Source: OVSeg paper sections 3.2 and 3.3; SPEC ovseg 11.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openvocab.clip.model import CLIP, VisionTransformer
from openvocab.clip.prompts import TextEncoder
from openvocab.clip.weights import choices_of, stored_choices
from openvocab.computation import dtype_of
from openvocab.errors import InputError
from openvocab.training.distributed import Processes, join_processes
from openvocab.training.losses import Losses
from openvocab.training.run import begin_run, train_task
from openvocab.training.schedule import CosineSchedule, parameter_groups
from openvocab.training.task import Task
from openvocab.weights.state_dict import TRAINED_ON, load_strict, save_state_dict
from ovseg._convert import PROMPTS, read_mask_clip
from ovseg.contrastive import Cached, contrastive_loss
from ovseg.mask_clip import LOGIT_SCALE, MaskPromptedCLIP
from ovseg.pairs import Pair, PairData, PairItem, check_crops, read_pairs
from ovseg.train_config import FinetuneConfig, FinetuneOptimizerConfig

MAX_LOG_SCALE = math.log(100)
_UNDECAYED = ("bn", "ln", "bias", "logit_scale")


class PairBatch(TypedDict):
    """Crops (B, 3, S, S), foreground (B, 1, S, S), and their titles."""

    images: Tensor
    masks: Tensor
    titles: list[str]


class Known(NamedTuple):
    """The inputs of a micro-batch's step beside its crops.

    Attributes:
        texts: unit-length embeddings of its titles (B, E).
        cached: None if the micro-batch is all that this process has.
    """

    texts: Tensor
    cached: Cached | None


class FinetuneStep(nn.Module):
    """The step from crops and nouns to the loss, which the processes run in parallel."""

    def __init__(self, clip: CLIP, config: FinetuneConfig, processes: Processes) -> None:
        super().__init__()
        self.visual, self.logit_scale = clip.visual, clip.logit_scale
        self.prompted = config.mask_prompt_depth > 0
        self.duplicates, self.processes = config.duplicates, processes

    def forward(self, batch: PairBatch, known: Known) -> Losses:
        """Compare crops with all titles of the batch."""
        features = self.embed(batch)
        if known.cached is not None:
            loss = known.cached.replay(features, self.logit_scale)
        else:
            loss = self.compare(features, known.texts, batch["titles"], self.logit_scale)
        return {"loss_contrastive": loss}

    def embed(self, batch: PairBatch) -> Tensor:
        """Return unit-length embeddings of crops (B, E)."""
        features = encode_crops(self.visual, batch, prompted=self.prompted)
        return F.normalize(features.float(), dim=-1)

    def compare(
        self, features: Tensor, texts: Tensor, titles: Sequence[str], logit_scale: Tensor
    ) -> Tensor:
        """Return the loss of this process's crops (N, E) and titles (N, E), in fp32."""
        numbers = [zlib.crc32(title.encode()) for title in titles]
        with torch.autocast(texts.device.type, enabled=False):
            return contrastive_loss(
                features,
                texts,
                logit_scale.exp(),
                groups=torch.tensor(numbers, device=texts.device),
                duplicates=self.duplicates,
                processes=self.processes,
            )

    def cache(self, batches: Sequence[PairBatch], texts: Sequence[Tensor]) -> list[Cached]:
        """Compute the loss of several micro-batches as of one, and its gradients.

        Every crop is compared with the nouns of the whole batch, so no micro-batch has a loss of
        its own. All crops are embedded without a graph; the loss's gradient by the embeddings is
        all that each micro-batch needs when it is embedded again.

        Source: Gao et al. 2021 (GradCache).
        """
        with torch.no_grad():
            features = [self.embed(batch) for batch in batches]
        whole = torch.cat(features).requires_grad_()
        scale = self.logit_scale.detach().clone().requires_grad_()
        titles = [title for batch in batches for title in batch["titles"]]
        loss = self.compare(whole, torch.cat(list(texts)), titles, scale)
        by_features, by_scale = torch.autograd.grad(loss, (whole, scale))
        split = torch.split(by_features, [len(part) for part in features])
        return [Cached(loss.detach(), part, by_scale, len(batches)) for part in split]


def encode_crops(visual: VisionTransformer, batch: PairBatch, *, prompted: bool) -> Tensor:
    """Embed a batch of crops (B, E), with prompts in place of background patches if asked for."""
    if prompted:
        embedded: Tensor = visual(batch["images"], batch["masks"])
    else:
        embedded = visual(batch["images"])
    return embedded


def mark_trainable(clip: CLIP) -> dict[str, nn.Parameter]:
    """Freeze the rest; return the mask prompts, or the image tower, and the temperature."""
    clip.requires_grad_(False)
    prompted = isinstance(clip, MaskPromptedCLIP)
    trained = {
        name: parameter
        for name, parameter in clip.named_parameters()
        if name == "logit_scale" or (name == PROMPTS if prompted else name.startswith("visual."))
    }
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained


def make_optimizer(
    trained: Mapping[str, nn.Parameter], config: FinetuneOptimizerConfig
) -> torch.optim.AdamW:
    """Group what is trained by learning rate and weight decay."""

    def decay(name: str) -> float:
        if name == PROMPTS:
            return config.prompt_weight_decay
        free = trained[name].ndim < 2 or any(word in name for word in _UNDECAYED)
        return 0.0 if free else config.weight_decay

    def rate(name: str) -> float:
        return config.base_lr * (config.prompt_lr_multiplier if name == PROMPTS else 1.0)

    groups = parameter_groups(trained, rate=rate, decay=decay)
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps)


def _validation_pairs(config: FinetuneConfig) -> list[Pair]:
    if config.validation is None:
        return []
    pairs = read_pairs(config.validation)
    check_crops(pairs, config.validation, masked=config.mask_prompt_depth > 0)
    return pairs


class FinetuneTask(Task[PairBatch]):
    """Everything the engine needs to adapt a CLIP."""

    module: FinetuneStep

    def __init__(self, clip: CLIP, config: FinetuneConfig, processes: Processes) -> None:
        pairs = read_pairs(config.pairs)
        if len(pairs) < config.run.batch:
            raise InputError(
                f"{config.pairs} has {len(pairs)} pairs, less than a batch of {config.run.batch}; "
                "give a smaller run.batch"
            )
        check_crops(pairs, config.pairs, masked=config.mask_prompt_depth > 0)
        self.clip, self.config, self.processes = clip, config, processes
        size = clip.config.vision.image_size
        self.samples = len(pairs)
        self._titles = sorted({pair.title for pair in pairs})
        self.data = PairData(pairs, size, config.scale, config.run.seed)
        self.module = FinetuneStep(clip, config, processes)
        self.optimizer = make_optimizer(mark_trainable(clip), config.optimizer)
        self.steps = config.epochs * (len(pairs) // config.run.batch)
        self.schedule = CosineSchedule(self.steps, config.warmup_steps)
        self._validation = _validation_pairs(config)

    @property
    def checkpointed(self) -> Sequence[nn.Module]:
        """The blocks of the image tower."""
        return self.clip.visual.blocks

    def begin(self, device: torch.device) -> None:
        """Embed every title once, with the locked text tower.

        All at the start: which titles are embedded together changes the last bit, and a run that
        was killed must not group them in another way.
        """
        self.use(device)
        self._text.encode_texts(self._titles)

    def use(self, device: torch.device) -> None:
        """Move the CLIP to a device, with a text encoder of its own."""
        self.clip.to(device)
        self._text = TextEncoder(self.clip, cache_dir=False)

    def collate(self, items: list[PairItem]) -> PairBatch:
        """Stack items."""
        return {
            "images": torch.stack([item["image"] for item in items]),
            "masks": torch.stack([item["mask"] for item in items]),
            "titles": [item["title"] for item in items],
        }

    def prepare(self, batches: Sequence[PairBatch], processes: Processes) -> list[Known]:
        """Embed the titles as they are, without a template; and the crops, if they are split."""
        texts = [self._text.encode_texts(batch["titles"]).clone() for batch in batches]
        if len(batches) == 1:
            return [Known(texts[0], None)]
        precision, device = self.config.run.precision, texts[0].device.type
        with torch.autocast(device, dtype_of(precision), enabled=precision != "fp32"):
            cached = self.module.cache(batches, texts)
        return [Known(*pair) for pair in zip(texts, cached, strict=True)]

    def part(self, common: list[Known], index: int) -> Known:
        """Return the further inputs of micro-batch `index`."""
        return common[index]

    def after_step(self) -> None:
        """Keep the temperature in its range."""
        self.clip.logit_scale.clamp_(0, MAX_LOG_SCALE)

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return OpenAI's names, and `visual.mask_embedding`."""
        return self.clip.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the values that `state_dict` returned."""
        load_strict(self.clip, tensors, source="the checkpoint")

    def metadata(self) -> Mapping[str, Any]:
        """Return what the shapes do not tell of the CLIP, and the titles that it has seen."""
        return {**choices_of(self.clip.config), TRAINED_ON: self._titles}

    def export(self, folder: Path) -> None:
        """Write `model_final.safetensors`, for `ovseg.replace_clip` and `MaskCLIP.load`."""
        save_state_dict(folder / "model_final.safetensors", self.clip.state_dict(), self.metadata())

    @torch.no_grad()
    def evaluate(self, folder: Path, processes: Processes) -> dict[str, float]:
        """Classify the validation crops among all their titles: percent right."""
        if not self._validation:
            return {}
        titles = sorted({pair.title for pair in self._validation})
        classifier = self._text.encode_names(titles, "vild")
        data = PairData(self._validation, self.clip.config.vision.image_size, None)
        indices = list(range(processes.rank, len(data), processes.size))
        hits = torch.zeros(3, len(titles), dtype=torch.float64)  # first, among five, all
        for start in range(0, len(indices), self.config.run.batch):
            rows = indices[start : start + self.config.run.batch]
            batch = self.collate([data[row, row] for row in rows])
            truth = torch.tensor([titles.index(title) for title in batch["titles"]])
            hits += self._hits(batch, classifier, truth)
        total = torch.tensor(processes.sum(hits.flatten().tolist())).view_as(hits)
        top1, top5, count = total
        seen = count > 0
        return {
            "top1": 100 * float(top1.sum() / count.sum()),
            "top5": 100 * float(top5.sum() / count.sum()),
            "macro": 100 * float((top1[seen] / count[seen]).mean()),
        }

    def _hits(self, batch: PairBatch, classifier: Tensor, truth: Tensor) -> Tensor:
        """Count, for each class, crops named right first, within five, and at all: (3, K)."""
        device = classifier.device
        moved: PairBatch = {
            "images": batch["images"].to(device),
            "masks": batch["masks"].to(device),
            "titles": batch["titles"],
        }
        prompted = self.config.mask_prompt_depth > 0
        features = encode_crops(self.clip.visual, moved, prompted=prompted)
        logits = LOGIT_SCALE * F.normalize(features.float(), dim=-1) @ classifier.T
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu() == truth[:, None]
        rows = torch.stack([best[:, 0], best.any(1), torch.ones_like(truth, dtype=torch.bool)])
        return torch.zeros(3, len(classifier), dtype=torch.float64).index_add_(
            1, truth, rows.double()
        )


def clip_to_finetune(config: FinetuneConfig) -> CLIP:
    """Load the CLIP to start from, and add mask prompts if they are to be learned and are missing.

    Raises:
        InputError: it has another number of prompts, or prompts that full fine-tuning would drop.
    """
    activation = config.activation
    if activation is None and Path(config.clip).is_file():
        activation = stored_choices(config.clip)[0] or "quick_gelu"
    architecture, tensors, prompted = read_mask_clip(config.clip, activation)
    depth = config.mask_prompt_depth
    if not depth:
        if prompted:
            raise InputError(f"{config.clip} has mask prompts; give --mask-prompt-depth")
        clip = CLIP(architecture)
        tensors = {name: tensor for name, tensor in tensors.items() if name != PROMPTS}
        load_strict(clip, tensors, source=config.clip)
        return clip
    model = MaskPromptedCLIP(architecture, depth)
    nn.init.normal_(model.visual.mask_embedding, std=0.02)
    if not prompted:
        tensors = {**tensors, PROMPTS: model.visual.mask_embedding.detach()}
    elif len(tensors[PROMPTS]) != depth:
        found = len(tensors[PROMPTS])
        raise InputError(
            f"{config.clip} has {found} layers of prompts; mask_prompt_depth is {depth}"
        )
    load_strict(model, tensors, source=config.clip)
    return model


def finetune(config: FinetuneConfig, *, resume: bool) -> int:
    """Run an adaptation; returns the exit code."""
    with begin_run(config.run, resume=resume) as processes:
        task = FinetuneTask(clip_to_finetune(config), config, processes)
        return train_task(task, config, processes, resume=resume)


def evaluate_only(config: FinetuneConfig) -> int:
    """Classify the validation pairs with the given CLIP, and print the scores."""
    if config.validation is None:
        raise InputError("--eval-only needs --validation FILE with pairs")
    with join_processes(config.run.device) as processes:
        task = FinetuneTask(clip_to_finetune(config), config, processes)
        task.use(processes.device)
        scores = task.evaluate(config.run.output, processes)
    if processes.is_main:
        print("  ".join(f"{name} {value:.2f}" for name, value in scores.items()))
    return 0
