"""Test-time augmentation, which averages the scores of an image at several sizes and mirrored."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from openvocab.errors import InputError
from openvocab.image import ImageArray, resize_shortest_edge
from openvocab.segmenter import BaseSegmenter, Segmentation, Segmenter
from openvocab.vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch import Tensor


class DenseSegmenter(Segmenter, Protocol):
    """A segmenter that can score an image at any size of its input."""

    def scores_at(
        self, image: ImageArray, vocabulary: Vocabulary, output_size: tuple[int, int]
    ) -> Tensor:
        """Score an image that already has the size of the network's input.

        Args:
            image: `(h, w, 3)` uint8 RGB, taken as it is.
            vocabulary: vocabulary whose W words are scored; W = K where all words are names.
            output_size: (H, W) of the scores.

        Returns:
            `(W, H, W)` float32, not negative.
        """


class TestTimeAugmentation(BaseSegmenter):
    """A segmenter that averages the scores of several views of the image.

    As in detectron2, the views are made from the image that was already resized for evaluation, and
    an image is flipped after resizing.

    Args:
        segmenter: the segmenter that scores the views.
        sizes: short sides of the views.
        max_size: the longest a long side becomes.
        flip: also take the mirror image of each.
        short: short side of the image the views are made from.
        max_short: upper limit of the long side of each view.

    Source: SPEC san 7 (TTA); SPEC ovseg 9 and 17.13.
    """

    __test__ = False  # not a test, whatever its name begins with

    def __init__(
        self,
        segmenter: DenseSegmenter,
        *,
        sizes: Sequence[int],
        max_size: int,
        flip: bool = True,
        short: int = 640,
        max_short: int = 2560,
    ) -> None:
        if not sizes or min(sizes) < 1:
            raise InputError(f"test-time augmentation needs sizes of at least 1, not {sizes}")
        self.segmenter = segmenter
        self.sizes, self.max_size, self.flip = tuple(sizes), max_size, flip
        self.short, self.max_short = short, max_short

    def scores(self, image: ImageArray, vocabulary: Vocabulary) -> Tensor:
        """Return the mean scores `(W, H, W)` of an original image `(H, W, 3)` over all views."""
        size = image.shape[0], image.shape[1]
        total: Tensor | None = None
        count = 0
        for view, mirrored in self._views(image):
            found = self.segmenter.scores_at(view, vocabulary, size)
            found = found.flip(-1) if mirrored else found
            total = found.clone() if total is None else total.add_(found)
            count += 1
        assert total is not None
        return total.div_(count)

    def segment_arrays(
        self, images: list[ImageArray], vocabulary: Vocabulary, return_scores: bool
    ) -> list[Segmentation]:
        """Segment images by their mean scores; see `BaseSegmenter.segment_arrays`.

        Raises:
            InputError: the background policy is "learned".
        """
        if vocabulary.background.kind == "learned":
            raise InputError(
                "test-time augmentation averages the scores of words and cannot use a learned "
                "background; choose another background policy"
            )
        return [self._segment(image, vocabulary, return_scores) for image in images]

    def _segment(
        self, image: ImageArray, vocabulary: Vocabulary, return_scores: bool
    ) -> Segmentation:
        import torch  # late: commands must not wait for it to parse their arguments

        from openvocab.semantic import vocabulary_scores

        with torch.inference_mode():
            scores = self.scores(image, vocabulary)
            kept = vocabulary_scores(scores, vocabulary) if return_scores else None
            return Segmentation(labels_of_scores(scores, vocabulary), vocabulary, kept)

    def describe(self) -> dict[str, Any]:
        """Return the lines of the protocol card."""
        sizes = ", ".join(map(str, self.sizes))
        mirrored = ", each also mirrored" if self.flip else ""
        tta = f"short sides {sizes} of at most {self.max_size}{mirrored}; mean of scores"
        return {**self.segmenter.describe(), "tta": tta}

    def _views(self, image: ImageArray) -> Iterator[tuple[ImageArray, bool]]:
        base = resize_shortest_edge(image, self.short, self.max_short)
        for size in self.sizes:
            view = resize_shortest_edge(base, size, self.max_size)
            yield view, False
            if self.flip:
                yield np.ascontiguousarray(view[:, ::-1]), True


def labels_of_scores(scores: Tensor, vocabulary: Vocabulary) -> NDArray[np.int32]:
    """Label pixels by the scores `(W, H, W)` of the words of a vocabulary; ties go to the first.

    Returns:
        `(H, W)`, indices into `vocabulary.names`, or -1 for nothing.
    """
    best, word = scores.max(dim=0)
    labels: NDArray[np.int32] = vocabulary.word_labels[word.cpu().numpy()]
    threshold = vocabulary.background.value
    if threshold is not None:
        labels = np.where(best.cpu().numpy() < threshold, vocabulary.background_label, labels)
    return labels.astype(np.int32)


def add_augmentation_arguments(
    parser: argparse.ArgumentParser, *, sizes: Sequence[int], max_size: int
) -> None:
    """Add the options of test-time augmentation, with a method's defaults."""
    group = parser.add_argument_group("test-time augmentation")
    group.add_argument("--tta", action="store_true", help="average the scores of several views")
    group.add_argument("--tta-sizes", type=int, nargs="+", default=list(sizes), metavar="SHORT")
    group.add_argument("--tta-max-size", type=int, default=max_size, metavar="LONG")
    group.add_argument("--tta-flip", action=argparse.BooleanOptionalAction, default=True)


def augment(
    segmenter: DenseSegmenter, args: argparse.Namespace, *, short: int, max_short: int
) -> Segmenter:
    """Wrap a segmenter if `--tta` was given.

    Args:
        segmenter: the method.
        args: parsed with `add_augmentation_arguments`.
        short: short side of the method's evaluation input.
        max_short: upper limit of the long side of each view.
    """
    if not args.tta:
        return segmenter
    return TestTimeAugmentation(
        segmenter,
        sizes=args.tta_sizes,
        max_size=args.tta_max_size,
        flip=args.tta_flip,
        short=short,
        max_short=max_short,
    )
