"""The options of every OVSeg command that choose the model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from openvocab.computation import computation_options
from openvocab.config import add_config_flags, flags_of
from openvocab.errors import InputError
from openvocab.formats.overrides import read_overrides
from ovseg.config import InferenceConfig, available_configs
from ovseg.option_keys import OPTIONS

if TYPE_CHECKING:
    from ovseg.segmenter import OVSegSegmenter, ProposalSource

# What the published demo does, for checkpoints that come without a configuration.
DEMO_SETTINGS = {"mode": "demo", "ensemble_weight": 0.0, "region.mask_threshold": 0.35}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for checkpoint, configuration and settings."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--weights",
        metavar="FILE",
        help="OVSeg checkpoint (.pth or .safetensors) to run, a folder that save_pretrained wrote, "
        "or hf:ORG/NAME for one on the Hub",
    )
    model.add_argument(
        "--config-file",
        metavar="FILE",
        help="YAML file of the original program or of this one, or the name of a published "
        f"variant: {', '.join(available_configs())} (default: what the checkpoint needs)",
    )
    add_config_flags(parser, InferenceConfig)


def add_opts(parser: argparse.ArgumentParser, *flags: str) -> None:
    """Add the original's `KEY VALUE ...` at the end of the command line."""
    parser.add_argument(
        *flags,
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="options of the original program, such as MODEL.WEIGHTS file.pth "
        "MODEL.CLIP_ADAPTER.MASK_THR 0.5; must come last",
    )


def read_opts(opts: Sequence[str], more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the original's `KEY VALUE ...` as nested mappings.

    Args:
        opts: the typed words.
        more: keys, with their types, that a command reads besides those of the model.

    Raises:
        InputError: a key that the command does not understand, or a value of another type.
    """
    return read_overrides(list(opts), {**OPTIONS, **(more or {})})


def weights_named(args: argparse.Namespace, options: Mapping[str, Any]) -> str:
    """Return the checkpoint that the arguments name.

    Raises:
        InputError: if they name none.
    """
    weights = args.weights or options.get("MODEL", {}).get("WEIGHTS")
    if not weights:
        raise InputError("no weights are given; name an OVSeg checkpoint with --weights FILE")
    return str(weights)


def load_from_arguments(
    args: argparse.Namespace,
    options: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any] | None = None,
    proposals: ProposalSource | None = None,
) -> OVSegSegmenter:
    """Load the model that the arguments describe.

    Args:
        args: parsed with `add_model_arguments` and `add_computation_arguments`.
        options: detectron2's keys, from `read_opts`.
        defaults: settings that flags win over.
        proposals: function that makes masks in place of MaskFormer.
    """
    from ovseg.weights import load_ovseg  # late: it imports torch

    return load_ovseg(
        weights_named(args, options),
        config=args.config_file,
        options=options,
        settings={**(defaults or {}), **flags_of(args, InferenceConfig)},
        proposals=proposals,
        **computation_options(args),
    )
