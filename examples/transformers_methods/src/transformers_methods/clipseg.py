"""CLIPSeg: one map for each name, from a decoder that reads CLIP's activations.

Source: Lüddecke and Ecker, "Image Segmentation Using Text and Image Prompts", CVPR 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openvocab.clip.template_sets import resolve_templates
from openvocab.computation import Precision
from openvocab.errors import InputError
from openvocab.image import ImageArray
from openvocab.segmenter import BaseSegmenter, Segmentation
from openvocab.semantic import label_word_maps
from openvocab.vocabulary import Vocabulary
from transformers_methods.loading import Checkpoint, fit_rule, fitted, load_checkpoint

DEFAULT_WEIGHTS = "CIDAS/clipseg-rd64-refined"
_WORDS_AT_ONCE = 16


@dataclass(frozen=True)
class CLIPSegConfig:
    """The settings of CLIPSeg.

    Attributes:
        prompt: the sentence around a name; the templates of vocabularies are not used, since the
            decoder was trained on single sentences.
        max_side: larger images are shrunk to this before the processor, which resizes to 352 x 352.
    """

    prompt: str = "a photo of a {}."
    max_side: int = 2048

    def __post_init__(self) -> None:
        """Refuse values that can only be mistakes."""
        resolve_templates([self.prompt])
        if self.max_side < 1:
            raise InputError(f"max_side is {self.max_side}; it must be at least 1 pixel")


def load_clipseg(
    weights: str | Path = DEFAULT_WEIGHTS,
    *,
    config: CLIPSegConfig | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    compile: bool = False,
) -> CLIPSegSegmenter:
    """Load CLIPSeg and return a segmenter; see `load_checkpoint` for the arguments and errors."""
    checkpoint = load_checkpoint(
        "CLIPSegForImageSegmentation",
        weights,
        device=device,
        precision=precision,
        compiled=("clip.vision_model", "decoder") if compile else (),
    )
    return CLIPSegSegmenter(checkpoint, config)


class CLIPSegSegmenter(BaseSegmenter):
    """Gives every pixel the name whose map is highest there."""

    templates = "single"  # for the card of a user's own names; see `CLIPSegConfig.prompt`

    def __init__(self, checkpoint: Checkpoint, config: CLIPSegConfig | None = None) -> None:
        self.checkpoint, self.config = checkpoint, config or CLIPSegConfig()

    def describe(self) -> dict[str, Any]:
        """Return the lines of the protocol card that describe this segmenter."""
        return {
            "method": "CLIPSeg",
            **self.checkpoint.describe(),
            "resize_rule": f"{fit_rule(self.config.max_side)}, then the checkpoint's processor",
            "post_processing": "logits resized bilinearly, sigmoid for each name by itself",
            "prompt": f"{self.config.prompt} (the vocabulary's templates are not used)",
        }

    def segment_arrays(
        self, images: list[ImageArray], vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        """Segment images one by one; see `BaseSegmenter.segment_arrays`.

        Raises:
            InputError: the vocabulary holds no word, wants a learned background, or has a name that
                is too long.
        """
        if vocabulary.background.kind == "learned":
            raise InputError(
                "CLIPSeg has no learned class for the background; use a vocabulary with the policy "
                "'threshold', where 0.5 is what it was trained for, or with 'none' or 'names'"
            )
        if not vocabulary.words:
            raise InputError(
                f"the vocabulary holds nothing but {', '.join(vocabulary.names)}; name something "
                "to look for"
            )
        prompts = self.embed(vocabulary.words)
        results = []
        for image in images:
            labels, scores = label_word_maps(
                self.maps(image, prompts),
                (image.shape[0], image.shape[1]),
                vocabulary,
                torch.sigmoid,
                return_scores=return_scores,
            )
            results.append(Segmentation(labels, vocabulary, scores))
        return results

    @torch.inference_mode()
    def embed(self, words: tuple[str, ...]) -> Tensor:
        """Embed W words in the prompt: (W, E)."""
        model: Any = self.checkpoint.model
        texts = [self.config.prompt.replace("{}", word) for word in words]
        most = model.config.text_config.max_position_embeddings
        tokens = self.checkpoint.tokens(texts, most, padding=True)
        found: Tensor = model.clip.get_text_features(**tokens).pooler_output
        return found

    @torch.inference_mode()
    def maps(self, image: ImageArray, prompts: Tensor) -> Tensor:
        """Return the logits (W, h, w) of embedded prompts (W, E); the image is encoded once."""
        model: Any = self.checkpoint.model
        pixels = self.checkpoint.pixels(fitted(image, self.config.max_side))["pixel_values"]
        hidden = model.clip.vision_model(
            pixels, interpolate_pos_encoding=True, output_hidden_states=True
        ).hidden_states
        activations = [hidden[layer + 1] for layer in model.extract_layers]
        logits = []
        for some in torch.split(prompts, _WORDS_AT_ONCE):
            repeated = [one.expand(len(some), -1, -1) for one in activations]
            found = model.decoder(repeated, some).logits
            logits.append(found.reshape(len(some), *found.shape[-2:]).float())
        return torch.cat(logits)
