"""`python -m san.export`: SAN as ONNX, with the names left free.

    python -m san.export --weights san_vit_b_16 --output san_onnx
    python -m openvocab.onnx_predict san_onnx photo.jpg --class-names cat sofa --output results

The second command needs no torch.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openvocab.cli import CommandParser, run
from openvocab.errors import InputError, import_extra
from openvocab.files import atomic_paths
from openvocab.onnx_predict import DESCRIPTION, FORMAT, IMAGE_GRAPH, MERGES, TEXT_GRAPH
from san.loading import add_model_arguments, load_from_arguments

if TYPE_CHECKING:
    from san.config import SANInference
    from san.model import SAN


def export_san(network: SAN, inference: SANInference, folder: Path) -> None:
    """Write the image graph, the text graph, the tokenizer and the description to a folder.

    Args:
        network: the network to export, in fp32.
        inference: rules of inference, which become part of the graphs.
        folder: output folder, which is made if it does not exist.

    Raises:
        InputError: a package is missing, or the network scores before it resizes.
    """
    for module in ("onnx", "onnxscript"):
        import_extra(module, "onnx", "exporting to ONNX")
    from openvocab.clip.tokenizer import merges  # late: these import torch
    from san.onnx_graphs import write_image_graph, write_text_graph

    if not inference.resize_masks_first:
        raise InputError(
            "this SAN resizes scores instead of mask logits, which the exported form cannot; "
            "export one with MODEL.SEM_SEG_POSTPROCESS_BEFORE_INFERENCE True"
        )
    network = copy.deepcopy(network).float().cpu().eval()
    names = (IMAGE_GRAPH, TEXT_GRAPH, MERGES, DESCRIPTION)
    with atomic_paths([folder / name for name in names]) as (image, text, merged, described):
        write_text_graph(network.clip, text)
        merged.write_text("".join(f"{line}\n" for line in merges()), encoding="utf-8")
        described.write_text(json.dumps(describe_graphs(network, inference)), encoding="utf-8")
        write_image_graph(network, image)


def describe_graphs(network: SAN, inference: SANInference) -> dict[str, Any]:
    """Return all that `openvocab.onnx_predict` needs and the graphs do not contain."""
    from openvocab.clip.template_sets import load_templates
    from openvocab.drawing.overlay import palette

    config, clip = network.config, network.clip
    return {
        "format": FORMAT,
        "short_side": inference.short_side,
        "max_side": inference.max_side,
        "size_divisibility": config.size_divisibility,
        "templates": list(load_templates(inference.templates)),
        "context_length": config.clip.text.context_length,
        "token_ids": None if clip.token_ids is None else clip.token_ids.tolist(),
        "logit_scale": float(clip.logit_scale.detach().exp()),
        "no_object": network.bg_embed[0].tolist(),
        "palette": palette(256).tolist(),
    }


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = CommandParser(
        prog="python -m san.export",
        description="Write a SAN as ONNX: a graph from pixels and class embeddings to masks and "
        "classes, a graph of the text tower, and the tokenizer. The size of the image and the "
        "names stay free. Run it with `python -m openvocab.onnx_predict`, which needs no torch. "
        "OVSeg and CaR have no such export: one runs CLIP once for each mask, and the other needs "
        "gradients.",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder")
    add_model_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Export; see the module."""
    args = build_parser().parse_args(argv)
    args.device, args.precision, args.compile = "cpu", "fp32", False
    segmenter = load_from_arguments(args)
    export_san(segmenter.network, segmenter.inference, args.output)
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
