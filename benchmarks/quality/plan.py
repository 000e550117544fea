"""The plan of a run: evaluations of methods on data sets, each in a process of its own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.layout import run_folder
from benchmarks.measuring import in_fresh_process
from openvocab.datasets import resolve
from openvocab.datasets.samples import SampleSet
from openvocab.errors import InputError
from openvocab.evaluation.run import FolderDataset
from openvocab.methods import find_method
from openvocab.segmenter import Segmenter
from openvocab.vocabulary import WORLD

AGAIN = 32
_FOLDERS = ("images", "labels", "names.txt")


@dataclass(frozen=True)
class Missing:
    """A requested result that cannot be made.

    Attributes:
        what: the model or the data set.
        sentence: sentence that says what is wrong and what to do.
        failed: whether it ended with an error that nobody foresaw.
    """

    what: str
    sentence: str
    failed: bool = False

    @classmethod
    def after(cls, what: str, error: Exception) -> Missing:
        """Return a line that says how a method failed, and print the details.

        The other methods still run.
        """
        print(error, file=sys.stderr, flush=True)
        lines = [line for line in str(error).splitlines() if line.strip()]
        kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
        return cls(what, f"it failed with {kind}{lines[-1] if lines else 'no message'}", True)


@dataclass(frozen=True)
class Plan:
    """The evaluations of a run.

    Attributes:
        weights: weights by method.
        data: data sets by name.
        output: the output folder.
        data_root: folder of the known data sets.
        limit: images of each set; None for all.
        resume: go on where an earlier run stopped.
        diagnoses: also tell each method parts of the truth; None: on the world, and those parts
            that run the method again on its first `AGAIN` images.
        seen: names that training saw, a file or a vocabulary; None: those of the training set.
        device: device for scoring; None: a GPU where there is one.
        foreign: titles of the predictions of other programs, by the key of their row.
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
    foreign: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[str, ...]:
        """Return the keys of all that is compared: methods, and predictions of other programs."""
        return (*self.weights, *self.foreign)

    def folder(self, data: str, method: str) -> Path:
        """Return where one evaluation is logged."""
        return run_folder(self.output, data, method)

    def diagnosed(self, data: str) -> bool:
        """Return whether oracle diagnoses are made on a data set."""
        return is_world(self.data[data]) if self.diagnoses is None else self.diagnoses


def is_world(data: SampleSet) -> bool:
    """Return whether a data set is a split of the embedded world."""
    return data.name == WORLD


def shard() -> tuple[int, int]:
    """Return (rank, world) as torchrun sets them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def find_data(name: str, root: Path | None) -> SampleSet:
    """Find a known data set, or a folder that holds images/, labels/ and names.txt.

    The name of the world is always the world; a folder of that name is `./world`.

    Raises:
        InputError: the name is neither of these.
    """
    folder = Path(name)
    if folder.is_dir() and name.partition(":")[0] != WORLD:
        if absent := [part for part in _FOLDERS if not (folder / part).exists()]:
            raise InputError(
                f"the folder {folder} has no {' and no '.join(absent)}; a data set of one's own is "
                "a folder with images/, labels/ and names.txt"
            )
        return FolderDataset(folder / "images", folder / "labels", folder / "names.txt")
    return resolve(name, root)


def load_method(
    key: str, weights: str, data: SampleSet | None = None, device: str = "cpu"
) -> Segmenter:
    """Load a method from `--weights METHOD=...`, with the settings published for the data.

    Args:
        key: key of an installed method.
        weights: weights in a form that the method takes.
        data: data set whose published settings the method is to use.
        device: "cpu", "cuda", ...

    Raises:
        InputError: there is no such method, or the weights are not there.
    """
    method = find_method(key)
    segmenter = method.load(weights, device=device)
    if data is None or method.for_data is None:
        return segmenter
    return method.for_data(segmenter, data)


def check_weights(weights: Mapping[str, str]) -> list[Missing]:
    """Return the weights that cannot be found, before anything runs."""
    missing = []
    for key, source in weights.items():
        what = f"weights of {key}"
        for part in find_method(key).parts_of_weights(source):
            if Path(part).exists():
                continue
            try:
                if _looks_like_path(part):
                    raise InputError(
                        f"there is no file '{part}'; fetch the checkpoint and put it there, or "
                        f"give another with --weights {key}=FILE"
                    )
                load_method(key, part)  # fetches it, or finds it in the cache
            except InputError as error:
                missing.append(Missing(what, str(error)))
            except Exception as error:
                missing.append(Missing.after(what, error))
    return missing


def _looks_like_path(source: str) -> bool:
    """Return whether a text is a path, unlike "ViT-B-16:openai" or the hub's OWNER/REPOSITORY."""
    suffix = Path(source).suffix
    if re.fullmatch(r"\w[\w-]*/[\w.-]+", source) and not suffix:
        return False
    return ("/" in source or bool(suffix)) and ":" not in source


def evaluate_all(plan: Plan, say: Callable[[str], None]) -> list[Missing]:
    """Evaluate every method on every data set; return the failures."""
    missing = []
    pairs = [(key, name) for name in plan.data for key in plan.weights]
    for number, (key, name) in enumerate(pairs, start=1):
        say(f"{number} of {len(pairs)}: {key} on {name}")
        what = f"{key} on {name}"
        try:
            done = in_fresh_process(
                "benchmarks.quality.evaluate_one", _arguments(plan, name, key), show=True
            )
        except RuntimeError as error:
            missing.append(Missing.after(what, error))
        else:
            if not done["refused"]:
                continue
            missing.append(Missing(what, done["refused"]))
        say(f"missing: {what}: {missing[-1].sentence}")
    return missing


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
