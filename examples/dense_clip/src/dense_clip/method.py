"""The description of the three methods for the commands, the page and the benchmark.

This module is imported whenever methods are listed, so it imports torch only inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from openvocab.errors import InputError
from openvocab.methods import Explained, Method

if TYPE_CHECKING:
    from dense_clip.attention import Variant
    from openvocab.image import ImageArray
    from openvocab.stages import Anatomy, Architecture
    from openvocab.vocabulary import Vocabulary

_CLIP = "ViT-B-16:openai"


def _make(variant: str, summary: str, **rest: Any) -> Method:
    """Return the method of one variant; only the attention differs."""

    def load(weights: str | Path | None = None, *, config: Any = None, **options: Any) -> Any:
        from dense_clip.segmenter import default_config, load_dense_clip

        weights = _CLIP if weights is None else weights
        config = default_config(cast("Variant", variant), weights) if config is None else config
        if config.variant != variant:
            raise InputError(f"{variant} got a configuration of {config.variant}; load that method")
        return load_dense_clip(weights, config=config, **options)

    def architecture() -> Architecture:
        from dense_clip import structure

        return structure.architecture(cast("Variant", variant))

    return Method(
        key=variant,
        summary=summary,
        load=load,
        weights="a CLIP: NAME:TAG of open_clip such as ViT-B-16:openai, world, or a file",
        default_weights=_CLIP,
        templates="imagenet",
        package="dense_clip",
        architecture=architecture,
        anatomy=_anatomy,
        explain=_explain,
        **rest,
    )


def _anatomy(segmenter: Any) -> Anatomy:
    from dense_clip import structure

    return structure.anatomy(segmenter)


def _explain(segmenter: Any, image: ImageArray, vocabulary: Vocabulary) -> Sequence[Explained]:
    from dense_clip.pictures import similarity_maps

    return similarity_maps(segmenter, image, vocabulary)


MASKCLIP = _make(
    "maskclip",
    "No training: the last attention of CLIP's image tower is left out, each patch keeps its own "
    "value, and names are compared with it.",
    title="MaskCLIP",
    rank=10,
)
SCLIP = _make(
    "sclip",
    "No training: in the last block of CLIP's image tower, patches attend to those with similar "
    "queries and similar keys.",
    title="SCLIP",
    rank=11,
)
NACLIP = _make(
    "naclip",
    "No training: in the last block of CLIP's image tower, patches attend to those with similar "
    "keys, and to their neighbors.",
    title="NACLIP",
    rank=12,
)
