"""The picture of the similarity of each patch of an image with each word."""

from __future__ import annotations

import numpy as np

from dense_clip.segmenter import DenseCLIPSegmenter
from openvocab.drawing.maps import fit_to, heat
from openvocab.drawing.overlay import draw_overlay
from openvocab.image import ImageArray
from openvocab.methods import Explained
from openvocab.vocabulary import Vocabulary

_MOST = 12  # words that are shown
_SIDE = 320  # pixels of the long side of each picture


def similarity_maps(
    segmenter: DenseCLIPSegmenter, image: ImageArray, vocabulary: Vocabulary
) -> list[Explained]:
    """Show the photo, the similarity of its patches with each word, and the label map.

    All maps have one scale. The words with the highest peaks are shown, in this order.

    Args:
        segmenter: looks at the image once more.
        image: (H, W, 3) uint8 RGB.
        vocabulary: names to look for.

    Raises:
        InputError: see `DenseCLIPSegmenter.similarities`.
    """
    maps = segmenter.similarities(image, vocabulary).cpu().numpy()  # (W, h, w)
    low, high = float(maps.min()), float(maps.max())
    peaks = maps.max(axis=(1, 2))
    photo = fit_to(image, _SIDE)
    found = segmenter.segment(image, vocabulary)
    return [
        Explained(
            "The photo",
            photo,
            "CLIP's image tower gives a vector for each patch, because the attention of its last "
            "block is replaced. Patches are compared with the names' embeddings.",
            "Input",
        ),
        *(
            Explained(
                vocabulary.words[index],
                heat(photo, (maps[index] - low) / max(high - low, 1e-6)),
                f"Cosine of each patch with the name, {peaks[index]:.2f} at most. In all these "
                f"pictures black is {low:.2f} and yellow {high:.2f}.",
                "Similarity with each name",
            )
            for index in np.argsort(-peaks, kind="stable")[:_MOST].tolist()
        ),
        Explained(
            "The label map",
            draw_overlay(image, found.labels, vocabulary.names, max_side=_SIDE),
            "The similarities are enlarged to the photo; each pixel gets the most similar name.",
            "Result",
        ),
    ]
