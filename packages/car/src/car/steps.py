"""A picture of the recurrence: one block for each step, in it one panel for each name.

What a panel shows, from left to right: saliency, mask proposal, what the classifier saw.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from car.recurrence import Recurrence, Step
from openvocab.drawing.fonts import drawable, font_for, shorten
from openvocab.image import ImageArray

WHITE, INK = (255, 255, 255), (24, 24, 27)
KEPT, DROPPED = (21, 128, 61), (185, 28, 28)
_GAP, _TEXT = 12, 15
_HEIGHT, _WIDEST = 132, 240  # of one picture
_CELL = 64  # a narrower picture has this much room, so that name and score can be read
_COLUMNS = 4  # panels in a row
_MOST = 24  # names that are drawn of one step


def draw_steps(
    image: ImageArray, passes: Sequence[tuple[Recurrence, Sequence[Step]]]
) -> ImageArray:
    """Draw all steps of all passes over an image.

    Args:
        image: (H, W, 3) as the passes saw it.
        passes: each recurrence with its steps.

    Returns:
        (H', W', 3) uint8.
    """
    blocks: list[ImageArray] = []
    for number, (recurrence, steps) in enumerate(passes, start=1):
        before = f"pass {number}, " if len(passes) > 1 else ""
        for index, step in enumerate(steps, start=1):
            blocks.append(_draw_step(image, recurrence.names, step, f"{before}step {index}"))
    width = max(block.shape[1] for block in blocks)
    return np.concatenate([_widen(block, width) for block in blocks])


def _draw_step(image: ImageArray, names: Sequence[str], step: Step, title: str) -> ImageArray:
    """Draw one step: its title, and a panel for each name, highest score first."""
    order = np.argsort(-step.scores, kind="stable")
    panels = [_draw_panel(image, names, step, int(place)) for place in order[:_MOST]]
    columns = min(_COLUMNS, max(1, round(len(panels) ** 0.5)))
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    height, width = panels[0].shape[:2]
    left_out = len(order) - len(panels)
    line = f"{title}: {len(step.kept)} of {len(order)} kept (saliency, proposal, what CLIP saw)" + (
        f"; the {left_out} lowest are not drawn" if left_out else ""
    )
    font = font_for(line, _TEXT + 3, bold=True)
    widest = max(columns * (width + _GAP) - _GAP, round(font.getlength(line)))
    size = widest + 2 * _GAP, len(rows) * (height + _GAP) + 3 * _TEXT
    canvas = Image.new("RGB", size, WHITE)
    pen = ImageDraw.Draw(canvas)
    pen.text((_GAP, 1.5 * _TEXT), line, INK, font, anchor="lm")
    for row, members in enumerate(rows):
        for column, panel in enumerate(members):
            corner = (_GAP + column * (width + _GAP), 3 * _TEXT + row * (height + _GAP))
            canvas.paste(Image.fromarray(panel), corner)
    return np.array(canvas)


def _draw_panel(image: ImageArray, names: Sequence[str], step: Step, place: int) -> ImageArray:
    """Draw what one step made of one name."""
    pictures = [
        _heat(image, step.maps.activation[place].cpu().numpy()),
        _heat(image, step.maps.proposals[place]),
        step.prompted[place],
    ]
    small = [_thumbnail(picture) for picture in pictures]
    height, width = small[0].shape[:2]
    top, cell = 2 * _TEXT, max(width, _CELL)
    canvas = Image.new("RGB", (3 * cell + 8, height + top), WHITE)
    pen = ImageDraw.Draw(canvas)
    kept = place in step.kept
    verdict = f"{step.scores[place]:.3f} {'kept' if kept else 'dropped'}"
    font = font_for(verdict, _TEXT, bold=True)
    room = canvas.width - pen.textlength(verdict, font) - _TEXT
    name = drawable(names[step.names[place]])
    name_font = font_for(name, _TEXT)
    pen.text((0, _TEXT), shorten(name, name_font, room), INK, name_font, anchor="lm")
    color = KEPT if kept else DROPPED
    pen.text((canvas.width, _TEXT), verdict, color, font, anchor="rm")
    for index, picture in enumerate(small):
        left = index * (cell + 4) + (cell - width) // 2
        canvas.paste(Image.fromarray(picture), (left, top))
    return np.array(canvas)


def _heat(image: ImageArray, heat: NDArray[np.float32]) -> ImageArray:
    """Lay a map in 0..1 of any size over an image: blue is 0, red is 1."""
    height, width = image.shape[:2]
    large = cv2.resize(heat, (width, height), interpolation=cv2.INTER_NEAREST)
    levels = (large * 255).clip(0, 255).astype(np.uint8)
    colors = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    return np.asarray(cv2.addWeighted(image, 0.45, colors, 0.55, 0), dtype=np.uint8)


def _thumbnail(image: ImageArray) -> ImageArray:
    """Fit an image into a box, in its own proportions."""
    height, width = image.shape[:2]
    scale = min(_HEIGHT / height, _WIDEST / width)
    size = max(24, round(width * scale)), max(24, round(height * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _widen(block: ImageArray, width: int) -> ImageArray:
    missing = ((0, 0), (0, width - block.shape[1]), (0, 0))
    return np.pad(block, missing, constant_values=255)
