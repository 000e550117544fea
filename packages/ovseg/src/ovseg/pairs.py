"""Pairs of a masked crop and a noun, with which CLIP is adapted to masks.

A crop has its background painted in one colour, by which its mask is found again; so the files are
PNG, whose colours survive. A list of pairs is a TSV with the columns `filepath` and `title`.

Source: OVSeg paper section 3.2; SPEC ovseg 11.1 and 11.2.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from openvocab.clip.config import PIXEL_MEAN, PIXEL_STD
from openvocab.errors import InputError
from openvocab.files import atomic_path
from openvocab.image import ImageArray, read_image
from openvocab.reading.files import read_text
from openvocab.reading.json_files import parse_json
from openvocab.training.order import Key, seed_of
from ovseg.regions import expand_boxes, tight_boxes

PAINT = (124, 116, 103)  # CLIP's mean colour, rounded
LIST_FILE, LOG_FILE, SHEET_FILE = "pairs.tsv", "pairs.jsonl", "contact_sheet.png"
_MOST_BYTES = 1 << 30  # of the list or the log

_RATIO = (3 / 4, 4 / 3)
# First bytes of files whose colours are not exactly what was written.
_LOSSY = {
    b"\xff\xd8\xff": "JPEG",
    b"WEBPVP8 ": "lossy WebP",
    b"ftypavif": "AVIF",
    b"ftyphei": "HEIF",
}
_TILE, _COLUMNS = 160, 8


class Pair(NamedTuple):
    """A crop and its noun."""

    path: Path
    title: str


class PairItem(TypedDict):
    """A normalised crop (3, S, S), its foreground (1, S, S), and its title."""

    image: Tensor
    mask: Tensor
    title: str


def paint_crop(image: ImageArray, mask: NDArray[np.bool_], expand_ratio: float = 1.0) -> ImageArray:
    """Cut the box of a mask out of an image (H, W, 3), with the background painted.

    Args:
        image: RGB.
        mask: foreground (H, W).
        expand_ratio: factor by which the sides of the box grow, as far as the image allows.

    Raises:
        ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError("an empty mask has no crop")
    size = (mask.shape[0], mask.shape[1])
    boxes = expand_boxes(tight_boxes(torch.from_numpy(mask)[None]), expand_ratio, size)
    x1, y1, x2, y2 = boxes[0].tolist()
    box = slice(y1, y2), slice(x1, x2)
    return np.where(mask[box][..., None], image[box], np.array(PAINT, np.uint8)).astype(np.uint8)


def recover_mask(crop: ImageArray) -> NDArray[np.bool_]:
    """Return the foreground (H, W) of a painted crop: all pixels but those of exactly its color."""
    return np.asarray((crop != np.array(PAINT, np.uint8)).any(-1))


def read_pairs(file: Path) -> list[Pair]:
    """Read a list of pairs; relative paths start at its folder.

    Raises:
        InputError: no such file, not this layout, empty, or a line lacks its title.
    """
    text = read_text(file, "list of pairs", most_bytes=_MOST_BYTES)
    lines = text.replace("\r\n", "\n").split("\n")
    header = lines[0].split("\t")
    rows = [(number, line.split("\t")) for number, line in enumerate(lines[1:], 2) if line.strip()]
    if not {"filepath", "title"} <= set(header):
        raise InputError(f"{file} must be a TSV with the columns filepath and title")
    if not rows:
        raise InputError(f"{file} lists no pairs; expected a line for each")
    pairs = []
    for number, row in rows:
        fields = dict(zip(header, row, strict=False))
        path, title = (fields.get(name, "").strip() for name in ("filepath", "title"))
        if len(row) != len(header) or not path or not title:
            raise InputError(
                f"line {number} of {file} has {len(row)} columns where the first line names "
                f"{len(header)} ({', '.join(header)}), or an empty one; give each crop a title"
            )
        pairs.append(Pair(file.parent / path, title))
    return pairs


def check_crops(pairs: Sequence[Pair], source: Path, *, masked: bool) -> None:
    """Check the first bytes of all crops before a training that takes hours.

    Args:
        pairs: the pairs of the list, as they were read.
        source: the list, for errors.
        masked: the masks are found again by the colour of the background, which JPEG changes.

    Raises:
        InputError: a crop is missing, or its mask is lost.
    """
    for pair in pairs:
        try:
            with pair.path.open("rb") as file:
                head = file.read(16)
        except OSError as error:
            raise InputError(
                f"{source} lists {pair.path}, which cannot be read: {error.strerror}; "
                "write the crops again"
            ) from None
        lossy = next((name for start, name in _LOSSY.items() if start in head), None)
        if masked and lossy is not None:
            raise InputError(
                f"{pair.path} is {lossy}, which changes the painted background, so that its mask "
                "is lost and mask prompts would learn from another one; write the crops as PNG "
                "anew (a converted copy would not help), or adapt without mask prompts "
                "(--mask-prompt-depth 0)"
            )


