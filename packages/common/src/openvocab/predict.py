"""The prediction command that all methods share: images and names in, files out.

    python -m openvocab.predict --method san --weights world photo.jpg --class-names dog grass

Everything that can be wrong with the arguments is found before a model is loaded; an image that
cannot be used is reported and does not stop the others.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openvocab.cli import CommandParser, run
from openvocab.computation import add_computation_arguments, check_precision, choose_device
from openvocab.errors import InputError
from openvocab.formats.writers import FORMATS
from openvocab.image import DEFAULT_MAX_PIXELS, IMAGE_SUFFIXES, list_images
from openvocab.inference.exports import check_names
from openvocab.inference.folder import Prediction
from openvocab.inference.layout import DEFAULT_KINDS, KINDS
from openvocab.inference.outputs import (
    check_no_input_is_overwritten,
    check_writable,
    is_one_file,
    plan_outputs,
    result_names,
)
from openvocab.inference.streams import (
    add_stream_arguments,
    is_stream,
    left_out,
    plan_streams,
    run_streams,
)
from openvocab.inference.tiles import TiledSegmenter
from openvocab.inference.video import VIDEO_SUFFIXES
from openvocab.methods import add_method_arguments, find_method, load_from_arguments
from openvocab.segmenter import Segmenter, check_thresholds
from openvocab.vocabulary import Vocabulary, parse_names

if TYPE_CHECKING:
    from openvocab.drawing.steps import Explain

_FILE_SIGN = "@"  # in front of a file of names


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
        help="image files, folders, quoted globs, or videos",
    )
    data.add_argument(
        "--recursive",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also look into the folders of a folder (default: yes)",
    )
    data.add_argument(
        "--glob",
        metavar="PATTERN",
        help="of folders, take only files that match, such as '*.jpg' or 'summer/*'",
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
        "--names",
        type=Path,
        metavar="FILE",
        help="a file with one name per line; the same as --class-names @FILE",
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
        help=f"what to write, separated by commas: {', '.join(KINDS)}; and for other tools "
        f"{', '.join(FORMATS)} (default: {','.join(DEFAULT_KINDS)})",
    )
    result.add_argument(
        "--min-score",
        type=float,
        metavar="S",
        help="drop a name from an image where its mean score is lower",
    )
    result.add_argument(
        "--min-area",
        type=float,
        metavar="SHARE",
        help="drop a name from an image where it covers less than this share of it (0 to 1)",
    )
    result.add_argument(
        "--none-of-these",
        type=float,
        metavar="S",
        help="leave pixels blank that show any of the names less probably than this (0 to 1). "
        "If the weights are not calibrated, S is compared with the method's own scores",
    )
    result.add_argument(
        "--skip-existing",
        action="store_true",
        help="go on with an earlier run: leave images alone whose results are complete",
    )
    result.add_argument(
        "--show-steps",
        action="store_true",
        help="also write a picture, NAME_steps.png, of how the method came to its result",
    )
    result.add_argument("--quiet", action="store_true", help="print nothing but failures")
    add_stream_arguments(parser)
    add_computation_arguments(parser)


def plan_prediction(
    args: argparse.Namespace, images: Mapping[Path, Path] | None = None
) -> Prediction:
    """Check the arguments of `add_predict_arguments`, without loading a model.

    Args:
        args: parsed.
        images: with the relative path that names the results of each; None looks for them.

    Raises:
        InputError: no image, no name, an unknown vocabulary or device, results that cannot be
            written or that would overwrite an image.
    """
    vocabulary = _checked_vocabulary(args)
    if images is None:
        images = _find_inputs(args)
    thresholds = _thresholds(args)
    kinds = None if args.save is None else tuple(kind for kind in args.save if kind in KINDS)
    formats = tuple(kind for kind in args.save or () if kind in FORMATS)
    if formats and is_one_file(args.output):
        raise InputError(f"--save {formats[0]} needs a folder as --output, not '{args.output}'")
    check_names(formats, vocabulary.names)
    names = result_names(images)
    outputs = plan_outputs(names, args.output, kinds)
    check_no_input_is_overwritten(outputs)
    folders = {file.parent for files in outputs.values() for file in files.values()}
    check_writable(folders or {args.output})
    return Prediction(
        outputs,
        vocabulary,
        None if is_one_file(args.output) else args.output,
        max_pixels=args.max_pixels,
        thresholds=thresholds,
        skip_existing=args.skip_existing,
        quiet=args.quiet,
        names=names,
        formats=formats,
    )


def _checked_vocabulary(args: argparse.Namespace) -> Vocabulary:
    """Return the names, after checking them and all that images and videos have in common."""
    from openvocab.clip.prompts import check_lengths  # imports torch, which --help can do without

    vocabulary = _vocabulary(args)
    check_lengths(vocabulary.words, vocabulary.templates)
    choose_device(args.device)
    check_precision(args.precision)
    if args.max_pixels < 1:
        raise InputError(f"--max-pixels is {args.max_pixels}, expected at least 1")
    return vocabulary


def _thresholds(args: argparse.Namespace) -> dict[str, float | None]:
    found = {name: getattr(args, name) for name in ("none_of_these", "min_score", "min_area")}
    check_thresholds(**found)
    return found


def run_prediction(
    args: argparse.Namespace,
    segmenter: Segmenter | Callable[[argparse.Namespace], Segmenter],
    explain: Explain | None = None,
) -> int:
    """Check everything, load the model, predict.

    Args:
        args: parsed with `add_predict_arguments`.
        segmenter: the method, or better what makes it of the arguments: it is called when all else
            has been checked.
        explain: of the method, see `openvocab.methods.Method`; for `--show-steps`.

    Returns:
        0, or 1 if some images could not be used.

    Raises:
        InputError: see `plan_prediction`; or the method cannot show its steps.
    """
    if args.show_steps and explain is None:
        raise InputError("this method cannot show its steps; leave --show-steps out")
    if args.show_steps and args.tile is not None:
        raise InputError("a method shows its steps for whole images; give --show-steps or --tile")
    vocabulary, thresholds = _checked_vocabulary(args), _thresholds(args)
    inputs = _find_inputs(args)
    long = {path: name for path, name in inputs.items() if is_stream(str(path), args)}
    streams = plan_streams(args, long, vocabulary, thresholds)
    images = {path: name for path, name in inputs.items() if path not in long}
    prediction = plan_prediction(args, images)
    for sentence in () if args.quiet else left_out(streams, args):
        print(sentence, file=sys.stderr)
    ready = segmenter if isinstance(segmenter, Segmenter) else segmenter(args)
    limits = [name for name in ("none_of_these", "min_score") if thresholds[name] is not None]
    if limits and not args.quiet and not getattr(ready, "calibrated", False):
        options = " and ".join(f"--{name.replace('_', '-')}" for name in limits)
        print(
            f"these weights are not calibrated, so {options} is compared with the method's own "
            "scores, which are no probabilities; see python -m openvocab.calibrate --help",
            file=sys.stderr,
        )
    prediction = replace(prediction, streams=tuple(long))
    whole = ready if args.tile is None else TiledSegmenter(ready, args.tile, args.overlap)
    if args.show_steps and explain is not None:
        from openvocab.drawing.steps import ShowingSteps

        whole = ShowingSteps(ready, explain)
    return prediction.run(whole, run_streams(streams, ready))


class _NamesAction(argparse.Action):
    """Keeps names as `parse_names` understands them, so that all that follows sees names."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, list(parse_names(values)))


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    known = (*KINDS, *FORMATS)
    unknown = [kind for kind in kinds if kind not in known]
    if unknown or not kinds:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown) or 'nothing'!r}: expected some of {','.join(known)}"
        )
    return kinds


