"""Putting the referring data sets' files where CaR and the others look for them."""

from __future__ import annotations

from pathlib import Path

from openvocab.datasets.archives import Source
from openvocab.datasets.preparation import Placing, place_file
from openvocab.datasets.referring import DATA, IMAGES, REFERRING, load_referring


def prepare_referring(name: str, source: Source, output: Path, placing: Placing) -> str:
    """Place expressions, masks and the images that they need, and read them back.

    Returns:
        What is there now, for people.

    Raises:
        InputError: a file is missing, damaged, or would run code.
    """
    spec = REFERRING[name]
    folder = source.path(spec.folder, f"data/{spec.folder}", f"{DATA}/{spec.folder}")
    for file in (spec.file, "instances.json"):
        place_file(
            source.path(f"{folder.relative_to(_root(source, folder))}/{file}"),
            output / DATA / spec.folder / file,
            placing,
        )
    images = source.path("train2014", "images/train2014", "images/mscoco/images/train2014", IMAGES)
    lines: list[str] = []
    placed: set[str] = set()
    for split in spec.splits:
        samples = load_referring(name, split, output)
        lines.append(f"{name} {split}: {len(samples)} items")
        for file in {sample.image.name for sample in samples} - placed:
            place_file(images / file, output / IMAGES / file, placing)
            placed.add(file)
    return "\n".join([*lines, f"{len(placed)} images in {output / IMAGES}"])


def _root(source: Source, folder: Path) -> Path:
    return next(root for root in source.roots if folder.is_relative_to(root))
