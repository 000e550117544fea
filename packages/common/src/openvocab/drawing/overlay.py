"""Pictures of label maps: colours, overlays with a legend, and panels side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from openvocab.drawing.fonts import drawable, font_for, shorten
from openvocab.drawing.legend import INK, WHITE, LegendEntry, add_legend, legend_entries
from openvocab.formats.run_length import Mask
from openvocab.image import ImageArray
from openvocab.metrics.boundary import boundary_of_labels

_FIRST_COLOR = (48, 112, 208)  # a calm blue
_MIN_SIDE, _MAX_SIDE = 320, 2048  # longest side drawn; smaller images are enlarged, larger shrunk
_MIN_THICKNESS = 24  # the shortest side drawn; thinner images are stretched


def palette(count: int) -> npt.NDArray[np.uint8]:
    """Return colours that are as different as possible for the eye, always the same ones.

    A longer palette starts with the shorter one. Behind about 17,000 colours they repeat.

    Returns:
        (count, 3) uint8, RGB; no black, white or grey.
    """
    colors = _all_colors()
    return colors[np.arange(count) % len(colors)]


def color_labels(labels: npt.NDArray[Any], count: int) -> ImageArray:
    """Paint (H, W) labels in the colours of `palette(count)`, negative ones black: (H, W, 3)."""
    colors = np.concatenate([palette(count), np.zeros((1, 3), np.uint8)])
    return colors[np.where(labels < 0, count, labels)]


def label_shares(labels: npt.NDArray[Any]) -> list[tuple[int, float]]:
    """Return (label, share of the pixels) of the labels from 0 on that occur, largest first.

    Examples:
        >>> label_shares(np.array([[2, 2], [0, -1]]))
        [(2, 0.5), (0, 0.25)]
    """
    counts = np.bincount(np.maximum(labels, -1).ravel() + 1)[1:]
    shares = [(int(label), int(counts[label]) / labels.size) for label in counts.nonzero()[0]]
    return sorted(shares, key=lambda share: (-share[1], share[0]))


def draw_overlay(
    image: ImageArray,
    labels: npt.NDArray[Any],
    names: Sequence[str],
    *,
    alpha: float = 0.55,
    legend: bool = True,
    max_side: int | None = _MAX_SIDE,
    text_size: int | None = None,
    numbers: bool = True,
) -> ImageArray:
    """Draw labels over their image, with names in the regions and a legend sorted by area.

    The picture is for looking at: tiny images are enlarged, huge ones shrunk to `max_side`. The
    number of a name, in the legend and in regions without room for the name, is its label.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W), indices into `names`; negative where nothing was found.
        names: all of them; only those that occur are shown.
        alpha: how much of a region's colour covers the image, 0..1.
        legend: add the legend, to the right or below.
        max_side: the longest side of the drawn image, without the legend; None keeps every image
            at its own size, so that the picture lies on it pixel on pixel.
        text_size: of the names in pixels; None: what suits the size of the drawn image.
        numbers: write the number that a region has in a legend where its name does not fit.

    Returns:
        (H', W', 3) uint8.

    Raises:
        ValueError: image and labels differ in size.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(f"the image is {image.shape[:2]} and the labels are {labels.shape}")
    shares = label_shares(labels)
    colors = palette(len(names))
    height, width = labels.shape
    size = (height, width) if max_side is None else _display_size(height, width, max_side)
    shown = _fit_labels(labels, size)
    text_size = _text_size(*size) if text_size is None else text_size
    entries = legend_entries(shares, names, colors)
    picture = _tint(_fit_image(image, size), shown, colors, alpha)
    picture = _name_regions(
        picture, shown, [index for index, _ in shares], entries, text_size, numbers
    )
    return add_legend(picture, entries, text_size) if legend else picture


def side_by_side(
    images: Sequence[ImageArray],
    titles: Sequence[str] | None = None,
    *,
    height: int = 512,
    gap: int = 10,
) -> ImageArray:
    """Put images in a row at one height, each under its title, on white.

    Args:
        images: (H, W, 3) uint8 each, of any sizes.
        titles: one for each image, shortened where they do not fit.
        height: of the row, without titles.
        gap: white pixels between two images.

    Returns:
        (H', W', 3) uint8.

    Raises:
        ValueError: no image, or another number of titles.
    """
    if not images or (titles is not None and len(titles) != len(images)):
        raise ValueError(f"{len(images)} images with {len(titles or ())} titles")
    panels = [_fit_image(image, _at_height(image, height)) for image in images]
    text_size = max(12, round(height / 26))
    top = 0 if titles is None else 2 * text_size
    width = sum(panel.shape[1] for panel in panels) + gap * (len(panels) - 1)
    canvas = Image.new("RGB", (width, top + height), WHITE)
    pen = ImageDraw.Draw(canvas)
    left = 0
    for panel, title in zip(panels, titles or [""] * len(panels), strict=True):
        canvas.paste(Image.fromarray(panel), (left, top))
        line = drawable(title)
        font = font_for(line, text_size)
        line = shorten(line, font, panel.shape[1])
        pen.text((left + panel.shape[1] / 2, top / 2), line, INK, font, anchor="mm")
        left += panel.shape[1] + gap
    return np.array(canvas)


