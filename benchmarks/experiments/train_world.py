"""Trains the weights of the embedded world, all of them, by the project's own commands.

    python benchmarks/experiments/train_world.py --output world_training
    python benchmarks/experiments/train_world.py --output world_training --install

On two cores it takes about three hours. A killed run goes on where it stopped. `--install` then
puts the weights into the packages, and beside each of them the commands, seeds and curves that made
it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

import openvocab
from openvocab.cli import CommandParser, run
from openvocab.errors import InputError
from openvocab.files import write_text
from openvocab.reading.yaml_files import read_yaml_file
from openvocab.training.log import LOG_FILE, read_log
from openvocab.vocabulary import WORLD
from openvocab.weights.shipped import world_file
from openvocab.weights.state_dict import TRAINED_ON, read_state_dict, read_values, save_state_dict
from openvocab.world import world_vocabulary
from ovseg import load_ovseg
from ovseg.weights import save_world_model
from san.weights import load_network, save_world_network

FINAL = "model_final.safetensors"
PAIRS = 1200  # scenes whose names are cut out, for the mask-adapted CLIP
LIMIT = 12_000_000  # bytes of all weights together
NOTES = "notes.txt"  # in a stage's folder: what a person did beyond the command
_POINTS = 60  # of a curve that is kept
_NOT_CURVES = ("time", "data_time", "images_per_second", "memory_mb", "grad_norm")


@dataclass(frozen=True)
class TrainingStage:
    """One command of the recipe.

    Attributes:
        name: name of the folder that the command writes.
        arguments: module and arguments, without the output folder.
        product: file that is there when it is done.
    """

    name: str
    arguments: tuple[str, ...]
    product: str = FINAL

    @property
    def trains(self) -> bool:
        """Whether it is a training, which can be resumed and has a curve."""
        return self.product == FINAL and "--config-file" in self.arguments


def recipe(output: Path) -> list[TrainingStage]:
    """Return all commands in their order."""

    def made(stage: str, product: str = FINAL) -> str:
        return str(output / stage / product)

    pretrain = "openvocab.world.pretrain"
    return [
        TrainingStage("clip_words", (pretrain, "--config-file", "world_clip")),
        TrainingStage(
            "clip",
            (pretrain, "--config-file", "world_clip_dense", "--weights", made("clip_words")),
        ),
        TrainingStage("san", ("san.train", "--config-file", WORLD, "--clip", made("clip"))),
        TrainingStage("proposals", ("ovseg.train", "--config-file", WORLD, "--clip", made("clip"))),
        TrainingStage(
            "pairs",
            (
                "ovseg.collect_pairs",
                "--dataset",
                f"world:train:{PAIRS}",
                "--min-size",
                "192",
                "--expand-ratio",
                "2.5",
            ),
            "pairs.tsv",
        ),
        TrainingStage(
            "mask_clip",
            (
                "ovseg.finetune_clip",
                "--config-file",
                "world_mask_clip",
                "--clip",
                made("clip"),
                "--pairs",
                made("pairs", "pairs.tsv"),
            ),
        ),
        TrainingStage(
            "ovseg",
            ("ovseg.replace_clip", made("proposals"), made("mask_clip"), made("ovseg")),
        ),
    ]


def command(stage: TrainingStage, output: Path) -> list[str]:
    """Return the command line of a stage, as a person would type it behind `python`."""
    folder = output / stage.name
    if stage.arguments[0] == "ovseg.replace_clip":
        return ["-m", *stage.arguments]
    if stage.arguments[0] == "ovseg.collect_pairs":
        return ["-m", *stage.arguments, "--output", str(folder)]
    return ["-m", *stage.arguments, "--resume", "--run.output", str(folder)]


def train(output: Path) -> None:
    """Run what is not done yet.

    Raises:
        InputError: a command failed.
    """
    for stage in recipe(output):
        folder = output / stage.name
        if (folder / stage.product).is_file():
            print(f"{stage.name}: done before", flush=True)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        line = command(stage, output)
        print(f"{stage.name}: python {shlex.join(line)}", flush=True)
        if subprocess.run([sys.executable, *line], check=False).returncode:
            raise InputError(f"{stage.name} failed; see above, and run the same command again")


def install(output: Path) -> None:
    """Put the weights into the packages, small, with what made them beside them.

    Raises:
        InputError: something is not trained yet, or the files together are too large.
    """
    stages = {stage.name: stage for stage in recipe(output)}
    for name in ("clip", "san", "ovseg"):
        if not (output / name / FINAL).is_file():
            raise InputError(f"{name} is not trained yet; run this command without --install first")
    clip = place("openvocab.clip")
    save_small(output / "clip" / FINAL, clip)
    save_world_network(*load_network(output / "san" / FINAL), place("san"))
    segmenter = load_ovseg(output / "ovseg" / FINAL)
    save_world_model(segmenter.model, place("ovseg"), segmenter.inference)
    made_by = {
        "openvocab.clip": ("clip_words", "clip"),
        "san": ("san",),
        "ovseg": ("proposals", "pairs", "mask_clip", "ovseg"),
    }
    for package, names in made_by.items():
        record = [describe(stages[name], output) for name in names]
        value: dict[str, Any] = {"code_version": openvocab.__version__, "torch": torch.__version__}
        if package != "openvocab.clip":  # which captions taught every name
            value[TRAINED_ON] = list(world_vocabulary(seen_only=True).names)
        value["stages"] = record
        write_text(place(package).with_suffix(".json"), json.dumps(value, indent=1) + "\n")
    total = sum(world_file(package).stat().st_size for package in made_by)
    print(f"installed {total / 1e6:.2f} MB")
    if total > LIMIT:
        raise InputError(f"the weights have {total} bytes; they may have {LIMIT} together")


def place(package: str) -> Path:
    """Return where a package carries its weights."""
    return Path(str(resources.files(package).joinpath(f"{WORLD}.safetensors")))


def save_small(source: Path, target: Path) -> None:
    """Copy a state dict with its metadata, in half precision."""
    tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in read_state_dict(source).items()
    }
    save_state_dict(target, tensors, read_values(source))


def describe(stage: TrainingStage, output: Path) -> dict[str, Any]:
    """Return what made a file: the command, its settings, and the curve of its losses."""
    relative = Path("world_training")
    line = command({s.name: s for s in recipe(relative)}[stage.name], relative)
    record: dict[str, Any] = {"stage": stage.name, "command": f"python {shlex.join(line)}"}
    folder = output / stage.name
    if (folder / NOTES).is_file():
        record["notes"] = (folder / NOTES).read_text("utf-8").split("\n")
    if stage.trains:
        settings = read_yaml_file(folder / "config.yaml")
        record["seed"] = settings["run"]["seed"]
        record |= curve(read_log(folder / LOG_FILE))
    return record


def curve(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Thin out a log to some points of every loss, and keep all scores.

    Returns:
        "iterations" and "losses" by name, and "scores": lines of evaluations.
    """
    steps = [line for line in lines if "loss" in line]
    scores = [dict(line) for line in lines if "loss" not in line]
    stride = -(-len(steps) // _POINTS)
    chosen = steps[stride - 1 :: stride]
    names = [n for n in chosen[-1] if n.startswith("loss")] if chosen else []
    return {
        "iterations": [line["iteration"] for line in chosen],
        "losses": {name: [round(line[name], 4) for line in chosen] for name in names},
        "scores": scores,
    }


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = CommandParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("world_training"), metavar="DIR")
    parser.add_argument(
        "--install", action="store_true", help="put the trained weights into the packages"
    )
    parser.add_argument("--show", action="store_true", help="print the commands, and run nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or install what is trained."""
    args = build_parser().parse_args(argv)
    if args.show:
        for stage in recipe(args.output):
            print(f"python {shlex.join(command(stage, args.output))}")
    elif args.install:
        install(args.output)
    else:
        train(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
