"""Adapting CLIP to masked crops: the recorded step, the loss, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from openvocab.cli import run
from openvocab.clip.model import CLIP
from openvocab.clip.weights import config_from_state_dict
from openvocab.errors import InputError
from openvocab.training.distributed import Processes
from openvocab.training.log import read_log
from openvocab.weights.state_dict import load_strict
from openvocab.weights.training_names import training_names
from ovseg import finetune_clip, finetune_task
from ovseg._convert import CLIP_PREFIX, PROMPTS
from ovseg.contrastive import contrastive_loss
from ovseg.finetune_clip import main
from ovseg.finetune_task import make_optimizer, mark_trainable
from ovseg.mask_clip import MaskCLIP, MaskPromptedCLIP
from ovseg.pairs import PAINT, PairWriter
from ovseg.train_config import FinetuneConfig, FinetuneOptimizerConfig


def test_the_recorded_step_of_mask_prompt_tuning(mpt_step) -> None:
    recorded = {name: mpt_step.tensor(name) for name in mpt_step if name != "trainable"}
    trainable = set(mpt_step["trainable"].tolist())
    tensors = {k.removeprefix("sd__"): v for k, v in recorded.items() if k.startswith("sd__")}
    config = config_from_state_dict(tensors, "quick_gelu", heads=(1, 1))
    clip = MaskPromptedCLIP(config, len(tensors[PROMPTS]))
    load_strict(clip, tensors, source="the recording")
    assert set(mark_trainable(clip)) == trainable
    images = F.normalize(clip.visual(recorded["images"], recorded["masks"]), dim=-1)
    assert torch.allclose(images, F.normalize(recorded["image_features"], dim=-1), atol=2e-5)
    texts = F.normalize(recorded["text_features"], dim=-1)
    found = F.normalize(clip.encode_text(recorded["tokens"]), dim=-1)
    assert torch.allclose(found, texts, atol=2e-5)
    loss = contrastive_loss(images, found, clip.logit_scale.exp())
    assert loss.item() == pytest.approx(recorded["loss"].item(), rel=1e-5)
    loss.backward()
    for name in trainable:
        wanted = recorded[f"grad__{name}"]
        error = (dict(clip.named_parameters())[name].grad - wanted).norm()
        assert error <= 1e-3 * wanted.norm(), name


def test_duplicates_are_negatives_or_ignored() -> None:
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(4, 8), dim=-1) for _ in range(2))
    texts[2] = texts[0]
    groups = torch.tensor([7, 8, 7, 9])
    scale = torch.tensor(10.0)
    kinds = ("negative", "ignore")
    loss = {
        k: contrastive_loss(images, texts, scale, groups=groups, duplicates=k).item() for k in kinds
    }
    assert loss["negative"] == pytest.approx(contrastive_loss(images, texts, scale).item())
    logits = scale * images @ texts.T
    rows = []
    for matrix in (logits, logits.T):
        for i in range(4):
            keep = [j for j in range(4) if j == i or groups[j] != groups[i]]
            rows.append(matrix[i, keep].logsumexp(0) - matrix[i, i])
    assert loss["ignore"] == pytest.approx(torch.stack(rows).mean().item(), rel=1e-5)
    assert loss["ignore"] < loss["negative"]
    alone = torch.arange(4)
    for kind in kinds:
        found = contrastive_loss(images, texts, scale, groups=alone, duplicates=kind).item()
        assert found == pytest.approx(loss["negative"], rel=1e-5)


def test_groups_follow_the_published_rules(tiny) -> None:
    clip = MaskPromptedCLIP(tiny.configs()[0].clip, 2)
    trained = mark_trainable(clip)
    assert set(trained) == {PROMPTS, "logit_scale"}
    optimizer = make_optimizer(trained, FinetuneOptimizerConfig(0.05, 0.2, 0.1, 3.0))
    rules = {n: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for n in g["names"]}
    assert rules[PROMPTS] == (pytest.approx(0.15), 0.1) and rules["logit_scale"] == (0.05, 0)
    assert optimizer.defaults["betas"] == (0.9, 0.98) and optimizer.defaults["eps"] == 1e-6


@pytest.fixture
def command(tmp_path: Path, tiny):
    """Arguments of a small adaptation: 12 painted crops of three classes, two steps an epoch."""
    state = {
        k.removeprefix(CLIP_PREFIX): v.clone()
        for k, v in tiny.state_dict().items()
        if k.startswith(CLIP_PREFIX) and not k.endswith("mask_embedding")
    }
    save_file(state, tmp_path / "clip.safetensors", metadata={"heads": "[1, 1]"})
    writer = PairWriter(tmp_path / "pairs")
    rng = np.random.default_rng(0)
    for index in range(12):
        crop = rng.integers(0, 90, (40, 50, 3), dtype=np.uint8)
        crop[..., index % 3] += 120
        crop[:10] = PAINT
        writer.add(str(index), [(crop, tiny.class_names()[index % 3])])
    writer.finish()

    def arguments(output: Path, *more: str) -> list[str]:
        settings = {
            "clip": tmp_path / "clip.safetensors",
            "pairs": tmp_path / "pairs" / "pairs.tsv",
            "epochs": 2,
            "warmup_steps": 1,
            "run.output": output,
            "run.batch": 6,
            "run.precision": "fp32",
            "run.workers": 0,
            "run.log_period": 1,
            "run.checkpoint_period": 2,
            "run.device": "cpu",
        }  # fmt: skip
        return [text for k, v in settings.items() for text in (f"--{k}", str(v))] + list(more)

    return arguments


def test_full_fine_tuning_then_prompts_give_a_clip_that_names_regions(
    command, tmp_path: Path, tiny
) -> None:
    full, prompts = tmp_path / "full", tmp_path / "prompts"
    validation = ["--validation", str(tmp_path / "pairs" / "pairs.tsv"), "--run.eval_period", "4"]
    assert main(command(full, *validation, "--optimizer.base_lr", "1e-4")) == 0
    lines = read_log(full / "metrics.jsonl")
    assert sum("loss_contrastive" in line for line in lines) == 4
    scores = lines[-1]
    assert 0 <= scores["top1"] <= scores["top5"] == 100 and "macro" in scores
    tuned = str(full / "model_final.safetensors")
    more = ["--mask-prompt-depth", "2", "--clip", tuned, "--optimizer.base_lr", "0.05"]
    assert main(command(prompts, *more)) == 0
    before, after = (
        MaskCLIP.load(tuned, activation="quick_gelu", heads=(1, 1)),
        MaskCLIP.load(prompts / "model_final.safetensors"),
    )
    assert not before.region.mask_prompts and after.region.mask_prompts
    for file in (tuned, prompts / "model_final.safetensors", prompts / "model_0000003.pth"):
        assert training_names(file) == tuple(sorted(tiny.class_names()[:3]))
    original = tiny.state_dict()
    for name, tensor in after.clip_model.state_dict().items():
        if name == PROMPTS:
            assert tensor.shape[0] == 2
            continue
        assert torch.equal(tensor, before.clip_model.state_dict()[name]) or name == "logit_scale"
        locked = not name.startswith("visual.") and name != "logit_scale"
        assert not locked or torch.equal(tensor, original[CLIP_PREFIX + name]), name
    numbered = MaskCLIP.load(prompts / "model_0000003.pth")  # tells its heads, too
    assert numbered.clip_model.config == after.clip_model.config
    image = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    masks = np.zeros((1, 60, 60), bool)
    masks[0, 10:40, 10:40] = True
    assert after.classify(image, masks, tiny.class_names()).sum() == pytest.approx(1)


def test_a_log_of_pairs_is_read_up_to_its_torn_line_and_other_files_are_refused(
    tmp_path: Path,
) -> None:
    crop = np.zeros((4, 4, 3), np.uint8)
    PairWriter(tmp_path).add("a", [(crop, "crab")])
    log = tmp_path / "pairs.jsonl"
    log.write_text(log.read_text() + '{"image": "b", "pai')
    assert PairWriter(tmp_path).pairs == [("crops/a_0.png", "crab")]
    for content in ('["image"]\n', '{"picture": 1}\n'):
        log.write_text(content)
        with pytest.raises(InputError, match=r"pairs\.jsonl is not a log of pairs"):
            PairWriter(tmp_path)


def test_a_killed_run_continues_to_the_bit(command, check_survival) -> None:
    check_survival("ovseg.finetune_clip", command)


def _steps(folder: Path) -> list[list[float]]:
    keys = ("loss_contrastive", "grad_norm")
    return [[line[key] for key in keys] for line in read_log(folder / "metrics.jsonl")]


def test_processes_and_accumulation_make_the_same_steps_as_one_big_batch(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, parts, two = (tmp_path / name for name in ("one", "parts", "two"))
    more = ["--duplicates", "ignore", "--optimizer.base_lr", "1e-4"]
    assert main(command(one, *more)) == 0
    assert main(command(parts, *more, "--run.grad_accum", "3")) == 0
    assert np.allclose(_steps(parts)[:3], _steps(one)[:3], rtol=1e-5)
    states = [
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (parts, one)
    ]
    for name, tensor in states[0].items():  # the temperature, too, moved as it does
        assert torch.allclose(tensor, states[1][name], atol=1e-5), name
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(command(two, *more, "--num-gpus", "2", "--run.grad_accum", "3")) == 0
    assert np.allclose(_steps(two)[:3], _steps(one)[:3], rtol=1e-5)


@pytest.mark.parametrize("depth", [0, 2])
def test_cached_gradients_are_those_of_the_whole_batch(tiny, depth: int) -> None:
    config = FinetuneConfig(mask_prompt_depth=depth)
    architecture = tiny.configs()[0].clip
    clip = MaskPromptedCLIP(architecture, depth) if depth else CLIP(architecture)
    recorded = {k.removeprefix(CLIP_PREFIX): v for k, v in tiny.state_dict().items()}
    load_strict(clip, {k: recorded[k] for k in clip.state_dict()}, source="the recording")
    torch.manual_seed(0)
    trained = mark_trainable(clip)
    step = finetune_task.FinetuneStep(clip, config, Processes())
    size, width = architecture.vision.image_size, architecture.embed_dim
    images, masks = torch.randn(6, 3, size, size), torch.zeros(6, 1, size, size)
    masks[..., : size // 2] = 1
    texts, titles = F.normalize(torch.randn(6, width), dim=-1), list("abcabd")

    def gradient(rows: list[slice]) -> torch.Tensor:
        batches = [
            {"images": images[row], "masks": masks[row], "titles": titles[row]} for row in rows
        ]
        clip.zero_grad()
        cached = step.cache(batches, [texts[row] for row in rows]) if len(rows) > 1 else [None]
        for batch, row, part in zip(batches, rows, cached, strict=True):
            known = finetune_task.Known(texts[row], part)
            (step(batch, known)["loss_contrastive"] / len(rows)).backward()
        assert all(parameter.grad.any() for parameter in trained.values())
        return torch.cat([parameter.grad.flatten() for parameter in trained.values()])

    whole = gradient([slice(0, 6)])
    parts = gradient([slice(0, 1), slice(1, 4), slice(4, 6)])
    assert (whole - parts).norm() <= 1e-5 * whole.norm()


def _config(*argv: str) -> FinetuneConfig:
    return finetune_clip.COMMAND.read(argv)[1]


@pytest.mark.parametrize(
    ("recipe", "clip", "batch", "depth", "rate"),
    [
        ("coco_proposal_1cap_finetune_VitL", "ViT-L-14:openai", 128, 0, 5e-6),
        ("coco_proposal_1cap_finetune_VitB", "ViT-B-16:openai", 512, 0, 5e-6),
        ("coco_gt_171cls_finetune_VitL", "ViT-L-14:openai", 128, 0, 5e-6),
        ("coco_proposal_1cap_mask_prompt_tuning_VitL", "finetuned.pt", 128, 3, 0.05),
    ],
)
def test_published_recipes(recipe: str, clip: str, batch: int, depth: int, rate: float) -> None:
    config = _config("--config-file", recipe)
    assert (config.clip, config.run.batch, config.mask_prompt_depth) == (clip, batch, depth)
    assert config.optimizer.base_lr == rate and config.optimizer.weight_decay == 0.2
    assert config.epochs == 5 and config.warmup_steps == 100 and config.run.clip_norm is None


ORIGINAL = """--train-data coco/pairs.tsv --model ViT-L-14 --pretrained openai --lock-text
    --csv-img-key filepath --csv-caption-key title --dataset-type csv --workers 8 --epochs 5
    --lr 5e-6 --wd 0.2 --warmup 100 --batch-size 32 --precision amp --local-loss --gather-with-grad
    --logs runs --name first --scale_min 0.8 --grad-checkpointing --report-to tensorboard"""


def test_the_originals_flags_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    published = _config("--config-file", "coco_proposal_1cap_finetune_VitL")
    monkeypatch.setenv("WORLD_SIZE", "4")  # as torchrun tells its processes
    config = _config(*ORIGINAL.split())
    assert config.clip == published.clip and config.run.batch == published.run.batch == 128
    assert config.optimizer == published.optimizer and config.epochs == 5
    assert config.pairs == Path("coco/pairs.tsv") and config.run.output == Path("runs/first")
    assert config.run.precision == "fp16" and config.run.workers == 8
    assert config.scale == (0.8, 1.0) and config.run.activation_checkpoints
    tuning = _config(
        *"--with-mask --mask-emb-depth 3 --mask_wd 0 --lock-image --lock-image-unlocked-groups 0 "
        "--lock-text --lr 0.05 --pretrained x --model y --force-quick-gelu".split()
    )
    recipe = _config("--config-file", "coco_proposal_1cap_mask_prompt_tuning_VitL")
    assert tuning.mask_prompt_depth == 3 and tuning.optimizer == recipe.optimizer
    assert tuning.activation == "quick_gelu"
    # Ours win over the original's, and flags over recipes.
    mixed = _config("--config-file", "coco_proposal_1cap_finetune_VitB", "--lr", "1e-3")
    assert mixed.optimizer.base_lr == 1e-3 and mixed.run.batch == 512


def test_the_originals_periods_in_epochs_become_steps(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png\tdog\n" for i in range(130))
    (tmp_path / "pairs.tsv").write_text("filepath\ttitle\n" + rows)
    given = f"--train-data {tmp_path}/pairs.tsv --batch-size 32 --save-frequency 2".split()
    config = _config(*given, "--zeroshot-frequency", "1")
    assert (config.run.checkpoint_period, config.run.eval_period) == (8, 4)


def test_help_tells_the_whole_published_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for word in (
        "base_lr: 5.0e-06",
        "batch: 128",
        "epochs: 5",
        "--train-data",
        "mask_prompt_depth 3",
    ):
        assert word in text, word


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--train-dta", "x"], "--train-data"),
        (["--horovod"], "--horovod is unknown"),
        (["--csv-img-key", "path"], "filepath"),
        (["--save-frequency", "1"], "--train-data and --batch-size"),
        (["--with-mask"], "--mask-prompt-depth 3"),
        (["--model", "ViT-L-14"], "--pretrained"),
        (["--run.batch", "100"], "12 pairs"),
        (["--run.grad_accum", "4"], "multiple of 4"),
        (["--pairs", "nothing.tsv"], "nothing.tsv"),
        (["--duplicates", "merge"], "negative"),
    ],
)
def test_bad_input_is_one_sentence(
    command, tmp_path: Path, more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, command(tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and sentence in error


def test_learning_rate_of_prompts_follows_the_schedule(command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        main(command(out, "--mask-prompt-depth", "1", "--optimizer.prompt_lr_multiplier", "4")) == 0
    )
    groups = torch.load(out / "model_final.pth", weights_only=True)["optimizer"]["param_groups"]
    rates = {tuple(group["names"]): group["lr"] for group in groups}
    assert rates[(PROMPTS,)] == pytest.approx(4 * rates[("logit_scale",)])
    assert json.dumps(sorted(len(names) for names in rates)) == "[1, 1]"
