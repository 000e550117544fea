"""Scenes as plain folders, with captions and nouns, for programs that do not know the world."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from tqdm import tqdm

from openvocab.files import atomic_path, write_text
from openvocab.world.names import names_in_caption, world_vocabulary
from openvocab.world.pictograms import Pixels
from openvocab.world.scenes import Labels, Split, scene


def export(folder: Path, split: Split, count: int, size: int, first: int = 0) -> None:
    """Write `images/*.png`, `labels/*.png`, `names.txt`, `captions.tsv` and `nouns.tsv`.

    The names are those of the labels: without the unseen ones in "train" and "pretrain". A line of
    `captions.tsv` is an image, a tab and its caption; one of `nouns.tsv` has what it names instead,
    with commas.

    Args:
        folder: output folder; files of the same names are replaced.
        split: split of the scenes.
        count: number of scenes.
        size: length of the sides in pixels.
        first: index of the first scene.

    Raises:
        InputError: see `scene`.
    """
    captions, nouns = [], []
    for index in tqdm(range(first, first + count), unit="scene", disable=None):
        image, label, caption = scene(index, split, size)
        name = f"{index:06d}.png"
        write_scene(folder / "images" / name, folder / "labels" / name, image, label)
        captions.append(f"{name}\t{caption}\n")
        nouns.append(f"{name}\t{', '.join(names_in_caption(caption))}\n")
    names = world_vocabulary(seen_only=split in ("train", "pretrain")).names
    write_text(folder / "names.txt", "".join(f"{name}\n" for name in names))
    write_text(folder / "captions.tsv", "".join(captions))
    write_text(folder / "nouns.tsv", "".join(nouns))


def write_scene(image_path: Path, label_path: Path, image: Pixels, label: Labels) -> None:
    """Write an image and its label map as PNG, the label map first, each atomically."""
    for path, pixels in ((label_path, label), (image_path, image)):
        with atomic_path(path) as temporary:
            Image.fromarray(pixels).save(temporary, compress_level=1)