class PairData(Dataset[PairItem]):
    """Crops with their masks, varied for training or as they are for validation.

    Args:
        pairs: the list.
        size: side S of CLIP's input.
        scale: share of the crop's area that a random crop keeps; None: no variation.
        seed: seed of all random numbers.
    """

    def __init__(
        self, pairs: Sequence[Pair], size: int, scale: tuple[float, float] | None, seed: int = 0
    ) -> None:
        self.pairs, self.size, self.scale, self.seed = pairs, size, scale, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: Key) -> PairItem:
        position, index = key
        pair = self.pairs[index]
        crop = Image.fromarray(read_image(pair.path))
        if self.scale is None:
            resized = validation_view(crop, self.size)
        else:
            resized = training_view(crop, self.size, self.scale, seed_of(self.seed, position))
        pixels = np.asarray(resized)
        mask = torch.from_numpy(recover_mask(pixels)).float()[None]
        return {"image": normalize(pixels), "mask": mask, "title": pair.title}


def training_view(
    crop: Image.Image, size: int, scale: tuple[float, float], seed: int
) -> Image.Image:
    """Take a random part of a crop and stretch it to a square, bicubically."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        box = v2.RandomResizedCrop(size, scale=scale, ratio=_RATIO).make_params([crop])
    part = (box["top"], box["left"], box["height"], box["width"])
    view: Image.Image = TF.resized_crop(crop, *part, [size, size], InterpolationMode.BICUBIC)
    return view


def validation_view(crop: Image.Image, size: int) -> Image.Image:
    """Resize the short side bicubically, and cut out the middle."""
    resized = TF.resize(crop, [size], InterpolationMode.BICUBIC)
    view: Image.Image = TF.center_crop(resized, [size, size])
    return view


def normalize(pixels: ImageArray) -> Tensor:
    """Turn (H, W, 3) uint8 into what CLIP expects, (3, H, W)."""
    unit = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return (unit - mean) / std


class PairWriter:
    """A writer of crops and their list, which continues after an interruption.

    Args:
        folder: gets `crops/`, the log, and the list.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            (folder / "crops").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot write into {folder}: {error.strerror}; choose another --output"
            ) from None
        for unfinished in (*folder.glob(".*-*"), *(folder / "crops").glob(".*-*")):
            unfinished.unlink()  # of a collection that was killed while it wrote
        self._entries = _read_entries(folder / LOG_FILE)
        _rewrite(folder / LOG_FILE, self._entries)

    @property
    def done(self) -> set[str]:
        """The images that are finished."""
        return {entry["image"] for entry in self._entries}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """File and title of all pairs, in the order of writing."""
        return [(file, title) for entry in self._entries for file, title in entry["pairs"]]

    def add(self, image: str, crops: Iterable[tuple[ImageArray, str]]) -> None:
        """Write the pairs of one image; when this returns, they are on the disk."""
        written = []
        for index, (pixels, title) in enumerate(crops):
            file = f"crops/{image}_{index}.png"
            with atomic_path(self.folder / file) as temporary:
                Image.fromarray(pixels).save(temporary)
            written.append((file, " ".join(title.split())))
        entry = {"image": image, "pairs": written}
        with (self.folder / LOG_FILE).open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
            log.flush()
            os.fsync(log.fileno())
        self._entries.append(entry)

    def finish(self) -> Path:
        """Write the list of all pairs and the contact sheet; return the list."""
        path = self.folder / LIST_FILE
        with atomic_path(path) as temporary:
            lines = ["filepath\ttitle", *(f"{file}\t{title}" for file, title in self.pairs)]
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        if self.pairs:
            with atomic_path(self.folder / SHEET_FILE) as temporary:
                contact_sheet(self.folder, self.pairs).save(temporary)
        return path


def contact_sheet(
    folder: Path, pairs: Sequence[tuple[str, str]], tiles: int = 48, seed: int = 0
) -> Image.Image:
    """Draw a random choice of crops, with their titles below them."""
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:tiles]
    rows = -(-len(chosen) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _TILE, rows * (_TILE + 24)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(sorted(chosen)):
        file, title = pairs[index]
        tile = Image.fromarray(read_image(folder / file))
        tile.thumbnail((_TILE - 8, _TILE - 8))
        left, top = place % _COLUMNS * _TILE + 4, place // _COLUMNS * (_TILE + 24) + 4
        sheet.paste(tile, (left, top))
        draw.text((left, top + _TILE - 6), textwrap.shorten(title, 24, placeholder="..."), "black")
    return sheet


def _read_entries(log: Path) -> list[dict[str, Any]]:
    """Return the finished images; a last line that was cut off is left out."""
    if not log.is_file():
        return []
    entries = []
    for line in read_text(log, "log of pairs", most_bytes=_MOST_BYTES).splitlines():
        try:
            entry = parse_json(line, str(log), "a line of a log")
        except InputError:  # killed while it was written
            break
        if not isinstance(entry, dict) or not {"image", "pairs"} <= entry.keys():
            raise InputError(f"{log} is not a log of pairs; give another folder, or delete it")
        entries.append(entry)
    return entries


def _rewrite(log: Path, entries: Sequence[dict[str, Any]]) -> None:
    with atomic_path(log) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in entries), "utf-8")
