"""Visual prompts, which mark a mask in the image for CLIP.

Source: CaR paper section 3.3 ("visual prompts"); SPEC car 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes

from car.config import checked_types
from car.ellipse import draw_ellipse
from openvocab.image import ImageArray

RED = (255, 0, 0)
BLUR_KERNEL = (15, 15)
# A soft mask with no more than this in total shows nothing.
SMALLEST_SUM = 1.0


class VisualPrompter:
    """A painter of visual prompts for any number of masks on one image.

    The part of the prompt outside of a mask does not depend on the mask, so it is made only once.

    Args:
        image: (H, W, 3) uint8 RGB.
        types: visual prompts to draw; each is drawn on the result of those before it in
            `config.PROMPT_TYPES`.

    Raises:
        InputError: an unknown type, or none.
    """

    def __init__(self, image: ImageArray, types: Sequence[str]) -> None:
        self.image = image
        self.types = checked_types(types)

    @cached_property
    def surroundings(self) -> ImageArray:
        """Return the image as it looks outside of a mask (H, W, 3)."""
        outside = self.image
        if "blur" in self.types:
            outside = np.asarray(cv2.GaussianBlur(outside, BLUR_KERNEL, 0), dtype=np.uint8)
        if "gray" in self.types:
            # The original's weights for blue meet red and the other way round.
            gray = np.asarray(cv2.cvtColor(outside, cv2.COLOR_BGR2GRAY), dtype=np.uint8)
            outside = np.repeat(gray[..., None], 3, axis=2)
        return np.zeros_like(outside) if "black" in self.types else outside

    def __call__(self, mask: NDArray[np.float32], threshold: float) -> ImageArray:
        """Paint the prompt of one soft mask.

        Args:
            mask: (H, W) in 0..1.
            threshold: pixels above it are inside.

        Returns:
            (H, W, 3) uint8; the image itself if the mask shows nothing.
        """
        if mask.sum() <= SMALLEST_SUM:
            return self.image
        return self.paint(mask > threshold)

    def paint(self, inside: NDArray[np.bool_]) -> ImageArray:
        """Paint the prompt of a binary mask (H, W): (H, W, 3) uint8."""
        prompted = self.surroundings.copy()
        cv2.copyTo(self.image, inside.astype(np.uint8), prompted)
        self._outline(prompted, inside)
        return prompted

    def _outline(self, canvas: ImageArray, inside: NDArray[np.bool_]) -> None:
        """Draw lines around a mask, in place; an empty mask gets none."""
        rows, columns = np.nonzero(inside)
        if not len(rows):
            return
        center = int(columns.mean()), int(rows.mean())
        half = int(np.ptp(columns) + 1) // 2, int(np.ptp(rows) + 1) // 2
        if "circle" in self.types:
            draw_ellipse(canvas, center, half, RED)
        if "rectangle" in self.types:
            first = center[0] - half[0], center[1] - half[1]
            last = center[0] + half[0], center[1] + half[1]
            cv2.rectangle(canvas, first, last, RED, 1)
        if "contour" in self.types:
            filled: Any = binary_fill_holes(inside).astype(np.uint8)
            contours, _ = cv2.findContours(filled, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
            cv2.drawContours(canvas, contours, -1, RED, 1)


class PromptedImages:
    """K prompted images (H, W, 3), each of which is painted only when it is needed.

    Args:
        prompter: painter of the image's prompts.
        masks: K soft masks (H, W) in 0..1.
        threshold: pixels above it are inside.
    """

    def __init__(
        self, prompter: VisualPrompter, masks: Sequence[NDArray[np.float32]], threshold: float
    ) -> None:
        self.prompter, self.masks, self.threshold = prompter, masks, threshold

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, place: int) -> ImageArray:
        return self.prompter(self.masks[place], self.threshold)

    def __iter__(self) -> Iterator[ImageArray]:
        return (self[place] for place in range(len(self)))
