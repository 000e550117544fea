"""The options of every SAN command that choose the weights and the architecture."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

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


def load_from_arguments(args: argparse.Namespace) -> SANSegmenter:
    """Load the model that parsed arguments name.

    Raises:
        InputError: see `load_san`, or the configuration cannot be read.
    """
    from san.config import from_detectron2  # late: these import torch
    from san.segmenter import load_san
    from san.weights import find_checkpoint, stored_config

    file = read_yaml(args.config_file) if args.config_file else {}
    file = check_types(file, OPTIONS, str(args.config_file))
    given = read_overrides(args.opts, OPTIONS)
    model = file.get("MODEL", {})
    weights = args.weights or given.get("MODEL", {}).get("WEIGHTS") or model.get("WEIGHTS")
    path = find_checkpoint(weights or "san_vit_b_16")
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
