"""Measures what it saves not to compute text tokens behind the end of the text.

The text tower of ViT-B-16 at random weights embeds ADE20K's 150 names in the 14 ViLD templates:
once as `TextEncoder` does it, with texts of similar length in a batch, and once with all 77
positions of each text. The two alternate over parts of the names, so that other work on the machine
meets both; the processor time, with `--threads 1`, hardly sees such work at all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measuring import add_measuring_arguments, report
from openvocab.cli import CommandParser, run
from openvocab.clip.config import CLIPConfig, TextConfig, VisionConfig
from openvocab.clip.model import CLIP
from openvocab.clip.prompts import TextEncoder
from openvocab.clip.template_sets import load_templates
from openvocab.clip.tokenizer import tokenize
from openvocab.vocabulary import Vocabulary

FULL_LENGTH_BATCH = 64


def build_text_tower() -> CLIP:
    """Return a CLIP with the text tower of ViT-B-16 and the smallest image tower."""
    torch.manual_seed(0)
    vision = VisionConfig(image_size=2, patch_size=2, width=8, layers=1, heads=1, mlp_width=8)
    text = TextConfig(
        context_length=77, vocab_size=49408, width=512, layers=12, heads=8, mlp_width=2048
    )
    return CLIP(CLIPConfig(512, vision, text, "quick_gelu")).eval().requires_grad_(False)


@torch.no_grad()
def encode_full_length(clip: CLIP, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Embed names (K, E) with every one of the 77 positions computed."""
    tokens = tokenize([t.replace("{}", name) for t in templates for name in names])
    out = []
    for batch in torch.split(tokens, FULL_LENGTH_BATCH):
        x = clip.token_embedding(batch) + clip.positional_embedding
        for block in clip.transformer.resblocks:
            x = block(x, causal=True)
        x = clip.ln_final(x[torch.arange(len(x)), batch.argmax(dim=-1)])
        out.append(F.normalize(x @ clip.text_projection, dim=-1))
    each = torch.cat(out).reshape(len(templates), len(names), -1)
    return F.normalize(each.mean(dim=0), dim=-1)


def measure(
    clip: CLIP, names: Sequence[str], templates: Sequence[str], parts: int
) -> dict[str, Any]:
    """Time both ways over `parts` parts of the names."""
    encoder = TextEncoder(clip, cache_dir=False)
    encoder.encode_names(["warm up"], templates)  # fingerprint, tokenizer, thread pool
    encode_full_length(clip, ["warm up"], templates)
    wall, processor = np.zeros(2), np.zeros(2)
    difference = 0.0
    for part in range(parts):
        chosen = names[part::parts]
        clocks = [(time.perf_counter(), time.process_time())]
        full = encode_full_length(clip, chosen, templates)
        clocks.append((time.perf_counter(), time.process_time()))
        ours = encoder.encode_names(chosen, templates)
        clocks.append((time.perf_counter(), time.process_time()))
        spent = np.diff(np.array(clocks), axis=0)  # (2 ways, 2 clocks)
        wall, processor = wall + spent[:, 0], processor + spent[:, 1]
        difference = max(difference, (full - ours).abs().max().item())
    ways = ("full_length", "text_encoder")
    start = time.perf_counter()
    encoder.encode_names(names, templates)
    return {
        "names": len(names),
        "templates": len(templates),
        "threads": torch.get_num_threads(),
        "seconds": dict(zip(ways, wall.tolist(), strict=True)),
        "processor_seconds": dict(zip(ways, processor.tolist(), strict=True)),
        "seconds_from_memory": time.perf_counter() - start,
        "ratio": wall[0] / wall[1],
        "processor_ratio": processor[0] / processor[1],
        "largest_difference": difference,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and keep the result."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--names", type=int, default=150, help="number of names, at most 150")
    parser.add_argument("--parts", type=int, default=3, help="how often the two ways alternate")
    add_measuring_arguments(parser)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    names = Vocabulary.load("ade20k-150").names[: args.names]
    result = measure(build_text_tower(), names, load_templates("vild"), args.parts)
    report(result, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
