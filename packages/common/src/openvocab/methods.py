"""Methods: one `Method` value describes each method, and entry points find it.

A package that offers a method has in its `pyproject.toml`

    [project.entry-points."openvocab.methods"]
    mymethod = "mypackage.method:METHOD"

and is then known to the commands, the page and the benchmark. Nothing else has to be changed.
Reading the list of methods imports no torch; a method's own modules are imported when they are
needed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from openvocab.errors import InputError

if TYPE_CHECKING:
    from openvocab.clip.prompts import TextEncoder
    from openvocab.datasets.samples import SampleSet
    from openvocab.evaluation.diagnosis import Diagnosis
    from openvocab.image import ImageArray
    from openvocab.segmenter import Segmenter
    from openvocab.stages import Anatomy, Architecture
    from openvocab.vocabulary import Vocabulary

GROUP = "openvocab.methods"
_KEY = re.compile(r"[a-z][a-z0-9_]*(-[a-z0-9_]+)*")
_TAKEN = {"comparison", "image", "truth"}  # results and pictures that are not a method's
# Of methods that bring no colors of their own: on a light page, and on a dark one.
_SPARE_COLORS = (
    ("#7c3aed", "#b794ff"),
    ("#be185d", "#ff8fc0"),
    ("#0e7490", "#5ed3ea"),
    ("#4d7c0f", "#a8d65c"),
    ("#6b7280", "#b6bcc6"),
)


class Load(Protocol):
    """The function that loads a method; it has the same arguments for every method."""

    def __call__(
        self,
        weights: str | Path | None = None,
        *,
        config: Any = None,
        device: str = "auto",
        precision: Any = "fp32",
        compile: bool = False,
    ) -> Segmenter:
        """Return a segmenter that is ready to use."""


@dataclass(frozen=True)
class Explained:
    """One picture of a step of a method on the way to its label map.

    Attributes:
        title: title of the picture, a few words.
        picture: `(H, W, 3)` uint8 RGB.
        text: one or two sentences that a reader of the paper's abstract understands.
        group: heading under which the picture belongs, such as "Step 1" or a class name.
        empty: whether there is nothing to see, so that a page may fold the picture away.
    """

    title: str
    picture: ImageArray
    text: str = ""
    group: str = ""
    empty: bool = False


@dataclass(frozen=True, kw_only=True)
class Method:
    """Everything that the commands, the page and the benchmark need to know about a method.

    Only `key`, `title`, `summary` and `load` are required. The report leaves out whatever belongs
    to the others, if they are not given.

    Attributes:
        key: name on the command line, such as "san": small letters, digits, "-" and "_".
        title: name in print, such as "SAN".
        summary: one sentence on how the method works.
        load: loads the method; called with the words of `Load`.
        weights: the kinds of weights that `load` takes, one line for `--help`.
        default_weights: weights that `load` uses if none are given.
        templates: the prompt templates for names that a user types.
        colors: colors in figures on a light and on a dark background; empty for a spare pair.
        rank: place in lists of methods, lowest first; equal ranks are sorted by key.
        package: import name of the package, for its own commands.
        preload: modules that `load` needs. The benchmark imports them beforehand, so that their
            memory does not count as the method's.
        parts_of_weights: splits the word behind `--weights` into the files or names that it
            consists of.
        for_data: returns a loaded segmenter with the settings that were published for a data set.
        architecture: builds the published architecture with random weights, for the comparison of
            structure and cost.
        anatomy: returns the stages and parameters of a loaded segmenter.
        diagnoses: returns extra evaluations of a loaded segmenter that say where its errors come
            from. It is called before the method itself is evaluated, so they may watch that.
        naming_clip: returns the CLIP by which a loaded segmenter names masks. On the embedded world
            it is tried on single crops.
        published: JSON file of the numbers that the authors report.
        acceptance: JSON file of the scores that the shipped weights must reach on the embedded
            world.
        explain: shows what the method does with one image, step by step.
    """

    key: str
    title: str
    summary: str
    load: Load
    weights: str = "a checkpoint file"
    default_weights: str | None = None
    templates: str = "vild"
    colors: tuple[str, str] | tuple[()] = ()
    rank: int = 100
    package: str = ""
    preload: tuple[str, ...] = ()
    parts_of_weights: Callable[[str], Sequence[str]] = field(default=lambda source: (source,))
    for_data: Callable[[Any, SampleSet], Segmenter] | None = None
    architecture: Callable[[], Architecture] | None = None
    anatomy: Callable[[Any], Anatomy] | None = None
    diagnoses: Callable[[Any], Sequence[Diagnosis]] | None = None
    naming_clip: Callable[[Any], TextEncoder] | None = None
    published: Path | None = None
    acceptance: Path | None = None
    explain: Callable[[Any, ImageArray, Vocabulary], Sequence[Explained]] | None = None

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key) or self.key in _TAKEN:
            raise ValueError(
                f"the key {self.key!r} cannot be used; give small letters, digits, single '-' and "
                f"'_', and none of {', '.join(sorted(_TAKEN))}"
            )


@dataclass(frozen=True)
class Broken:
    """An installed method that cannot be used.

    Attributes:
        key: name of its entry point.
        distribution: the package that offers it.
        reason: one line on what went wrong.
    """

    key: str
    distribution: str
    reason: str


@cache
def _found() -> tuple[dict[str, Method], tuple[Broken, ...]]:
    methods: dict[str, Method] = {}
    broken: list[Broken] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        owner = entry.dist.name if entry.dist is not None else "an unknown package"
        try:
            method = entry.load()
            if not isinstance(method, Method):
                raise TypeError(f"{entry.value} is {type(method).__name__}, expected Method")
            if method.key != entry.name:
                raise ValueError(f"its key is {method.key!r}, but its entry point {entry.name!r}")
        except Exception as error:  # whatever a foreign package does, the others still work
            broken.append(Broken(entry.name, owner, f"{type(error).__name__}: {error}"))
            continue
        methods[method.key] = method
    return methods, tuple(broken)


def available_methods() -> dict[str, Method]:
    """Return the installed methods by key, in the order in which comparisons list them."""
    methods, _ = _found()
    return dict(sorted(methods.items(), key=lambda item: (item[1].rank, item[0])))


def load(method: str, weights: str | Path | None = None, **options: Any) -> Segmenter:
    """Load a method and return its segmenter.

    Args:
        method: key of the method, such as "san"; `available_methods` lists them.
        weights: weights as described in the method's `Method.weights`; None takes the method's
            default.
        options: `config`, `device`, `precision` and `compile`, which every method knows, and the
            method's own.

    Raises:
        InputError: there is no such method, or what `Method.load` raises.
    """
    return find_method(method).load(weights, **options)


def colors_of(key: str) -> tuple[str, str]:
    """Return the colors of a method on a light and on a dark background."""
    methods = available_methods()
    if key in methods and (colors := methods[key].colors):
        return colors
    without = [k for k, method in methods.items() if not method.colors]
    place = without.index(key) if key in without else len(without)
    return _SPARE_COLORS[place % len(_SPARE_COLORS)]


def title_of(key: str) -> str:
    """Return a method's name in print, or its key if it is no longer installed."""
    methods = available_methods()
    return methods[key].title if key in methods else key