def _vocabulary(args: argparse.Namespace) -> Vocabulary:
    given = {
        "--class-names": args.class_names,
        "--vocabulary": args.vocabulary,
        "--names": args.names,
    }
    several = [option for option, value in given.items() if value is not None]
    if not several:
        raise InputError("no names are given; say what to look for with --class-names NAME ...")
    if len(several) > 1:
        raise InputError(f"give {' or '.join(several)}, not both")
    if args.vocabulary is not None:
        vocabulary = _named_vocabulary(args.vocabulary, args.templates)
    elif args.names is not None:
        vocabulary = Vocabulary.from_file(args.names, templates=args.templates)
    else:
        vocabulary = _typed_vocabulary(args.class_names, args.templates)
    if args.augment_vocabulary is not None:
        vocabulary = vocabulary.augmented(args.augment_vocabulary)
    return vocabulary


def _typed_vocabulary(names: list[str], templates: str) -> Vocabulary:
    if not any(name.startswith(_FILE_SIGN) for name in names):
        return Vocabulary.from_names(names, templates=templates)
    if len(names) > 1:
        raise InputError(
            f"{' '.join(names)[:80]!r} mixes names and a file of names; give @FILE alone"
        )
    return Vocabulary.from_file(names[0].removeprefix(_FILE_SIGN), templates=templates)


def _named_vocabulary(name: str, templates: str) -> Vocabulary:
    if Path(name).is_file():
        return Vocabulary.from_file(name, templates=templates)
    return Vocabulary.load(name)


def _find_inputs(args: argparse.Namespace) -> dict[Path, Path]:
    """Return images and videos with the relative path that names the results of each."""
    patterns = [*args.images, *args.input]
    if not patterns:
        raise InputError("no image is given; name files, folders or globs with --input")
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    found: dict[Path, Path] = {}
    seen: set[str] = set()
    results = os.path.realpath(args.output)
    for pattern in patterns:
        folder = Path(pattern)
        inside = os.path.isdir(folder)
        every = list_images([pattern], recursive=args.recursive, only=args.glob, suffixes=suffixes)
        for path in every:
            real = os.path.realpath(path)
            if inside and results != os.path.realpath(folder) and _is_below(real, results):
                continue  # a result of an earlier run
            if real not in seen:
                seen.add(real)
                found[path] = path.relative_to(folder) if inside else Path(path.name)
    if not found:
        raise InputError(
            f"the input holds no image but results of earlier runs in '{args.output}'; "
            "give images with --input"
        )
    return found


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(os.path.join(folder, ""))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command for any installed method."""
    parser = CommandParser(
        prog="python -m openvocab.predict",
        description="Find what names describe in images, with any installed method. Writes for "
        "each image a label map, an overlay with a legend, and the masks as JSON.",
    )
    add_method_arguments(parser)
    add_predict_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Predict; 0, 1 if some images could not be used.

    Raises:
        InputError: there is no such method, or the arguments, the weights or all images cannot be
            used.
    """
    args = build_parser().parse_args(argv)
    method = find_method(args.method)
    args.templates = method.templates
    return run_prediction(args, load_from_arguments, method.explain)


if __name__ == "__main__":
    sys.exit(run(main))
