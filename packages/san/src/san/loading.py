"""The options of every SAN command that choose the weights and the architecture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openvocab.computation import computation_options
from openvocab.formats.detectron2 import merge, read_yaml
from openvocab.formats.overrides import check_types, read_overrides
from san.option_keys import OPTIONS

if TYPE_CHECKING:
    from san.segmenter import SANSegmenter


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the weights and the architecture."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--weights",
        "--model-path",
        metavar="FILE",
        help="san_vit_b_16 or san_vit_large_14 (fetched on first use), a checkpoint file, "
        "a folder that save_pretrained wrote, hf:ORG/NAME for one on the Hub, or huggingface:FILE "
        "(default: san_vit_b_16)",
    )
    group.add_argument(
        "--config-file",
        metavar="YAML",
        help="a configuration of the original release; needed only for checkpoints that are "
        "neither published nor ours",
    )
    group.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="changes to it, such as MODEL.WEIGHTS san.pth INPUT.MIN_SIZE_TEST 512; comes last",
    )


def checkpoint_of(args: argparse.Namespace) -> Path:
    """Return the checkpoint that parsed arguments name; a published one is fetched.

    Raises:
        InputError: it is not there and cannot be fetched, or the configuration cannot be read.
    """
    from san.weights import find_checkpoint  # late: it imports torch

    file, given = _settings(args)
    named = (settings.get("MODEL", {}).get("WEIGHTS") for settings in (given, file))
    return find_checkpoint(args.weights or next(filter(None, named), "san_vit_b_16"))


def _settings(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the configuration says, and what `--opts` changes."""
    file = read_yaml(args.config_file) if args.config_file else {}
    file = check_types(file, OPTIONS, str(args.config_file))
    return file, read_overrides(args.opts, OPTIONS)


def load_from_arguments(args: argparse.Namespace) -> SANSegmenter:
    """Load the model that parsed arguments name.

    Raises:
        InputError: see `load_san`, or the configuration cannot be read.
    """
    from san.config import from_detectron2  # late: these import torch
    from san.segmenter import load_san
    from san.weights import stored_config

    file, given = _settings(args)
    model = file.get("MODEL", {})
    path = checkpoint_of(args)
    described = "SAN" in model or "SIDE_ADAPTER" in model
    # A file of the original leaves out what the published ViT-B/16 has. What a checkpoint of ours
    # stores is all of its own architecture, so that a file only changes it.
    config = inference = None
    if described and stored_config(path) is None:
        config, inference = from_detectron2(file)
    options = given if config is not None else merge(file, given)
    return load_san(
        path, config=config, inference=inference, options=options, **computation_options(args)
    )
