"""Learning rates as functions of the iteration alone, so that a resumed run needs no state.

Source: SPEC san 8, SPEC ovseg 10 (poly), 11.3 and 17.11 (cosine).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class Schedule(Protocol):
    """The factor of the base learning rate at each step."""

    def factor(self, step: int) -> float:
        """Return the factor of iteration `step`, counted from 0."""


@dataclass(frozen=True)
class PolySchedule:
    """(1 - step / steps)^power behind a linear warm-up from `warmup_factor`."""

    steps: int
    power: float = 0.9
    warmup_steps: int = 0
    warmup_factor: float = 1e-6

    def factor(self, step: int) -> float:
        """Return the factor of an iteration, 0..1."""
        decay = math.pow(max(0.0, 1 - step / self.steps), self.power)
        if step >= self.warmup_steps:
            return decay
        progress = step / self.warmup_steps
        return decay * (self.warmup_factor * (1 - progress) + progress)


@dataclass(frozen=True)
class CosineSchedule:
    """Linear warm-up, then half a cosine down to 0."""

    steps: int
    warmup_steps: int = 100

    def factor(self, step: int) -> float:
        """Return the factor of an iteration, 0..1."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its `initial_lr`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def parameter_groups(
    parameters: Mapping[str, nn.Parameter],
    *,
    rate: Callable[[str], float],
    decay: Callable[[str], float],
) -> list[dict[str, Any]]:
    """Collect parameters that share learning rate and weight decay into optimiser groups.

    Args:
        parameters: parameters to train, by name.
        rate: learning rate of a name.
        decay: weight decay of a name.

    Returns:
        Groups with `params`, `names`, `lr`, `initial_lr`, `weight_decay`, as they appear.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        key = rate(name), decay(name)
        settings = {"lr": key[0], "initial_lr": key[0], "weight_decay": key[1]}
        group = groups.setdefault(key, {"params": [], "names": [], **settings})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def take_over_moments(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Give parameters the moments that a saved optimizer has under the names in its groups.

    Learning rates and weight decays are those of the settings, which may have changed since.
    """
    moments = {name: saved["state"].get(index) for name, index in _numbered(saved)}
    own = optimizer.state_dict()
    known = {index: moments[name] for name, index in _numbered(own) if moments.get(name)}
    optimizer.load_state_dict({"state": known, "param_groups": own["param_groups"]})


def _numbered(saved: Mapping[str, Any]) -> Iterable[tuple[str, int]]:
    """Return the name and the number of each parameter of an optimiser's state."""
    for group in saved["param_groups"]:
        yield from zip(group["names"], group["params"], strict=True)


def decay_rule(
    model: nn.Module, weight_decay: float, tables: Sequence[str], *, but: str | None = None
) -> Callable[[str], float]:
    """Return the weight decay of a name: 0 for norms, embeddings, and tables such as positions.

    Args:
        model: model whose parameters are named.
        weight_decay: weight decay of all other parameters.
        tables: words that occur in the last part of a table's name.
        but: norms with this in their name are decayed after all.
    """
    norms = {name for name in names_of_norms(model) if but is None or but not in name}
    free = norms | names_of_embeddings(model)

    def decay(name: str) -> float:
        last = name.rpartition(".")[2]
        return 0.0 if name in free or any(word in last for word in tables) else weight_decay

    return decay


def names_of_norms(model: nn.Module) -> set[str]:
    """Return the names of the parameters of normalisation layers."""
    from torch import nn

    norms = (
        nn.LayerNorm,
        nn.GroupNorm,
        nn.modules.batchnorm._BatchNorm,
        nn.modules.instancenorm._InstanceNorm,
        nn.LocalResponseNorm,
    )
    return _names_in(model, lambda module: isinstance(module, norms))


def names_of_embeddings(model: nn.Module) -> set[str]:
    """Return the names of the parameters of `nn.Embedding` tables."""
    from torch import nn

    return _names_in(model, lambda module: isinstance(module, nn.Embedding))


def _names_in(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> set[str]:
    def of(prefix: str, module: nn.Module) -> Iterable[str]:
        return (f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False))

    return {n for prefix, m in model.named_modules() if wanted(m) for n in of(prefix, m)}
