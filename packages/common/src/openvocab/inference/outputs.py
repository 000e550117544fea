"""Where the results of every image go, and how they get there: all kinds of an image, or none."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
from PIL import Image

from openvocab.drawing.overlay import draw_overlay
from openvocab.errors import InputError, one_line
from openvocab.files import atomic_paths
from openvocab.image import IMAGE_SUFFIXES, ImageArray
from openvocab.inference.layout import DEFAULT_KINDS, ENDINGS
from openvocab.segmenter import Segmentation

_RESERVED = "summary"  # the file of the run, not of an image
Files = dict[str, Path]
"""The file of each kind of result of one image."""


def plan_outputs(
    names: Mapping[Path, str], output: Path, kinds: tuple[str, ...] | None
) -> dict[Path, Files]:
    """Choose the files of every image's results.

    Args:
        names: of the results of each image, from `result_names`.
        output: a folder; or for one image the file of its overlay.
        kinds: what to write, of `KINDS`; None for the usual.

    Raises:
        InputError: one file for several images.
    """
    if not is_one_file(output):
        kinds = DEFAULT_KINDS if kinds is None else kinds
        return {
            path: {kind: output / f"{name}{ENDINGS[kind]}" for kind in kinds}
            for path, name in names.items()
        }
    if len(names) > 1:
        raise InputError(
            f"--output '{output}' is one file, but there are {len(names)} images; give a folder"
        )
    files = {kind: output.with_name(output.stem + ENDINGS[kind]) for kind in kinds or ()}
    return {path: {**files, "overlay": output} for path in names}


def is_one_file(output: Path) -> bool:
    """Tell whether the results go to one picture instead of a folder."""
    return output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir()


def result_names(images: Mapping[Path, Path]) -> dict[Path, str]:
    """Name the results of each image: its relative path, and more of it where two would be equal.

    Upper and lower case count as equal, as they are on many file systems.

    Args:
        images: with the relative path, without suffix, that names the results of each.
    """
    choices = {path: _possible_names(path, relative) for path, relative in images.items()}
    level = dict.fromkeys(images, 0)
    while True:
        names = {path: choices[path][level[path]] for path in images}
        counts = Counter([_RESERVED, *(name.casefold() for name in names.values())])
        clashing = [path for path, name in names.items() if counts[name.casefold()] > 1]
        movable = [path for path in clashing if level[path] + 1 < len(choices[path])]
        if not movable:
            return names
        for path in movable:
            level[path] += 1


def _possible_names(path: Path, relative: Path) -> list[str]:
    """Return names for the results of an image, from short to unmistakable."""
    real = Path(os.path.realpath(path))
    parts = real.parts[1:]
    tails = [Path(*parts[-count:]).as_posix() for count in range(1, len(parts) + 1)]
    digest = hashlib.sha256(os.fsencode(real)).hexdigest()[:8]
    return [
        relative.with_suffix("").as_posix(),
        relative.as_posix(),
        *tails[1:],
        f"{tails[-1]}-{digest}",
    ]


def check_no_input_is_overwritten(outputs: Mapping[Path, Files]) -> None:
    """Refuse results that would take the place of an input image.

    Raises:
        InputError: there is one.
    """
    inputs = {os.path.realpath(path) for path in outputs}
    for files in outputs.values():
        for file in files.values():
            if os.path.realpath(file) in inputs:
                raise InputError(
                    f"the result '{file}' would overwrite an input image; choose another --output"
                )


def check_writable(folders: set[Path]) -> None:
    """Make folders, and check that files can be written to each.

    Raises:
        InputError: one cannot be made or written.
    """
    for folder in sorted(folders):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InputError(
                f"results cannot be written to '{folder}' ({error.strerror}); choose another "
                "--output"
            ) from error


def write_results(
    source: Path,
    image: ImageArray,
    found: Segmentation,
    method: Mapping[str, Any],
    files: Files,
    pictures: Mapping[Path, ImageArray],
    others: Sequence[tuple[Path, bytes]] = (),
) -> None:
    """Write the results of one image: all of them, or none.

    Args:
        source: the image's file.
        image: (H, W, 3) uint8.
        found: its segmentation.
        method: what describes the method, for the JSON.
        files: what to write where.
        pictures: the method's own, (H, W, 3) uint8, for each file.
        others: further files with their content, such as those of other tools' formats.

    Raises:
        OSError: they cannot be written.
    """
    targets = [*files.values(), *pictures, *(path for path, _ in others)]
    with atomic_paths(targets) as temporaries:
        for kind, file in zip(files, temporaries, strict=False):
            if kind == "overlay":
                names = found.vocabulary.names
                picture = draw_overlay(image, found.labels, names, max_side=None)
                write_picture(picture, file)
            elif kind == "json":
                content = {"image": one_line(str(source)), **found.to_json(), "method": method}
                file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
            else:
                found.write(file)
        rest = iter(temporaries[len(files) :])
        for own in pictures.values():
            write_picture(own, next(rest))
        for (_, data), file in zip(others, rest, strict=True):
            file.write_bytes(data)


def write_picture(picture: ImageArray, file: Path) -> None:
    """Write a picture (H, W, 3) in the format of the suffix; PNG by OpenCV, which is faster."""
    if file.suffix.lower() != ".png":
        Image.fromarray(picture).save(file)
        return
    done, content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(None, "the picture cannot be encoded as PNG")
    file.write_bytes(content.tobytes())
