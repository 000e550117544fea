"""The mask classifier, which scores with CLIP's class token whether prompted images show names.

Source: CaR paper section 3.3; SPEC car 2.5, 4, 5 and 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from car.config import CaRConfig
from car.mask_proposals import normalize, rounded_positions
from openvocab.clip.model import CLIP, VisionTransformer
from openvocab.clip.prompts import TextEncoder
from openvocab.computation import to_device
from openvocab.errors import InputError
from openvocab.image import ImageArray, resample_image


class NameScorer(Protocol):
    """A scorer of prompted images against the K names that are left."""

    def scores(self, features: Tensor) -> NDArray[np.float32]:
        """Score N images, unit embeddings (N, E), against the names: (N, K), rows sum to 1."""

    def keep(self, places: Sequence[int]) -> NameScorer:
        """Return a scorer against the names at some places alone."""


class MaskClassifier:
    """CLIP as an encoder of images that reads the class token after the last block but one.

    Args:
        clip: any CLIP.
        text: encodes names with the same CLIP; None for one with the user's cache.
        visual: image tower of the CLIP, which may be in lower precision; None for its own.
    """

    def __init__(
        self,
        clip: CLIP,
        text: TextEncoder | None = None,
        visual: VisionTransformer | None = None,
    ) -> None:
        self.clip = clip
        self.visual = clip.visual if visual is None else visual
        self.text = TextEncoder(clip) if text is None else text
        self.scale = float(clip.logit_scale.float().exp())
        self.trunk = self.visual.blocks[:-1]

    def scorer(self, names: Sequence[str], config: CaRConfig) -> NameScorer:
        """Return a scorer of images against K names, in the configured templates."""
        templates = config.classifier_templates
        if templates is not None:
            return TemplateScorer(self, self.text.names_per_template(names, templates))
        sentences = [config.cam_text_template.format(name) for name in names]
        return SentenceScorer(self, sentences, faithful=config.faithful)

    @torch.no_grad()
    def encode(
        self,
        images: Iterable[ImageArray],
        known: dict[bytes, Tensor] | None = None,
        *,
        batch: int = 16,
    ) -> Tensor:
        """Embed N images (H, W, 3), equal ones only once: (N, E) float32, unit length.

        Many images are equal: all names without a visible mask have the unmarked image, and after a
        step that drops few names, most of the others have the same prompted image as before.

        Args:
            images: images, each of which is taken only when it is needed.
            known: embeddings (E,) by content, of calls before this one; those of this are added.
            batch: images that are encoded together.
        """
        known = {} if known is None else known
        side = self.visual.config.image_size
        contents: list[bytes] = []
        new: dict[bytes, None] = {}

        def new_ones() -> Iterator[ImageArray]:
            for image in images:
                content = sha256(image.tobytes()).digest()
                contents.append(content)
                if content not in known and content not in new:
                    new[content] = None
                    yield image

        features = [self._encode(some) for some in _batches(new_ones(), batch, side)]
        known.update(zip(new, (row for some in features for row in some), strict=True))
        return torch.stack([known[content] for content in contents])

    def scores(self, features: Tensor, texts: Tensor) -> Tensor:
        """Return the scores of images against names.

        Args:
            features: unit image embeddings (N, E).
            texts: unit text embeddings (T, N', E), one set for each of T templates.

        Returns:
            (N, N'), rows sum to 1. The templates' probabilities, not their embeddings, are summed,
            and a second softmax is taken over the sums.
        """
        return self.per_template(features, texts).sum(dim=0).softmax(dim=-1)

    def per_template(self, features: Tensor, texts: Tensor) -> Tensor:
        """Return the probabilities (T, N, N') for each template."""
        return (self.scale * features @ texts.transpose(-2, -1)).softmax(dim=-1)

    def _encode(self, batch: Tensor) -> Tensor:
        visual = self.visual
        weight = visual.conv1.weight
        patches, grid = visual.patchify(to_device(batch, weight.device).to(weight.dtype))
        tokens = visual.add_positions(patches, grid, rounded_positions(visual, grid))
        *trunk, last = self.trunk
        for block in trunk:
            tokens = block(tokens)
        feature: Tensor = visual.project(last.class_token(tokens)[:, 0])
        return F.normalize(feature.float(), dim=-1)


class TemplateScorer:
    """Scores names in several templates; see `MaskClassifier.scores`.

    Args:
        classifier: mask classifier that embeds the images.
        texts: unit text embeddings (T, K, E), one set for each of T templates.
    """

    def __init__(self, classifier: MaskClassifier, texts: Tensor) -> None:
        self.classifier, self.texts = classifier, texts

    def scores(self, features: Tensor) -> NDArray[np.float32]:
        """See `NameScorer`."""
        scores: NDArray[np.float32] = self.classifier.scores(features, self.texts).cpu().numpy()
        return scores

    def keep(self, places: Sequence[int]) -> TemplateScorer:
        """See `NameScorer`."""
        index = to_device(torch.tensor(places), self.texts.device)
        return TemplateScorer(self.classifier, self.texts[:, index])


class SentenceScorer:
    """Scores K sentences, without templates and with a single softmax.

    Args:
        classifier: mask classifier that embeds the images.
        sentences: (K,).
        faithful: whether single characters are kept instead of sentences, as in the original.
    """

    def __init__(
        self, classifier: MaskClassifier, sentences: Sequence[str], *, faithful: bool
    ) -> None:
        self.classifier, self.sentences, self.faithful = classifier, sentences, faithful
        self.texts = classifier.text.encode_texts(sentences)

    def scores(self, features: Tensor) -> NDArray[np.float32]:
        """See `NameScorer`."""
        scores = self.classifier.per_template(features, self.texts[None])[0]
        return np.asarray(scores.cpu().numpy())

    def keep(self, places: Sequence[int]) -> NameScorer:
        """See `NameScorer`."""
        if self.faithful:
            return self._keep_characters(places)
        kept = [self.sentences[place] for place in places]
        return SentenceScorer(self.classifier, kept, faithful=False)

    def _keep_characters(self, places: Sequence[int]) -> TemplateScorer:
        """Keep the characters at some places of each sentence, as if it were a list of templates.

        Source: SPEC car 6, "bug without templates".
        """
        shortest = min(self.sentences, key=len)
        if max(places) >= len(shortest):
            raise InputError(
                f"the original crashes here: it takes character {max(places)} of {shortest!r}; "
                "give fewer sentences or leave faithful mode"
            )
        rows = [[sentence[place] for place in places] for sentence in self.sentences]
        flat = self.classifier.text.encode_texts([one for row in rows for one in row])
        return TemplateScorer(self.classifier, flat.view(len(rows), len(places), -1))


def preprocess(image: ImageArray, side: int) -> Tensor:
    """Resize the shorter side to `side`, crop the center and normalize: (3, side, side).

    The ends of the longer side are cut off, as in OpenAI's preprocessing.
    """
    height, width = image.shape[:2]
    if width <= height:
        size = side, int(side * height / width)
    else:
        size = int(side * width / height), side
    resized = Image.fromarray(image)
    if size != (width, height):
        resized = resample_image(resized, size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return normalize(np.asarray(resized.crop((left, top, left + side, top + side))))


def _batches(images: Iterable[ImageArray], size: int, side: int) -> Iterator[Tensor]:
    """Preprocess images one by one, and yield them in batches (B, 3, side, side)."""
    batch: list[Tensor] = []
    for image in images:
        batch.append(preprocess(image, side))
        if len(batch) == size:
            yield torch.stack(batch)
            batch = []
    if batch:
        yield torch.stack(batch)