@cache
def _all_colors() -> npt.NDArray[np.uint8]:
    """Order vivid colours so that the first are as different as possible; (N, 3) uint8.

    Each of the coarse steps is the one farthest in CIELAB from all before it; the fine steps
    between them follow in a shuffled order.
    """
    coarse = _vivid_colors(16)
    lab = _lab(coarse)
    chosen = [int(np.square(lab - _lab(np.array([_FIRST_COLOR]))).sum(axis=1).argmin())]
    distance = np.full(len(lab), np.inf, dtype=np.float32)
    for _ in range(len(lab) - 1):
        np.minimum(distance, np.square(lab - lab[chosen[-1]]).sum(axis=1), out=distance)
        chosen.append(int(distance.argmax()))
    fine = _vivid_colors(8)
    fine = fine[(fine % 16 != 0).any(axis=1)]
    np.random.default_rng(0).shuffle(fine)
    return np.concatenate([coarse[chosen], fine])


def _vivid_colors(step: int) -> npt.NDArray[np.uint8]:
    """Return the RGB colours in steps that are neither dark, pale, grey nor glaring."""
    levels = np.arange(0, 256, step, dtype=np.uint8)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness, a, b = _lab(rgb).T
    chroma = np.hypot(a, b)
    vivid = (lightness > 36) & (lightness < 86) & (chroma > 28) & (chroma < 84)
    return np.asarray(rgb[vivid], dtype=np.uint8)


def _lab(rgb: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    unit = rgb.reshape(1, -1, 3).astype(np.float32) / 255
    return np.asarray(cv2.cvtColor(unit, cv2.COLOR_RGB2LAB)[0], dtype=np.float32)


def _display_size(height: int, width: int, max_side: int) -> tuple[int, int]:
    """Return the (height, width) at which an image is drawn."""
    longest = max(height, width)
    if longest > max_side:
        scale = max_side / longest
    elif longest < _MIN_SIDE:
        scale = math.ceil(_MIN_SIDE / longest)
    else:
        scale = 1
    return max(_MIN_THICKNESS, round(height * scale)), max(_MIN_THICKNESS, round(width * scale))


def _text_size(height: int, width: int) -> int:
    return int(np.clip(math.sqrt(height * width) / 42, 13, 160))


def _at_height(image: ImageArray, height: int) -> tuple[int, int]:
    return height, max(1, round(image.shape[1] * height / image.shape[0]))


def _fit_image(image: ImageArray, size: tuple[int, int]) -> ImageArray:
    if image.shape[:2] == size:
        return image
    shrinks = size[0] < image.shape[0]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=how), dtype=np.uint8)


def _fit_labels(labels: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Resize labels by picking the pixel under the middle of each new one."""
    rows = ((np.arange(size[0]) + 0.5) * labels.shape[0] / size[0]).astype(np.intp)
    columns = ((np.arange(size[1]) + 0.5) * labels.shape[1] / size[1]).astype(np.intp)
    return np.asarray(labels[rows[:, None], columns], dtype=np.int32)


def _tint(
    image: ImageArray,
    labels: npt.NDArray[np.int32],
    colors: npt.NDArray[np.uint8],
    alpha: float,
) -> ImageArray:
    """Cover regions with their colours, and outline them in white."""
    nothing = labels < 0
    painted = colors[np.where(nothing, 0, labels)]
    painted[nothing] = image[nothing]
    tinted = np.asarray(cv2.addWeighted(image, 1 - alpha, painted, alpha, 0), dtype=np.uint8)
    edge = boundary_of_labels(labels)
    if min(labels.shape) >= 720:  # one pixel is lost in a large picture
        edge = cv2.dilate(edge.astype(np.uint8), np.ones((2, 2), np.uint8)) > 0
    tinted[edge] = np.rint(0.2 * tinted[edge] + 0.8 * 255).astype(np.uint8)
    return tinted


def _name_regions(
    picture: ImageArray,
    labels: npt.NDArray[np.int32],
    order: Sequence[int],
    entries: Sequence[LegendEntry],
    text_size: int,
    numbers: bool,
) -> ImageArray:
    """Write the name where its region is widest, or what is before its comma, or its number.

    Numbers are left out unless `numbers` is set.
    """
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    from scipy.ndimage import find_objects  # late: it takes as long to import as all the rest

    boxes = find_objects(np.maximum(labels, -1) + 1)
    for index, entry in zip(order, entries, strict=False):
        box = boxes[index] if index < len(boxes) else None
        if entry.color is None or box is None:  # not listed, or lost in shrinking
            continue
        row, column = _widest_place(labels[box] == index)
        center = box[1].start + column, box[0].start + row
        short = entry.name.split(",")[0]
        for line in (entry.name, short, *((entry.number,) if numbers else ())):
            font = font_for(line, text_size, bold=True)
            room = pen.textbbox(center, line, font, anchor="mm", stroke_width=1)
            if _share_in(labels, index, room) > 0.9:
                pen.text(center, line, WHITE, font, "mm", stroke_width=2, stroke_fill=INK)
                break
    return np.array(canvas)


def _widest_place(inside: Mask) -> tuple[int, int]:
    """Return the (row, column) farthest from the outside; on a ridge of such, its middle."""
    depth = cv2.distanceTransform(np.pad(inside.astype(np.uint8), 1), cv2.DIST_L2, 3)
    places = np.argwhere(depth > depth.max() - 1)
    middle = np.square(places - places.mean(axis=0)).sum(axis=1).argmin()
    row, column = places[middle] - 1  # without the padding
    return int(row), int(column)


def _share_in(
    labels: npt.NDArray[np.int32], index: int, room: tuple[float, float, float, float]
) -> float:
    """Return which share of a box (left, top, right, bottom) has a label; 0 if it leaves (H, W)."""
    left, top, right, bottom = (round(side) for side in room)
    if left < 0 or top < 0 or right > labels.shape[1] or bottom > labels.shape[0]:
        return 0.0
    return float((labels[top:bottom, left:right] == index).mean())
