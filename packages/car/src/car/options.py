"""The options that the commands of CaR share."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from car._convert import OriginalConfig, read_original
from car.config import (
    CaRConfig,
    NamedConfig,
    available_configs,
    clips_of,
    named_config,
    settings_of,
)
from openvocab.computation import computation_options
from openvocab.config import add_config_flags, config_to_dict, flags_of, load_config
from openvocab.errors import InputError

if TYPE_CHECKING:
    from car.segmenter import CaRSegmenter

_LISTS = ("visual_prompt_type", "stuff_visual_prompt_type", "bg_cls")


@dataclass(frozen=True)
class CaRSettings:
    """The settings that arguments and files give together.

    Attributes:
        car: settings of the segmentation.
        named: the published configuration, if one was chosen.
        original: settings from a file of the original, if one was given.
    """

    car: CaRConfig
    named: NamedConfig | None = None
    original: OriginalConfig | None = None


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for the settings of CaR."""
    group = parser.add_argument_group("weights and configuration")
    group.add_argument(
        "--weights",
        metavar="NAME[,NAME]",
        help="world (needs no download), or another configuration by its name; or a CLIP, "
        "'NAME:TAG' of open_clip or a file, for both tasks; or two CLIPs, of which the first "
        "proposes masks and the second classifies them; or a folder that save_pretrained wrote, "
        "or hf:ORG/NAME for one on the Hub (default: the CLIPs of the configuration)",
    )
    group.add_argument(
        "--config",
        metavar="NAME",
        help=f"one of {', '.join(available_configs())}",
    )
    group.add_argument(
        "--cfg-path", metavar="FILE", help="a YAML file of the original release, or one of yours"
    )
    group.add_argument(
        "--like-original",
        action="store_true",
        help="repeat the original's mistakes and know no limit of size: --faithful --max-side none",
    )
    add_config_flags(parser, CaRConfig)


def read_settings(args: argparse.Namespace) -> CaRSettings:
    """Return the settings; flags override a file or configuration, which overrides defaults.

    Args:
        args: parsed with `add_model_arguments`.

    Raises:
        InputError: both a file and a published configuration, or a setting that makes no sense.
    """
    if args.config is not None and args.cfg_path is not None:
        raise InputError("give --config or --cfg-path, not both")
    original = None if args.cfg_path is None else read_original(args.cfg_path)
    weights = args.weights
    by_name = weights if weights in available_configs() else None
    name = original.named if original is not None else args.config or by_name
    named = None if name is None else named_config(name)
    values: dict[str, Any] = {}
    if original is not None:
        values |= original.values
    elif named is not None:
        values |= config_to_dict(named.car)
    elif (own := settings_of(weights)) is not None:
        values |= config_to_dict(own)
    if weights is not None:
        values |= clips_of(weights)
    if args.like_original:
        values |= {"faithful": True, "max_side": None}
    values |= _flags(args)
    return CaRSettings(load_config(CaRConfig, overrides=values), named, original)


def load_segmenter(args: argparse.Namespace, config: CaRConfig) -> CaRSegmenter:
    """Load the CLIPs with the device and the precision of the arguments."""
    from car.segmenter import load_car  # imports torch, which --help can do without

    return load_car(config=config, **computation_options(args))


def _flags(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags that were given; lists may be one argument with commas."""
    flags = flags_of(args, CaRConfig)
    for key in _LISTS:
        if isinstance(flags.get(key), list):
            parts = (part.strip() for text in flags[key] for part in text.split(","))
            flags[key] = [part for part in parts if part]
    return flags
