"""Does a prompted image show its name? CLIP's class token answers.

Source: CaR paper section 3.3; SPEC car 2.5, 4 and 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from car.saliency import normalise, rounded_positions
from openvocab.clip.model import CLIP
from openvocab.image import ImageArray


class MaskClassifier:
    """Encodes images from the class token behind the last block but one, as the original does.

    Args:
        clip: any CLIP; the image tower may be in lower precision.
        batch: images that are encoded together.
    """

    def __init__(self, clip: CLIP, *, batch: int = 16) -> None:
        self.visual, self.batch = clip.visual, batch
        self.scale = float(clip.logit_scale.float().exp())
        self.trunk = clip.visual.blocks[:-1]

    @torch.no_grad()
    def encode(
        self, images: Iterable[ImageArray], known: dict[bytes, Tensor] | None = None
    ) -> Tensor:
        """Embed N images (H, W, 3), equal ones once: (N, E) float32, unit length.

        Many are equal: all names that are seen nowhere show the photo, and where few names have
        left, most of the others show what they showed before.

        Args:
            images: are taken as they are needed.
            known: embeddings (E,) by content, of calls before this one; those of this are added.
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

        features = [self._encode(batch) for batch in _batches(new_ones(), self.batch, side)]
        known.update(zip(new, (row for batch in features for row in batch), strict=True))
        return torch.stack([known[content] for content in contents])

    def scores(self, features: Tensor, texts: Tensor) -> Tensor:
        """Score images against names.

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
        patches, grid = visual.patchify(batch.to(visual.conv1.weight))
        tokens = visual.add_positions(patches, grid, rounded_positions(visual, grid))
        *trunk, last = self.trunk
        for block in trunk:
            tokens = block(tokens)
        feature: Tensor = visual.project(last.class_token(tokens)[:, 0])
        return F.normalize(feature.float(), dim=-1)


def preprocess(image: ImageArray, side: int) -> Tensor:
    """Resize the shorter side to `side`, cut out the middle, normalise: (3, side, side).

    The ends of the longer side are lost, as in OpenAI's preprocessing.
    """
    height, width = image.shape[:2]
    if width <= height:
        size = side, int(side * height / width)
    else:
        size = int(side * width / height), side
    resized = Image.fromarray(image)
    if size != (width, height):
        resized = resized.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return normalise(np.asarray(resized.crop((left, top, left + side, top + side))))


def _batches(images: Iterable[ImageArray], size: int, side: int) -> Iterator[Tensor]:
    """Preprocess images as they come, and yield them in batches (B, 3, side, side)."""
    batch: list[Tensor] = []
    for image in images:
        batch.append(preprocess(image, side))
        if len(batch) == size:
            yield torch.stack(batch)
            batch = []
    if batch:
        yield torch.stack(batch)
