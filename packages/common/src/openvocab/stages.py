"""A method's description of its own structure: its stages, and which parameters are trained."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from openvocab.clip.model import CLIP

Weights = Literal["none", "frozen", "trained"]


@dataclass(frozen=True)
class Stage:
    """One stage on the way from the image to the label map.

    Attributes:
        key: short and unique within the method.
        title: title of the stage, a few words.
        weights: whether it has any, and whether the method trained them.
        calls: (owner, attribute) of the callables that do it; a class, a module or an object. Time
            inside the calls of another stage counts there.
        detail: description of its output, one line.
    """

    key: str
    title: str
    weights: Weights
    calls: tuple[tuple[object, str], ...]
    detail: str = ""


@dataclass(frozen=True)
class Part:
    """A part of the parameters.

    Attributes:
        title: title of the parameters.
        parameters: parameters by name.
        trained: whether the method trains them.
    """

    title: str
    parameters: dict[str, nn.Parameter]
    trained: bool

    @property
    def count(self) -> int:
        """Return the number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters.values())


@dataclass(frozen=True)
class Anatomy:
    """A method's description of its own structure.

    Attributes:
        stages: stages in the order of the data path.
        parts: every parameter once.
        clips: the CLIPs inside, by what they do.
        names_enter: keys of the stages that use the names' embeddings.
        ways: (from, to) of what goes from a stage, or the "image", to another than the next; back
            to an earlier one where stages repeat.
    """

    stages: tuple[Stage, ...]
    parts: tuple[Part, ...]
    clips: dict[str, CLIP]
    names_enter: tuple[str, ...]
    ways: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Architecture:
    """A published architecture with random weights, as the structure comparison measures it.

    The stage that turns names into embeddings has the key "text", if there is one.

    Attributes:
        title: the method with its networks.
        segmenter: the method, ready to segment.
        anatomy: the method's description of its structure.
        sides: side lengths in pixels of the square images for latency against image size.
        notes: sentences on what the measurement depends on.
        templates: the prompt templates of each call of the stage "text".
        at_most: largest number of crops that the stage "clip" sees in real use, where it is fixed.
        each_name: key of the stage in which CLIP sees one picture for each name; "" if there is
            none.
        forward: the pass that training differentiates, at 640 x 640; None where nothing is trained.
    """

    title: str
    segmenter: Any
    anatomy: Anatomy
    sides: tuple[int, ...]
    notes: tuple[str, ...]
    templates: tuple[Any, ...]
    at_most: int | None = None
    each_name: str = ""
    forward: Callable[[], Any] | None = None


def group_parameters(
    module: nn.Module, titles: dict[str, str], trained: set[str]
) -> tuple[Part, ...]:
    """Group a model's parameters by the first prefix that fits.

    Args:
        module: the model.
        titles: title by prefix of the parameter's name; "" takes the rest.
        trained: names of the parameters that the method trains.

    Returns:
        One part for each title and kind, without empty ones.
    """
    groups: dict[tuple[str, bool], dict[str, nn.Parameter]] = {
        (title, kind): {} for title in titles.values() for kind in (False, True)
    }
    for name, parameter in module.named_parameters():
        title = next(title for prefix, title in titles.items() if name.startswith(prefix))
        groups[title, name in trained][name] = parameter
    return tuple(Part(title, found, kind) for (title, kind), found in groups.items() if found)


def train_only(module: nn.Module, names: Collection[str]) -> None:
    """Train only the parameters of these names."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names)
