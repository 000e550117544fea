"""What the method saw: for each name, where the image is similar to it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dense_clip.segmenter import DenseCLIPSegmenter
from openvocab.image import ImageArray
from openvocab.methods import Explained
from openvocab.vocabulary import Vocabulary

_MOST = 12  # names that are shown
_DARKEST = 0.15  # brightness of the least similar place


def similarity_maps(
    segmenter: DenseCLIPSegmenter, image: ImageArray, vocabulary: Vocabulary
) -> list[Explained]:
    """Return the image once for each word, bright where it is similar to the word.

    All pictures have one scale. The words with the highest peaks are shown, in this order.

    Args:
        segmenter: made the label map.
        image: (H, W, 3) uint8 RGB.
        vocabulary: what was asked for.

    Raises:
        InputError: see `DenseCLIPSegmenter.similarities`.
    """
    maps = segmenter.similarities(image, vocabulary).cpu().numpy()  # (W, h, w)
    low, high = float(maps.min()), float(maps.max())
    peaks = maps.max(axis=(1, 2))
    return [
        Explained(
            title=vocabulary.words[index],
            picture=_shaded(image, (maps[index] - low) / max(high - low, 1e-6)),
            text=f"Similarity of each patch with this name: the darkest place of all pictures is "
            f"{low:.2f}, the brightest {high:.2f}; the peak of this one is {peaks[index]:.2f}.",
            group=f"{segmenter.describe()['method']}: similarity with each name",
        )
        for index in np.argsort(-peaks, kind="stable")[:_MOST].tolist()
    ]


def _shaded(image: ImageArray, light: np.ndarray) -> ImageArray:
    """Darken an image (H, W, 3) by a map (h, w) of 0..1, resized to it."""
    size = image.shape[1], image.shape[0]
    resized = np.asarray(
        Image.fromarray(light.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    )
    brightness = _DARKEST + (1 - _DARKEST) * resized
    shaded: ImageArray = np.rint(image * brightness[..., None]).astype(np.uint8)
    return shaded
