"""The description of the methods for the commands, the page and the benchmark; needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from openvocab.methods import Method

if TYPE_CHECKING:
    from openvocab.datasets.samples import SampleSet

_WEIGHTS = "a repository on the Hugging Face hub such as {}, or a folder of save_pretrained"


def _load_clipseg(weights: str | Path | None = None, **options: Any) -> Any:
    from transformers_methods.clipseg import DEFAULT_WEIGHTS, load_clipseg

    return load_clipseg(DEFAULT_WEIGHTS if weights is None else weights, **options)


def _load_sam3(weights: str | Path | None = None, **options: Any) -> Any:
    from transformers_methods.sam3 import DEFAULT_WEIGHTS, load_sam3

    return load_sam3(DEFAULT_WEIGHTS if weights is None else weights, **options)


def _closed_set(key: str, title: str, default: str, rank: int) -> Method:
    def load(weights: str | Path | None = None, **options: Any) -> Any:
        from transformers_methods.closed_set import load_closed_set

        return load_closed_set(title, default if weights is None else weights, **options)

    return Method(
        key=key,
        title=title,
        summary=f"A reference with full supervision: {title}'s own labels, matched with the names; "
        "what has no match is never found, and is listed.",
        load=load,
        weights=_WEIGHTS.format(default),
        default_weights=default,
        rank=rank,
        package="transformers_methods",
        for_data=_for_data,
    )


def _for_data(segmenter: Any, data: SampleSet) -> Any:
    return segmenter.for_vocabulary(data.vocabulary)


CLIPSEG = Method(
    key="clipseg",
    title="CLIPSeg",
    summary="A small decoder reads CLIP's activations and draws one map for each name.",
    load=_load_clipseg,
    weights=_WEIGHTS.format("CIDAS/clipseg-rd64-refined"),
    default_weights="CIDAS/clipseg-rd64-refined",
    templates="single",
    rank=20,
    package="transformers_methods",
)
SAM3 = Method(
    key="sam3",
    title="SAM 3",
    summary="SAM 3 finds the instances of one name at a time, which are merged into one map.",
    load=_load_sam3,
    weights=_WEIGHTS.format("facebook/sam3"),
    default_weights="facebook/sam3",
    templates="single",
    rank=21,
    package="transformers_methods",
)
MASK2FORMER = _closed_set(
    "mask2former", "Mask2Former", "facebook/mask2former-swin-large-ade-semantic", 30
)
ONEFORMER = _closed_set("oneformer", "OneFormer", "shi-labs/oneformer_ade20k_swin_large", 31)
EOMT = _closed_set("eomt", "EoMT", "tue-mps/ade20k_semantic_eomt_large_512", 32)
