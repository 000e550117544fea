"""The prediction command that the three models share: images and names in, files out.

Everything that can be wrong with the arguments is found before a model is loaded; an image that
cannot be used is reported at the end and does not stop the others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from openvocab.computation import add_computation_arguments, choose_device, dtype_of
from openvocab.errors import InputError
from openvocab.files import atomic_path, write_text
from openvocab.image import (
    DEFAULT_MAX_PIXELS,
    IMAGE_SUFFIXES,
    ImageArray,
    list_images,
    read_image,
)
from openvocab.segmenter import Segmentation, Segmenter
from openvocab.vocabulary import Vocabulary, parse_names

KINDS = ("label", "overlay", "json", "scores")
DEFAULT_KINDS = ("label", "overlay", "json")
SOME_FAILED = 1
_ENDINGS = {
    "label": "_labels.png",
    "overlay": "_overlay.png",
    "json": ".json",
    "scores": "_scores.npz",
}


def add_predict_arguments(parser: argparse.ArgumentParser, *, templates: str = "vild") -> None:
    """Add the options that every method's prediction command has.

    Args:
        parser: of the command.
        templates: the prompt templates of the method, for names that the user gives.
    """
    parser.set_defaults(templates=templates)
    data = parser.add_argument_group("images and names")
    data.add_argument("images", nargs="*", metavar="IMAGE", help="the same as --input")
    data.add_argument(
        "--input",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="image files, folders (searched recursively), or quoted globs",
    )
    data.add_argument(
        "--class-names",
        nargs="+",
        action=_NamesAction,
        metavar="NAME",
        help="what to look for; quote names with spaces, or put commas between all names",
    )
    data.add_argument(
        "--vocabulary",
        metavar="NAME",
        help="the names of a data set, such as ade20k-150, or a file with one name per line, in "
        "which names may have commas",
    )
    data.add_argument(
        "--augment-vocabulary",
        choices=("coco-stuff", "coco-all"),
        help="let the 91 stuff names or all 171 names of COCO-Stuff compete too; where they win, "
        "the pixel is none of your names",
    )
    data.add_argument(
        "--max-pixels",
        type=int,
        default=DEFAULT_MAX_PIXELS,
        metavar="N",
        help="refuse larger images (default: %(default)s)",
    )
    result = parser.add_argument_group("results")
    result.add_argument(
        "--output",
        type=Path,
        default=Path("output"),
        metavar="DIR",
        help="folder of the results, or for one image the file of its overlay (default: output)",
    )
    result.add_argument(
        "--save",
        type=_kinds,
        metavar="KINDS",
        help=f"what to write, separated by commas: {', '.join(KINDS)} "
        f"(default: {','.join(DEFAULT_KINDS)})",
    )
    add_computation_arguments(parser)


@dataclass(frozen=True)
class Prediction:
    """A checked order: which images, which names, which files to write.

    Attributes:
        outputs: for each image, the file to write for each kind.
        vocabulary: the names.
        max_pixels: larger images are bad images.
    """

    outputs: dict[Path, dict[str, Path]]
    vocabulary: Vocabulary
    max_pixels: int = DEFAULT_MAX_PIXELS

    def run(self, segmenter: Segmenter) -> int:
        """Predict all images, then report those that could not be used.

        Returns:
            0, or 1 if there was a bad image.

        Raises:
            InputError: a result cannot be written.
        """
        failures: list[str] = []
        method = segmenter.describe()
        for path in tqdm(self.outputs, unit="image", disable=len(self.outputs) == 1):
            try:
                image = read_image(path, max_pixels=self.max_pixels)
                found = segmenter.segment(image, self.vocabulary, return_scores=self._scores)
            except InputError as error:
                failures.append(str(error))
                continue
            _write(path, image, found, method, self.outputs[path])
        done = len(self.outputs) - len(failures)
        print(f"{done} of {len(self.outputs)} images done, results in '{self._folder}'")
        if failures:
            print(f"{len(failures)} could not be used:", *failures, sep="\n  ", file=sys.stderr)
        return SOME_FAILED if failures else 0

    @property
    def _scores(self) -> bool:
        return any("scores" in files for files in self.outputs.values())

    @property
    def _folder(self) -> str:
        return os.path.commonpath(
            [file.parent for files in self.outputs.values() for file in files.values()]
        )


def plan_prediction(args: argparse.Namespace) -> Prediction:
    """Check the arguments of `add_predict_arguments`, without loading a model.

    Raises:
        InputError: no image, no name, an unknown vocabulary or device, results that cannot be
            written or that would overwrite an image.
    """
    vocabulary = _vocabulary(args)
    choose_device(args.device)
    dtype_of(args.precision)
    patterns = [*args.images, *args.input]
    if not patterns:
        raise InputError("no image is given; name files, folders or globs with --input.")
    if args.max_pixels < 1:
        raise InputError(f"--max-pixels is {args.max_pixels}, expected at least 1.")
    outputs = _plan_outputs(_find_images(patterns, args.output), args)
    _check_no_input_is_overwritten(outputs)
    _check_writable({file.parent for files in outputs.values() for file in files.values()})
    return Prediction(outputs, vocabulary, args.max_pixels)


def run_prediction(
    args: argparse.Namespace,
    segmenter: Segmenter | Callable[[argparse.Namespace], Segmenter],
) -> int:
    """Check everything, load the model, predict.

    Args:
        args: parsed with `add_predict_arguments`.
        segmenter: the method, or better what makes it of the arguments: it is called when all else
            has been checked.

    Returns:
        0, or 1 if some images could not be used.

    Raises:
        InputError: see `plan_prediction`.
    """
    prediction = plan_prediction(args)
    ready = segmenter if isinstance(segmenter, Segmenter) else segmenter(args)
    return prediction.run(ready)


class _NamesAction(argparse.Action):
    """Keeps names as `parse_names` understands them, so that all that follows sees names."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, list(parse_names(values)))


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown) or 'nothing'!r}: expected some of {','.join(KINDS)}"
        )
    return kinds


