"""The common part of the training commands: flags, recipes, and the originals' command lines.

A recipe is a YAML file of a package; a file of the original release (`MODEL:`, `SOLVER:`, ...) is
translated, and so are its trailing `KEY VALUE` pairs. Flags win over pairs, pairs over files.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import yaml

from openvocab.cli import CommandParser
from openvocab.config import (
    add_config_flags,
    config_to_dict,
    flags_of,
    load_config,
    near_matches,
)
from openvocab.errors import InputError
from openvocab.formats.detectron2 import BASE_KEY, flatten, merge_overrides, read_yaml
from openvocab.formats.overrides import read_overrides

Config = TypeVar("Config")

# detectron2's keys and ours. What an original configuration says beyond them and `MODEL` has no
# meaning here (evaluation, logging and loader details).
KEYS = {
    "OUTPUT_DIR": "run.output",
    "SEED": "run.seed",
    "DATALOADER.NUM_WORKERS": "run.workers",
    "SOLVER.IMS_PER_BATCH": "run.batch",
    "SOLVER.CHECKPOINT_PERIOD": "run.checkpoint_period",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": "run.clip_norm",
    "TEST.EVAL_PERIOD": "run.eval_period",
    "WANDB.PROJECT": "run.wandb_project",
    "WANDB.NAME": "run.wandb_name",
    "SOLVER.BASE_LR": "optimizer.base_lr",
    "SOLVER.WEIGHT_DECAY": "optimizer.weight_decay",
    "SOLVER.BACKBONE_MULTIPLIER": "optimizer.backbone_multiplier",
    "SOLVER.MAX_ITER": "schedule.steps",
    "SOLVER.POLY_LR_POWER": "schedule.power",
    "SOLVER.WARMUP_ITERS": "schedule.warmup_steps",
    "SOLVER.WARMUP_FACTOR": "schedule.warmup_factor",
    "INPUT.MIN_SIZE_TRAIN": "transform.min_sizes",
    "INPUT.MAX_SIZE_TRAIN": "transform.max_size",
    "INPUT.COLOR_AUG_SSD": "transform.color",
    "MODEL.WEIGHTS": "weights",
    "DATASETS.TRAIN": "data.dataset",
    "DATASETS.TEST": "data.evaluate",
    "INPUT.CROP.SIZE": "transform.crop_size",
    "SOLVER.AMP.ENABLED": "run.precision",
}


@dataclass(frozen=True)
class Settings:
    """The parsed command line: our settings, and the `MODEL` of an original configuration."""

    values: dict[str, Any]
    recipe: Path | None
    original: dict[str, Any]


@dataclass(frozen=True)
class TrainingCommand(Generic[Config]):
    """The description of a training command.

    Attributes:
        module: module that `python -m` runs; its package holds the recipes.
        config: the dataclass of the settings; its defaults are the published recipe.
        description: purpose of the command.
        recipes: text about the recipes that `--help` shows above the published one.
        train: gets the settings, an original configuration, and whether to resume; imports what
            it needs by itself, so that `--help` does not wait for torch.
        evaluate: gets the settings and an original configuration, for `--eval-only`.
        keys: keys of original configurations and ours, besides `KEYS`.
        model_keys: the other keys of original configurations that are read, with their types.
        aliases: file names of the original release and the recipes that are the same.
        add_flags: adds flags of the original program that are not ours.
        read_flags: returns our settings for them.
    """

    module: str
    config: type[Config]
    description: str
    recipes: str
    train: Callable[[Config, Mapping[str, Any], bool], int]
    evaluate: Callable[[Config, Mapping[str, Any]], int]
    keys: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    model_keys: Mapping[str, Any] = field(default_factory=dict)
    add_flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    read_flags: Callable[[argparse.Namespace], dict[str, Any]] = lambda args: {}

    def build_parser(self) -> argparse.ArgumentParser:
        """Return the parser of the command."""
        result = _Parser(
            prog=f"python -m {self.module}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            description=self.description,
            epilog=f"{self.recipes}\n\n{describe_recipe(self.config())}",
        )
        add_training_arguments(result, self.config)
        self.add_flags(result)
        return result

    def read(self, argv: Sequence[str] | None) -> tuple[argparse.Namespace, Config, Settings]:
        """Return the settings of a command line.

        Raises:
            InputError: the command line cannot be understood.
        """
        args = self.build_parser().parse_args(argv)
        package = self.module.partition(".")[0]
        found = settings_of(
            args,
            self.config,
            package=package,
            keys=self.keys,
            model_keys=self.model_keys,
            aliases=self.aliases,
        )
        settings = replace(found, values=self.read_flags(args) | found.values)
        return args, load_settings(self.config, settings), settings

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Train, or evaluate; returns the exit code."""
        args, config, settings = self.read(argv)
        code = launch_if_asked(args, self.module, argv)
        if code is not None:
            return code
        if args.eval_only:
            return self.evaluate(config, settings.original)
        return self.train(config, settings.original, args.resume)


