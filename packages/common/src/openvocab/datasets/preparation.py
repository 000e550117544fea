"""Making folders of label maps, in parallel and with one task per image, resumable at any point."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

import openvocab
from openvocab.datasets.spec import VOID_8_BIT, VOID_16_BIT
from openvocab.errors import InputError
from openvocab.files import atomic_path, write_text
from openvocab.vocabulary import Vocabulary

MANIFEST = "openvocab.json"
INVALID = -1  # in a table: a value that the official files do not have

Placing = Literal["link", "copy"]
Outcome = Literal["made", "there", "void"]
IntArray = NDArray[np.int32]

_CHUNK = 16  # tasks that a process takes at once
_FEW = 64  # tasks for which starting processes costs more than it saves


@dataclass(frozen=True)
class LabelMapTask:
    """The task for one image.

    Args:
        target: the label map to make; when it is there, the task is done.
        read: function that makes the stored values; it must be importable by other processes.
        arguments: arguments of `read`.
        table: `(N,)` the value to store for each value read; `INVALID` where there is none.
        beyond: the value to store for what is not in the table; `INVALID` for an error.
        image: (source, target) of the image, to be linked or copied; None leaves images alone.
        skip_void: write nothing if every pixel is void.
    """

    target: Path
    read: Callable[..., IntArray]
    arguments: tuple[Any, ...]
    table: IntArray
    beyond: int = INVALID
    image: tuple[Path, Path] | None = None
    skip_void: bool = False


@dataclass(frozen=True)
class Tree:
    """The folder of label maps to make.

    Args:
        folder: folder of the tree's label maps.
        name: name of the data set.
        split: canonical.
        vocabulary: the names of its labels.
        tasks: one for each image.
        route: name of the route, where several are known, or "".
        lists: files to write beside, such as `ImageSets/.../val.txt`, with their text.
    """

    folder: Path
    name: str
    split: str
    vocabulary: Vocabulary
    tasks: Sequence[LabelMapTask]
    route: str = ""
    lists: Mapping[Path, str] = field(default_factory=dict)


def make_tree(tree: Tree, *, workers: int, placing: Placing, progress: bool) -> dict[str, int]:
    """Make the missing label maps of a folder.

    Returns:
        How many label maps were "made", were "there" already, and were "void" and not written.

    Raises:
        InputError: a source cannot be used; what was made before it stays.
    """
    counts = {"made": 0, "there": 0, "void": 0}
    run = partial(run_task, placing=placing)
    for outcome in run_parallel(run, tree.tasks, workers, f"{tree.name} {tree.split}", progress):
        counts[outcome] += 1
    for path, text in tree.lists.items():
        if not path.exists():
            write_text(path, text)
    manifest = {
        "data_set": tree.name,
        "split": tree.split,
        "route": tree.route,
        "vocabulary": tree.vocabulary.key,
        "names": list(tree.vocabulary.names),
        "openvocab": openvocab.__version__,
    }
    write_text(tree.folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return counts


def run_parallel(
    function: Callable[[Any], Any], items: Sequence[Any], workers: int, what: str, progress: bool
) -> Iterator[Any]:
    """Yield a function's result for each item, in order, from several processes if it pays off."""
    bar = partial(tqdm, total=len(items), desc=what, unit="image", disable=not progress)
    if workers <= 1 or len(items) < _FEW:
        yield from bar(map(function, items))
        return
    # "spawn" works on every system and beside threads; its start takes a second.
    # The function, which may hold a whole data set, goes to each process only once.
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=_prepare_process, initargs=(function,)
    ) as pool:
        try:
            yield from bar(pool.map(_run_in_process, items, chunksize=_CHUNK))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_function: Callable[[Any], Any] | None = None  # of a process that `run_parallel` started


def _prepare_process(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function


def _run_in_process(item: Any) -> Any:
    assert _function is not None
    return _function(item)


def default_workers() -> int:
    """Return the number of processors that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_task(task: LabelMapTask, placing: Placing = "link") -> Outcome:
    """Make one label map and place its image.

    Raises:
        InputError: the source cannot be read, or holds a value that official files do not have.
    """
    there = task.target.exists()
    if not there:
        values = task.read(*task.arguments)
        labels = look_up(values, task.table, task.beyond, str(task.arguments[0]))
        void = VOID_8_BIT if task.target.suffix == ".png" else VOID_16_BIT
        if task.skip_void and (labels == void).all():
            return "void"
        write_labels(task.target, labels)
    if task.image is not None:
        place_file(*task.image, placing)
    return "there" if there else "made"


def look_up(values: NDArray[Any], table: IntArray, beyond: int, source: str) -> IntArray:
    """Return `table[values]`.

    Args:
        values: `(H, W)` integers.
        table: `(N,)` labels.
        beyond: label of the values outside `0..N-1`.
        source: named in the error.

    Raises:
        InputError: a value has no label; names the source, the values and how many pixels.
    """
    inside = (values >= 0) & (values < len(table))
    labels = np.where(inside, table[np.where(inside, values, 0)], beyond)
    if (labels == INVALID).any():
        wrong, counts = np.unique(values[labels == INVALID], return_counts=True)
        shown = ", ".join(f"{v} ({n} pixels)" for v, n in zip(wrong[:5], counts[:5], strict=True))
        raise InputError(
            f"{source} holds the values {shown}, which the official files do not have; fetch it "
            f"again, or check that it belongs to this data set"
        )
    return np.asarray(labels, dtype=np.int32)


def table_of(pairs: Mapping[int, int] | Iterable[tuple[int, int]], fill: int = INVALID) -> IntArray:
    """Return the label (N,) of each value; `fill` for values without a name."""
    mapping = dict(pairs)
    table = np.full(max(mapping) + 1, fill, dtype=np.int32)
    for value, label in mapping.items():
        table[value] = label
    return table


def write_labels(path: Path, labels: NDArray[Any]) -> None:
    """Write a label map atomically: 8 bits as PNG, 16 bits as TIFF or PNG."""
    deep = path.suffix != ".png" or int(labels.max(initial=0)) > VOID_8_BIT
    with atomic_path(path) as temporary:
        image = Image.fromarray(labels.astype(np.uint16 if deep else np.uint8))
        if path.suffix == ".png":
            image.save(temporary)
        else:
            image.save(temporary, compression="tiff_lzw")


def place_file(source: Path, target: Path, placing: Placing) -> None:
    """Put a file into its place in the layout, as a hard link if possible, else as a copy.

    Raises:
        InputError: the file is not in the source.
    """
    if target.exists():
        return
    if not source.is_file():
        raise InputError(f"there is no {source}; is the download complete and unpacked in full?")
    with atomic_path(target) as temporary:
        temporary.unlink()
        if placing == "link":
            with suppress(OSError):  # another disk, or a file system without links
                os.link(source, temporary)
        if not temporary.exists():
            shutil.copyfile(source, temporary)
