"""Stuff: textures drawn by code, each with its own colors, grain and structure.

Each function draws `(size, size, 3)` float32 in 0..255. A `unit` is the length in pixels that is
one in a scene of 128 pixels; it scales whatever the texture consists of.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]
Texture = Callable[[np.random.Generator, int, float], Field]
Color = tuple[float, float, float]


def draw_texture(name: str, rng: np.random.Generator, size: int, unit: float) -> Field:
    """Draw a texture.

    Args:
        name: name of stuff.
        rng: decides all that varies.
        size: length of the sides in pixels.
        unit: scale of the structure, 1 in a scene of 128 pixels.

    Returns:
        (size, size, 3) float32, 0..255.
    """
    drawn = TEXTURES[name](rng, size, unit)
    return np.clip(drawn, 0, 255, out=drawn)


def smooth_noise(
    rng: np.random.Generator, size: int, cell: float, octaves: int = 1, stretch: float = 1.0
) -> Field:
    """Return smooth noise.

    Args:
        rng: source of the values.
        size: length of the sides.
        cell: pixels from one random value to the next, in the coarsest octave.
        octaves: each has half the cell and half the weight of the one before.
        stretch: cells are this many times as wide as they are high.

    Returns:
        (size, size) float32, about 0..1 with mean 1/2.
    """
    total = np.zeros((size, size), np.float32)
    weight = 1.0
    for _ in range(octaves):
        high = max(2, round(size / cell) + 1)
        wide = max(2, round(size / (cell * stretch)) + 1)
        grid = rng.random((min(high, size), min(wide, size)), dtype=np.float32)
        total += weight * cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
        cell, weight = cell / 2, weight / 2
    return np.asarray(total / (2 - 2 * weight), dtype=np.float32)


def rgb(color: Color) -> Field:
    """Return a colour as (3,) float32."""
    return np.array(color, dtype=np.float32)


def _mix(share: Field, low: Color, high: Color) -> Field:
    """Blend two colours by a share (H, W), clipped to 0..1: (H, W, 3)."""
    share = np.clip(share, 0, 1)[..., None].astype(np.float32)
    return rgb(low) + share * (rgb(high) - rgb(low))


def _grid(size: int) -> tuple[Field, Field]:
    """Return rows (size, 1) and columns (1, size)."""
    line = np.arange(size, dtype=np.float32)
    return line[:, None], line[None, :]


def _varied(rng: np.random.Generator, color: Color, spread: float) -> Color:
    red, green, blue = (value + float(rng.uniform(-spread, spread)) for value in color)
    return red, green, blue


def sky(rng: np.random.Generator, size: int, unit: float) -> Field:
    """Blue that pales towards the ground, with clouds wider than high."""
    down, _ = _grid(size)
    blue = _mix(
        np.broadcast_to(down / size, (size, size)).astype(np.float32),
        _varied(rng, (62, 132, 222), 18),
        _varied(rng, (160, 208, 246), 12),
    )
    shape = smooth_noise(rng, size, 36 * unit, 4, stretch=2.2)
    share = np.clip((shape - float(rng.uniform(0.46, 0.6))) * 5, 0, 1)
    return np.asarray(blue + share[..., None] * (rgb((250, 251, 253)) - blue), dtype=np.float32)


def water(rng: np.random.Generator, size: int, unit: float) -> Field:
    """Dark blue-green with broken horizontal glints."""
    down, _ = _grid(size)
    bend = smooth_noise(rng, size, 22 * unit, 2, stretch=2.5)
    waves = np.sin(down / (1.35 * unit) + 14 * bend)
    body = _mix(
        0.5 + 0.35 * waves, _varied(rng, (8, 62, 118), 14), _varied(rng, (24, 122, 168), 14)
    )
    glints = np.clip(waves * smooth_noise(rng, size, 9 * unit, 2, stretch=3) * 4 - 1.75, 0, 1)
    return np.asarray(body + glints[..., None] * (rgb((206, 240, 246)) - body), dtype=np.float32)


def snow(rng: np.random.Generator, size: int, unit: float) -> Field:
    """White drifts with pale blue hollows and sparkles."""
    drifts = smooth_noise(rng, size, 34 * unit, 3, stretch=1.8)
    ground = _mix((drifts - 0.3) * 2.4, _varied(rng, (196, 212, 236), 8), (252, 253, 255))
    sparkle = (rng.random((size, size), dtype=np.float32) > 0.985) * np.float32(30)
    shade = (rng.random((size, size), dtype=np.float32) > 0.97) * np.float32(-26)
    return ground + (sparkle + shade)[..., None]


def grass(rng: np.random.Generator, size: int, unit: float) -> Field:
    """Upright blades in many greens, lighter at their tips."""
    blades = smooth_noise(rng, size, 13 * unit, 1, stretch=0.13)
    fine = smooth_noise(rng, size, 7 * unit, 1, stretch=0.17)
    patches = smooth_noise(rng, size, 40 * unit, 2)
    share = 1.1 * (blades - 0.5) + 0.9 * (fine - 0.5) + 0.5 * patches + 0.2
    return _mix(share, _varied(rng, (24, 78, 16), 10), _varied(rng, (138, 190, 58), 16))


def sand(rng: np.random.Generator, size: int, unit: float) -> Field:
    """Pale yellow grains in low ripples."""
    down, across = _grid(size)
    tilt = float(rng.uniform(-0.5, 0.5))
    bend = smooth_noise(rng, size, 40 * unit, 2)
    ripples = np.sin((down + tilt * across) / (2.6 * unit) + 9 * bend)
    grain = rng.random((size, size), dtype=np.float32) - 0.5
    share = 0.5 + 0.22 * ripples + 0.5 * grain + 0.3 * (bend - 0.5)
    return _mix(share, _varied(rng, (196, 156, 98), 12), _varied(rng, (246, 222, 168), 8))


def road(rng: np.random.Generator, size: int, unit: float) -> Field:
    """Dark grey asphalt with light grit and a dashed white line every few metres."""
    grit = rng.random((size, size), dtype=np.float32)
    grit = cv2.GaussianBlur(grit, (3, 3), 0.35 + 0.3 * unit)
    wear = smooth_noise(rng, size, 36 * unit, 2)
    share = 0.3 + 0.9 * (grit - 0.5) + 0.3 * wear
    ground = _mix(share, _varied(rng, (36, 37, 42), 6), _varied(rng, (112, 112, 116), 8))
    down, across = _grid(size)
    slope = float(rng.uniform(-0.15, 0.15))
    place = down + slope * across + float(rng.uniform(0, 44)) * unit
    along = across + float(rng.uniform(0, 26)) * unit
    line = (place % (44 * unit) < 4 * unit) & (along % (26 * unit) < 16 * unit)
    paint = (0.85 * line * np.clip(1.6 - wear, 0, 1)).astype(np.float32)[..., None]
    return np.asarray(
        ground + paint * (rgb((240, 238, 226)) - ground),
        dtype=np.float32,
    )


def brick(rng: np.random.Generator, size: int, unit: float) -> Field:
    """Red bricks in running bond with pale mortar."""
    wide, high = 17 * unit * float(rng.uniform(0.85, 1.15)), 8 * unit
    row, column, down, across = _courses(rng, size, (high, wide), shift=0.5)
    tone = _per_cell(rng, row, column)
    clay = _mix(tone, _varied(rng, (124, 44, 30), 12), _varied(rng, (202, 96, 66), 12))
    clay += (18 * (rng.random((size, size), dtype=np.float32) - 0.5))[..., None]
    joint = max(1.0, 1.3 * unit)
    mortar = (down < joint) | (across < joint)
    return np.where(mortar[..., None], rgb(_varied(rng, (208, 200, 188), 8)), clay)


def wood(rng: np.random.Generator, size: int, unit: float) -> Field:
    """Brown boards, upright or lying, with streaks along them and dark gaps."""
    row, column, down, _ = _courses(rng, size, (15 * unit, 90 * unit), shift=0.37)
    tone = _per_cell(rng, row, column)
    streaks = smooth_noise(rng, size, 3 * unit, 2, stretch=14)
    rings = np.sin(26 * smooth_noise(rng, size, 16 * unit, 1, stretch=5) + 6 * tone)
    share = 0.1 + 0.45 * tone + 0.6 * (streaks - 0.5) + 0.12 * rings + 0.2
    boards = _mix(share, _varied(rng, (92, 54, 24), 10), _varied(rng, (196, 140, 82), 12))
    boards[(down < max(1.0, 0.9 * unit))] *= 0.4
    return boards if rng.random() < 0.5 else np.ascontiguousarray(boards.transpose(1, 0, 2))


def tiles(rng: np.random.Generator, size: int, unit: float) -> Field:
    """Glazed square tiles in two colours, with a gleam on each and white joints."""
    side = 14 * unit * float(rng.uniform(0.85, 1.2))
    row, column, down, across = _courses(rng, size, (side, side), shift=0.0)
    dark = _varied(rng, (48, 128, 140), 22)
    light = _varied(rng, (226, 236, 234), 8)
    glaze = _mix(((row + column) % 2).astype(np.float32), dark, light)
    glaze += (30 * (1 - (down + across) / side))[..., None]
    joint = max(1.0, 1.1 * unit)
    gap = (down < joint) | (across < joint)
    return np.where(gap[..., None], rgb((250, 250, 246)), glaze)


def leaves(rng: np.random.Generator, size: int, unit: float) -> Field:
    """A hedge: overlapping pointed leaves, the upper ones lighter, one half of each in shade."""
    ground = np.full((size, size, 3), (10, 36, 18), np.uint8)
    low, high = rgb(_varied(rng, (14, 66, 30), 10)), rgb((92, 172, 74))
    count = round(1.9 * (size / (7 * unit) + 2) ** 2)
    places = rng.random((count, 1, 2)) * (size + 14 * unit) - 7 * unit
    turns, tones = rng.random(count) * 2 * np.pi, np.sort(rng.random(count))
    along = np.stack([np.cos(turns), np.sin(turns)], axis=1)[:, None]
    aside = along[..., ::-1] * (1, -1)
    # One half of a leaf, from tip to tip; the other half is its mirror image.
    half = np.array([(-6.5, 0), (-2.2, 2.6), (1.2, 2.7), (6.5, 0)]) * unit
    corners = [places + half[:, :1] * along + side * half[:, 1:] * aside for side in (1, -1)]
    halves = np.rint(16 * np.stack(corners, axis=1)).astype(np.int32)  # (leaves, 2, 4, 2)
    colors = (low + tones[:, None] * (high - low))[:, None] * np.array([[1.0], [0.72]])
    for (left, right), (light, dark) in zip(halves, colors.tolist(), strict=True):
        cv2.fillConvexPoly(ground, left, light, shift=4)
        cv2.fillConvexPoly(ground, right, dark, shift=4)
    return ground.astype(np.float32)


def gravel(rng: np.random.Generator, size: int, unit: float) -> Field:
    """Round pebbles in grey and brown with dark gaps."""
    near, second, cell = _cells(rng, size, 6.5 * unit)
    tones = np.stack([rng.random(int(cell.max()) + 1, dtype=np.float32) for _ in range(2)])
    stone = _mix(tones[0][cell], (112, 104, 98), (206, 202, 196))
    stone += (tones[1][cell] - 0.5)[..., None] * rgb((34, 6, -24))
    edge = np.clip((second - near) / (2.2 * unit), 0, 1)
    light = 1.12 - 0.09 * near / unit
    return np.asarray(stone * (light * (0.25 + 0.75 * edge))[..., None], dtype=np.float32)


def lava(rng: np.random.Generator, size: int, unit: float) -> Field:
    """Black crust, cracked, glowing from red to yellow in the cracks."""
    near, second, _ = _cells(rng, size, 17 * unit)
    rough = smooth_noise(rng, size, 8 * unit, 3)
    gap = (second - near) / unit + 7 * (rough - 0.5)
    glow = np.clip(1.15 - gap / 5.5, 0, 1)[..., None]
    crust = _mix(rough, _varied(rng, (22, 12, 12), 5), _varied(rng, (84, 40, 32), 8))
    hot = _mix((1.5 * glow[..., 0] - 0.5).astype(np.float32), (222, 44, 6), (255, 214, 70))
    return crust + glow * (hot - crust)


def _courses(
    rng: np.random.Generator, size: int, cell: tuple[float, float], *, shift: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Field, Field]:
    """Divide a square into rows of cells, each row shifted by a share of a cell.

    Returns:
        (size, size) each: row, column, and the distance to the upper and to the left side.
    """
    down, across = _grid(size)
    down = np.broadcast_to(down + float(rng.uniform(0, cell[0])), (size, size))
    row = np.floor(down / cell[0])
    across = across + float(rng.uniform(0, cell[1])) + (row * shift % 1) * cell[1]
    column = np.floor(across / cell[1])
    rest = (down - row * cell[0]).astype(np.float32), (across - column * cell[1])
    return row.astype(np.int64), column.astype(np.int64), rest[0], rest[1].astype(np.float32)


def _per_cell(
    rng: np.random.Generator, row: npt.NDArray[np.int64], column: npt.NDArray[np.int64]
) -> Field:
    """Return one random value, 0..1, for each cell."""
    values = rng.random((int(row.max()) + 1, int(column.max()) + 1), dtype=np.float32)
    return np.asarray(values[row, column], dtype=np.float32)


def _cells(
    rng: np.random.Generator, size: int, spacing: float
) -> tuple[Field, Field, npt.NDArray[np.int32]]:
    """Divide a square into irregular cells around random points, about `spacing` apart.

    Returns:
        (size, size) each: distance to the nearest point and to the second nearest, and the cell.
    """
    count = int(size / spacing) + 4
    around = np.arange(count, dtype=np.float32) - 1.5  # points lie around the square, too
    jitter = np.float32(0.1) + np.float32(0.8) * rng.random((2, count, count), dtype=np.float32)
    ys, xs = (around[:, None] + jitter[0]) * spacing, (around + jitter[1]) * spacing
    down, across = _grid(size)
    home = np.floor(np.arange(size) / spacing + 1.5).astype(np.intp)
    near = np.full((size, size), np.inf, np.float32)
    second, cell = near.copy(), np.zeros((size, size), np.int32)
    for rows in (home - 1, home, home + 1):
        for columns in (home - 1, home, home + 1):
            index = np.ix_(rows.clip(0, count - 1), columns.clip(0, count - 1))
            distance = np.square(ys[index] - down) + np.square(xs[index] - across)
            nearer = distance < near
            np.minimum(second, np.maximum(near, distance), out=second)
            np.minimum(near, distance, out=near)
            np.copyto(cell, (rows[:, None] * count + columns).astype(np.int32), where=nearer)
    return np.sqrt(near), np.sqrt(second), cell.clip(0, count * count - 1)


TEXTURES: dict[str, Texture] = {
    function.__name__: function
    for function in (
        sky, water, snow, grass, sand, road, brick, wood, tiles, leaves, gravel, lava,
    )
}  # fmt: skip