class _Parser(CommandParser):
    """A parser whose errors are one sentence, with similar flags for an unknown one."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help tells all options")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            hint = near_matches(unknown[0], self._option_string_actions)
            near = hint if hint.startswith("did you mean") else "--help tells all options"
            raise InputError(f"the option {unknown[0]} is unknown; {near}")
        return found


def add_training_arguments(parser: argparse.ArgumentParser, cls: type) -> None:
    """Add the options of every training command, and a flag for every setting of `cls`."""
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="a recipe of this package by name, a YAML file of settings, or a configuration of "
        "the original release",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate the weights instead of training"
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="processes to start on this machine"
    )
    parser.add_argument("--num-machines", type=int, default=1, metavar="N")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="I")
    parser.add_argument("--dist-url", default="auto", metavar="tcp://HOST:PORT")
    add_config_flags(parser, cls)
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="at the end: settings under the originals' names, such as SOLVER.BASE_LR 1e-4",
    )


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add the short form of the flag that all commands with the user's own data share."""
    parser.add_argument(
        "--label-offset",
        dest="data.label_offset",
        default=argparse.SUPPRESS,
        metavar="N",
        help="the same as --data.label-offset",
    )


def launch_if_asked(
    args: argparse.Namespace, module: str, argv: Sequence[str] | None
) -> int | None:
    """Start the processes that `--num-gpus` asks for; None if this process is to do the work."""
    if "WORLD_SIZE" in os.environ:
        return None
    for flag, count in (("--num-gpus", args.num_gpus), ("--num-machines", args.num_machines)):
        if count < 1:
            raise InputError(f"{flag} is {count}; give at least 1")
    if not 0 <= args.machine_rank < args.num_machines:
        raise InputError(
            f"--machine-rank is {args.machine_rank}; give 0 to {args.num_machines - 1}, one less "
            "than --num-machines"
        )
    if args.num_gpus * args.num_machines == 1:
        return None
    from openvocab.training.distributed import launch  # late: it imports torch

    return launch(
        module,
        sys.argv[1:] if argv is None else argv,
        args.num_gpus,
        machines=args.num_machines,
        machine=args.machine_rank,
        address=args.dist_url,
    )


def settings_of(
    args: argparse.Namespace,
    cls: type,
    *,
    package: str,
    keys: Mapping[str, str],
    model_keys: Mapping[str, Any],
    aliases: Mapping[str, str],
) -> Settings:
    """Collect the settings of a command line.

    Args:
        args: parsed with `add_training_arguments`.
        cls: the settings' dataclass.
        package: package whose folder `recipes` holds the published recipes.
        keys: detectron2 keys and ours, besides `KEYS`.
        model_keys: the other detectron2 keys that are read, with their types.
        aliases: file names of the original release and the recipes that are the same.

    Raises:
        InputError: no such file or recipe, or an unknown key.
    """
    known = {**KEYS, **keys}
    recipe, original = _find(args.config_file, package, aliases)
    values = _translated(flatten(original), known)
    pairs = list(args.opts)
    if flags := [text for text in pairs[::2] if text.startswith("--")]:
        raise InputError(f"{flags[0]} stands behind KEY VALUE pairs; put flags before them")
    kinds = {**dict.fromkeys(known, Any), **model_keys}
    read_overrides(pairs, kinds)
    given = flatten(merge_overrides({}, pairs))
    values |= _translated(given, known) | flags_of(args, cls)
    return Settings(values, recipe, merge_overrides(original, pairs))


def load_settings(cls: type[Config], settings: Settings) -> Config:
    """Return the config; overrides replace values of the recipe, which replace the defaults."""
    return load_config(cls, settings.recipe, settings.values)


def available_recipes(package: str) -> list[str]:
    """Return the names of a package's recipes."""
    folder = resources.files(package) / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name[0] != "_")


def describe_recipe(config: Any) -> str:
    """Return settings as YAML, for `--help`."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False, default_flow_style=None)


def _find(
    name: str | None, package: str, aliases: Mapping[str, str]
) -> tuple[Path | None, dict[str, Any]]:
    """Return our recipe, or the translated-to-be content of an original configuration."""
    if name is None:
        return None, {}
    path = Path(name)
    if path.is_file():
        content = read_yaml(path)
        if BASE_KEY in content or any(key.isupper() for key in content):
            return None, content
        return path, {}
    recipe = aliases.get(path.stem, path.stem)
    known = available_recipes(package)
    if recipe not in known:
        raise InputError(f"there is no file {name}; give one, or a recipe: {', '.join(known)}")
    return Path(str(resources.files(package) / "recipes" / f"{recipe}.yaml")), {}


def _translated(flat: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Translate detectron2's settings to our names and our form of values."""
    values = {ours: flat[theirs] for theirs, ours in keys.items() if theirs in flat}
    for key in ("data.dataset", "transform.crop_size"):
        if key in values:
            values[key] = _only(values[key], key)
    if "data.evaluate" in values:
        names = values["data.evaluate"]
        values["data.evaluate"] = (names,) if isinstance(names, str) else tuple(names)
    if "run.precision" in values:
        values["run.precision"] = "fp16" if values["run.precision"] else "fp32"
    if values.get("run.seed", 0) < 0:  # detectron2's way of saying "any"
        del values["run.seed"]
    return values


def _only(values: Any, key: str) -> Any:
    """Return the one value of a list that may hold only one, or the same one several times."""
    found = set(values) if isinstance(values, list | tuple) else {values}
    if len(found) != 1:
        raise InputError(f"{key} is {values}; only one value is possible")
    return found.pop()
