"""The options by which every command of SAN finds its model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from openvocab.computation import computation_options
from openvocab.formats.detectron2 import merge_overrides, read_yaml
from san.config import SANConfig, from_detectron2

if TYPE_CHECKING:
    from san.segmenter import SANSegmenter


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the weights and the architecture."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--weights",
        "--model-path",
        metavar="FILE",
        help="san_vit_b_16 or san_vit_large_14 (fetched on first use), a checkpoint file, or "
        "huggingface:FILE (default: san_vit_b_16)",
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
    from san.segmenter import load_san  # late: it imports torch

    nested = read_yaml(args.config_file) if args.config_file else {}
    nested = merge_overrides(nested, args.opts)
    weights = args.weights or nested.get("MODEL", {}).get("WEIGHTS") or None
    return load_san(
        weights,
        config=_architecture(nested),
        **computation_options(args),
    )


def _architecture(nested: dict[str, Any]) -> SANConfig | None:
    """Return the architecture that a configuration describes, if it describes one."""
    rest = {key: value for key, value in nested.items() if key != "MODEL"}
    rest["MODEL"] = {k: v for k, v in nested.get("MODEL", {}).items() if k != "WEIGHTS"}
    described = rest["MODEL"] or "INPUT" in rest
    return from_detectron2(rest) if described else None