def _vocabulary(args: argparse.Namespace) -> Vocabulary:
    if args.class_names is not None and args.vocabulary is not None:
        raise InputError("give --class-names or --vocabulary, not both.")
    if args.vocabulary is not None:
        vocabulary = _named_vocabulary(args.vocabulary, args.templates)
    elif args.class_names is not None:
        vocabulary = Vocabulary.from_names(args.class_names, templates=args.templates)
    else:
        raise InputError("no names are given; say what to look for with --class-names NAME ...")
    if args.augment_vocabulary is not None:
        vocabulary = vocabulary.augmented(args.augment_vocabulary)
    return vocabulary


def _named_vocabulary(name: str, templates: str) -> Vocabulary:
    if Path(name).is_file():
        return Vocabulary.from_file(name, templates=templates)
    return Vocabulary.load(name)


def _find_images(patterns: Sequence[str], output: Path) -> dict[Path, Path]:
    """Return the images with the relative path, without suffix, that names their results."""
    found: dict[Path, Path] = {}
    seen: set[Path] = set()
    for pattern in patterns:
        folder = Path(pattern)
        results = output.resolve()
        for path in list_images([pattern]):
            inside = folder.is_dir()
            if inside and results != folder.resolve() and results in path.resolve().parents:
                continue  # a result of an earlier run
            if path.resolve() not in seen:
                seen.add(path.resolve())
                found[path] = path.relative_to(folder) if inside else Path(path.name)
    if not found:
        raise InputError(f"the input holds no image but results of earlier runs in '{output}'.")
    return found


def _plan_outputs(
    images: dict[Path, Path], args: argparse.Namespace
) -> dict[Path, dict[str, Path]]:
    """Choose the files of every image's results, so that no two images share one."""
    output: Path = args.output
    kinds = args.save or DEFAULT_KINDS
    if output.suffix.lower() not in IMAGE_SUFFIXES or output.is_dir():
        return {
            path: {kind: output / f"{name}{_ENDINGS[kind]}" for kind in kinds}
            for path, name in _unique_names(images).items()
        }
    if len(images) > 1:
        raise InputError(
            f"--output '{output}' is one file, but there are {len(images)} images; give a folder."
        )
    files = {kind: output.with_name(output.stem + _ENDINGS[kind]) for kind in args.save or ()}
    return {path: {**files, "overlay": output} for path in images}


def _unique_names(images: dict[Path, Path]) -> dict[Path, str]:
    """Name the results of each image: its relative path, and more of it where two would be equal.

    Upper and lower case count as equal, as they are on many file systems.
    """
    choices = {path: _possible_names(path, relative) for path, relative in images.items()}
    level = dict.fromkeys(images, 0)
    while True:
        names = {path: choices[path][level[path]] for path in images}
        counts = Counter(name.casefold() for name in names.values())
        clashing = [path for path, name in names.items() if counts[name.casefold()] > 1]
        movable = [path for path in clashing if level[path] + 1 < len(choices[path])]
        if not movable:
            return names
        for path in movable:
            level[path] += 1


def _possible_names(path: Path, relative: Path) -> list[str]:
    """Return names for the results of an image, from short to unmistakable."""
    parts = path.resolve().parts[1:]
    tails = [Path(*parts[-count:]).as_posix() for count in range(1, len(parts) + 1)]
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:8]
    return [
        relative.with_suffix("").as_posix(),
        relative.as_posix(),
        *tails[1:],
        f"{tails[-1]}-{digest}",
    ]


def _check_no_input_is_overwritten(outputs: dict[Path, dict[str, Path]]) -> None:
    inputs = {path.resolve() for path in outputs}
    for files in outputs.values():
        for file in files.values():
            if file.resolve() in inputs:
                raise InputError(
                    f"the result '{file}' would overwrite an input image; choose another --output."
                )


def _check_writable(folders: set[Path]) -> None:
    for folder in sorted(folders):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InputError(
                f"results cannot be written to '{folder}' ({error.strerror}); choose another "
                "--output."
            ) from error


def _write(
    source: Path,
    image: ImageArray,
    found: Segmentation,
    method: dict[str, Any],
    files: dict[str, Path],
) -> None:
    try:
        for kind, file in files.items():
            if kind == "overlay":
                _save_picture(found.overlay(image), file)
            elif kind == "json":
                content = {"image": str(source), **found.to_json(), "method": method}
                write_text(file, json.dumps(content, ensure_ascii=False))
            else:
                found.save(file)
        for name, picture in found.extra.get("pictures", {}).items():
            _save_picture(picture, _beside(next(iter(files.items())), name))
    except OSError as error:
        raise InputError(
            f"cannot write results of '{source}': {error.strerror or error}."
        ) from error


def _beside(result: tuple[str, Path], name: str) -> Path:
    """Return the file of a method's own picture, named like another result of the image."""
    kind, file = result
    ending = _ENDINGS[kind]
    stem = file.name.removesuffix(ending) if file.name.endswith(ending) else file.stem
    return file.with_name(f"{stem}_{name}.png")


def _save_picture(picture: ImageArray, file: Path) -> None:
    with atomic_path(file) as temporary:
        Image.fromarray(picture).save(temporary)