def broken_methods() -> tuple[Broken, ...]:
    """Return the installed methods that could not be imported, with the reason."""
    return _found()[1]


def find_method(key: str) -> Method:
    """Return an installed method by its key.

    Raises:
        InputError: no such method is installed, or it is broken.
    """
    methods = available_methods()
    if key in methods:
        return methods[key]
    for one in broken_methods():
        if one.key == key:
            raise InputError(
                f"the method {key!r} of the package {one.distribution} cannot be used: {one.reason}"
            )
    known = ", ".join(methods) or "none"
    raise InputError(f"there is no method {key!r}; installed are {known}")


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that works with any installed method."""
    methods = available_methods()
    group = parser.add_argument_group("method")
    group.add_argument(
        "--method",
        required=True,
        metavar="KEY",
        help=f"one of the installed methods: {', '.join(methods) or 'none'}",
    )
    known = "; ".join(f"{key}: {method.weights}" for key, method in methods.items())
    group.add_argument(
        "--weights",
        metavar="FILE",
        help=f"weights of the method, where it has no default. {known}".replace("%", "%%"),
    )


def load_from_arguments(args: argparse.Namespace) -> Segmenter:
    """Load the method that the parsed options of `add_method_arguments` name.

    The parser needs `openvocab.computation.add_computation_arguments`, too.

    Raises:
        InputError: there is no such method, or it cannot be loaded.
    """
    from openvocab.computation import computation_options

    return find_method(args.method).load(args.weights, **computation_options(args))
