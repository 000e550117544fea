"""Plans evaluations of methods on data sets, and has each carried out in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.layout import run_folder
from benchmarks.measuring import in_fresh_process
from car.config import CaRConfig, available_configs, named_config
from car.segmenter import load_car
from openvocab.datasets import resolve
from openvocab.datasets.samples import SampleSet
from openvocab.errors import InputError
from openvocab.evaluation.run import FolderDataset
from openvocab.segmenter import Segmenter
from openvocab.vocabulary import WORLD
from ovseg import load_ovseg
from ovseg.evaluate import with_published_weight
from san import load_san

AGAIN = 32
_FOLDERS = ("images", "labels", "names.txt")


@dataclass(frozen=True)
class Missing:
    """Something that was asked for and is not there.

    Attributes:
        what: the model or the data set.
        sentence: what is wrong and what to do.
    """

    what: str
    sentence: str


@dataclass(frozen=True)
class Plan:
    """What is evaluated.

    Attributes:
        weights: by method.
        data: by name.
        output: the output folder.
        data_root: where known sets lie.
        limit: images of each set; None for all.
        resume: go on where an earlier run stopped.
        diagnoses: also tell each method parts of the truth; None: on the world, and those parts
            that run the method again on its first `AGAIN` images.
        seen: names that training saw, a file or a vocabulary; None: those of the training set.
        device: of the scoring; None: a GPU where there is one.
    """

    weights: Mapping[str, str]
    data: Mapping[str, SampleSet]
    output: Path
    data_root: Path | None = None
    limit: int | None = None
    resume: bool = True
    diagnoses: bool | None = None
    seen: str | None = None
    device: str | None = None

    def folder(self, data: str, method: str) -> Path:
        """Return where one evaluation is logged."""
        return run_folder(self.output, data, method)

    def diagnosed(self, data: str) -> bool:
        """Whether the methods are told parts of the truth about a data set."""
        return is_world(self.data[data]) if self.diagnoses is None else self.diagnoses


def is_world(data: SampleSet) -> bool:
    """Whether a data set is a split of the embedded world."""
    return data.name == WORLD


def shard() -> tuple[int, int]:
    """Return (rank, world) as torchrun sets them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def find_data(name: str, root: Path | None) -> SampleSet:
    """Find a known data set, or a folder that holds images/, labels/ and names.txt.

    Raises:
        InputError: it is neither.
    """
    folder = Path(name)
    if folder.is_dir():
        parts = [folder / part for part in _FOLDERS]
        if absent := [part.name for part in parts if not part.exists()]:
            raise InputError(
                f"the folder {folder} has no {' and no '.join(absent)}; a data set of one's own is "
                "a folder with images/, labels/ and names.txt"
            )
        return FolderDataset(*parts)
    return resolve(name, root)


def load_method(
    method: str, weights: str, data: SampleSet | None = None, device: str = "cpu"
) -> Segmenter:
    """Load a method from `--weights METHOD=...`, with what was published for the data.

    Args:
        method: "san", "ovseg" or "car".
        weights: what its own commands take; for CaR a named configuration such as "world", or one
            CLIP or two, with a comma between.
        data: OVSeg's ensemble weight and CaR's settings are the published ones of this set.
        device: "cpu", "cuda", ...

    Raises:
        InputError: the weights are not there.
    """
    if method == "san":
        return load_san(weights, device=device)
    if method == "ovseg":
        segmenter = load_ovseg(weights, device=device)
        if data is not None:
            segmenter.inference = with_published_weight(segmenter.inference, data.vocabulary)
        return segmenter
    if data is None or weights in available_configs():
        return load_car(weights, device=device)
    return load_car(weights, config=_published_settings(data), device=device)


def _published_settings(data: SampleSet) -> CaRConfig:
    """Return the settings that were published for a data set, else the defaults."""
    for config in map(named_config, available_configs()):
        if config.dataset == data.name:
            return config.car
    return CaRConfig()


def check_weights(weights: Mapping[str, str]) -> list[Missing]:
    """Return which weights cannot be found, before anything runs."""
    missing = []
    for method, source in weights.items():
        for part in source.split(",") if method == "car" else (source,):
            if Path(part).is_file():
                continue
            looks_like_path = "/" in part or Path(part).suffix
            try:
                if looks_like_path:
                    raise InputError(
                        f"there is no file '{part}'; fetch the checkpoint and put it there, or "
                        f"give another with --weights {method}=FILE"
                    )
                load_method(method, part)  # fetches it, or finds it in the cache
            except InputError as error:
                missing.append(Missing(f"weights of {method}", str(error)))
    return missing


def evaluate_all(plan: Plan, say: Callable[[str], None]) -> list[Missing]:
    """Evaluate every method on every data set; return what a method could not do."""
    refused = []
    pairs = [(method, name) for name in plan.data for method in plan.weights]
    for number, (method, name) in enumerate(pairs, start=1):
        say(f"{number} of {len(pairs)}: {method} on {name}")
        done = in_fresh_process(
            "benchmarks.quality.evaluate_one", _arguments(plan, name, method), show=True
        )
        if done["refused"]:
            refused.append(Missing(f"{method} on {name}", done["refused"]))
            say(f"missing: {refused[-1].what}: {refused[-1].sentence}")
    return refused


def _arguments(plan: Plan, name: str, method: str) -> list[str]:
    """Return the arguments of `evaluate_one.py`."""
    words = [method, "--weights", plan.weights[method], "--data", name]
    words += ["--output", str(plan.output)]
    if plan.data_root is not None:
        words += ["--data-root", str(plan.data_root)]
    if plan.limit is not None:
        words += ["--limit", str(plan.limit)]
    if plan.device is not None:
        words += ["--device", plan.device]
    words += ["--resume" if plan.resume else "--no-resume"]
    if plan.diagnosed(name):
        words += ["--diagnoses"]
        if plan.diagnoses is None:
            words += ["--again", str(min(AGAIN, plan.limit or AGAIN))]
    return words
