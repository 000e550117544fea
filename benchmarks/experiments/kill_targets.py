"""What the kill campaign kills: commands and writers on inputs of a few kilobytes.

A target's life may be ended anywhere; the next life in the same folder goes on with what it left.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from openvocab.cli import run
from openvocab.clip.text_cache import EmbeddingStore
from openvocab.datasets.label_check import check_labels
from openvocab.datasets.samples import FolderDataset
from openvocab.inference.layout import JOURNAL
from openvocab.reading.json_files import parse_json
from openvocab.training.checkpoints import Checkpoints
from openvocab.training.log import LOG_FILE, read_log
from openvocab.vocabulary import WORLD
from openvocab.weights.hub import _check_recorded
from openvocab.weights.state_dict import read_metadata, read_state_dict
from openvocab.world import open_world
from openvocab.world.export import export as export_scenes

_SIDE = "64"
_STEPS = "4"
# What differs between two runs that did the same: times, and what depends on them.
_TIMES = ("time", "data_time", "images_per_second", "memory_mb", "times", "seconds", "peak_gib")
# One file of TensorBoard for each life, and a checkpoint for each SIGTERM.
_OF_A_LIFE = re.compile(r"events\.out\.|model_\d+\.pth")
_SAMPLES = 6
_TEXTS = 40  # more than after which the cache of text embeddings is merged


@dataclass(frozen=True)
class Target:
    """Something that is killed.

    Attributes:
        name: as the record shows it.
        share: of the kills, relative to the others'.
        make: writes the inputs into a folder, once.
        live: does the work, inputs (first folder) to output (second); returns the exit code.
        outcome: what has to be equal to an undisturbed run's, of an output folder.
        finished: how many parts of the work are done in an output folder; may never fall.
    """

    name: str
    share: int
    make: Callable[[Path], None]
    live: Callable[[Path, Path], int]
    outcome: Callable[[Path], Any]
    finished: Callable[[Path], int]


def tree_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _files(folder: Path) -> int:
    """Return how many files are there, unfinished ones aside."""
    return sum(path.is_file() and path.name[0] != "." for path in folder.rglob("*"))


def _nothing(_: Path) -> None:
    pass


def _command(
    module: str, arguments: Callable[[Path, Path], Sequence[Any]]
) -> Callable[[Path, Path], int]:
    def live(inputs: Path, output: Path) -> int:
        return run(import_module(module).main, [*map(str, arguments(inputs, output))])

    return live


def _flags(**values: Any) -> list[str]:
    return [text for key, value in values.items() for text in ("--" + key, str(value))]


def _segmentation_training(_: Path, output: Path) -> list[str]:
    flags = {
        "config-file": WORLD, "weights": WORLD, "data.dataset": "world:train:8",
        "data.evaluate": "world:tune:2", "schedule.steps": _STEPS, "schedule.warmup_steps": 1,
        "transform.min_sizes": _SIDE, "transform.crop_size": _SIDE, "run.batch": 2,
        "run.eval_period": 2, **_training(output),
    }  # fmt: skip
    return [*_flags(**flags), "--resume"]


def _training(output: Path) -> dict[str, Any]:
    return {
        "run.output": output / "run", "run.workers": 0, "run.log_period": 1,
        "run.checkpoint_period": 2, "run.device": "cpu", "run.precision": "fp32",
    }  # fmt: skip


def _make_pairs(folder: Path) -> None:
    _command("ovseg.collect_pairs", lambda inputs, _: _pairs_of_labels(inputs))(folder, folder)


def _pairs_of_labels(output: Path) -> list[str]:
    return _flags(dataset="world:train:4", **{"min-size": 96, "expand-ratio": 2.5}, output=output)


def _mask_prompt_tuning(inputs: Path, output: Path) -> list[str]:
    flags = {
        "config-file": "world_mask_clip", "pairs": inputs / "pairs.tsv", "epochs": 2,
        "warmup_steps": 1, "mask-prompt-depth": 2, "run.batch": 8, **_training(output),
    }  # fmt: skip
    return [*_flags(**flags), "--resume"]


def _trained(output: Path) -> dict[str, Any]:
    """Return what a training leaves: every tensor, every loss and score, the names of its files."""
    folder = output / "run"
    final = torch.load(folder / "model_final.pth", weights_only=True)
    export = folder / "model_final.safetensors"
    lines = read_log(folder / LOG_FILE)
    return {
        "state": {name: _digest(final[name]) for name in ("model", "optimizer", "iteration")},
        "log": [{k: v for k, v in line.items() if k not in _TIMES} for line in lines],
        "files": sorted(p.name for p in folder.iterdir() if not _OF_A_LIFE.match(p.name)),
        "export": [
            _digest(dict(sorted(part.items())))  # in a file they have no certain order
            for part in (read_state_dict(export), read_metadata(export))
        ],
        "best": _plain(folder / "best.json"),
    }


def _digest(state: Any) -> str:
    """Return a SHA-256 of nested values with all their tensors, to the bit."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in value:
                digest.update(repr(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for part in value:
                add(part)
        else:
            digest.update(repr(value).encode())

    add(state)
    return digest.hexdigest()


def _plain(path: Path) -> Any:
    """Return a JSON file without the times in it; None if there is none."""
    if not path.is_file():
        return None

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(part) for key, part in value.items() if key not in _TIMES}
        return [strip(part) for part in value] if isinstance(value, list) else value

    return strip(parse_json(path.read_text("utf-8"), str(path), "a result"))


def _steps_done(output: Path) -> int:
    numbered = Checkpoints(output / "run").numbered()
    return int(numbered[-1].stem.removeprefix("model_")) + 1 if numbered else 0


def _evaluation(*more: Any) -> Callable[[Path, Path], list[str]]:
    return lambda _, output: [
        *_flags(weights=WORLD, output=output / "scores", device="cpu"), *map(str, more),
        "--save-predictions", "--boundary-iou",
    ]  # fmt: skip


def _scored(output: Path) -> dict[str, Any]:
    return {name: _plain(output / "scores" / name) for name in ("result.json", _PREDICTIONS_FILE)}


_PREDICTIONS_FILE = "sem_seg_predictions.json"


def _images_done(output: Path) -> int:
    lines = [p.read_bytes() for p in output.rglob("images-*.log")]
    return sum(text.count(b'{"id"') for text in lines)


def _run_all(_: Path, output: Path) -> int:
    # The campaign has started the server, which is not this process's child to wait for.
    forkserver.ensure_running = lambda: None
    forkserver._forkserver.ensure_running = forkserver.ensure_running  # type: ignore[method-assign]
    words = ["--models", "san", "--weights", f"san={WORLD}", "--datasets", "world:val:3"]
    words += ["--no-structure", "--no-diagnoses"]
    return _command("benchmarks.run_all", lambda *_: [*words, "--output", output / "run"])(
        _, output
    )


def _compared(output: Path) -> dict[str, Any]:
    folder = output / "run"
    results = {path.name: _plain(path) for path in sorted((folder / "results").glob("*.json"))}
    return {"results": results, "files": sorted(tree_of(folder))}


def _make_ade(folder: Path) -> None:
    """Write a miniature of ADE20K as it is unpacked."""
    rng = np.random.default_rng(0)
    for split, short in (("training", "train"), ("validation", "val")):
        for part in ("images", "annotations"):
            (folder / "ADEChallengeData2016" / part / split).mkdir(parents=True)
        for index in range(_SAMPLES):
            base = folder / "ADEChallengeData2016"
            stem = f"ADE_{short}_{index + 1:08d}"
            pixels = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(base / "images" / split / f"{stem}.jpg")
            labels = rng.integers(0, 151, (24, 32), dtype=np.uint8)
            Image.fromarray(labels).save(base / "annotations" / split / f"{stem}.png")


def _make_scenes(folder: Path) -> None:
    export_scenes(folder, "val", _SAMPLES, 96)


def _write_caches(inputs: Path, output: Path) -> int:
    return run(lambda _: _fill_caches(inputs, output), [])


def _fill_caches(inputs: Path, output: Path) -> int:
    """Fill the caches: text embeddings, label surveys, the world's scenes, digests of downloads."""
    os.environ["OPENVOCAB_CACHE"] = str(output / "cache")
    store = EmbeddingStore("0" * 64, output / "text")
    for index in range(_TEXTS):
        if store.missing([f"text {index}"]):
            store.add([f"text {index}"], torch.full((1, 512), float(index)))
    names = inputs / "names.txt"
    check_labels(FolderDataset(inputs / "images", inputs / "labels", names))
    open_world("val", _SAMPLES, size=48)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in ("names.txt", "captions.tsv", "nouns.tsv"):
            _check_recorded(f"killed/{file}", inputs / file)
    return 0


def _cached(output: Path) -> dict[str, Any]:
    texts = [f"text {index}" for index in range(_TEXTS)]
    store = EmbeddingStore("0" * 64, output / "text")
    assert not store.missing(texts)
    found = tree_of(output / "cache")
    labels = [digest for name, digest in found.items() if name.startswith("labels/")]
    return {
        "text": _digest(store.get(texts)),
        "labels": labels,
        "others": {k: v for k, v in found.items() if not k.startswith("labels/")},
    }


def _texts_known(output: Path) -> int:
    store = EmbeddingStore("0" * 64, output / "text")
    texts = [f"text {index}" for index in range(_TEXTS)]
    others = sum(p.is_file() and p.name[0] != "." for p in (output / "cache").rglob("*"))
    return _TEXTS - len(store.missing(texts)) + others


def _predictions(inputs: Path, output: Path) -> list[str]:
    words = _flags(weights=WORLD, vocabulary=WORLD, output=output / "made", device="cpu")
    return [*words, str(inputs / "images")]


def _made(output: Path) -> dict[str, Any]:
    """Return what a folder of predictions holds, without the seconds in its tables."""
    folder = output / "made"
    found: dict[str, Any] = dict(tree_of(folder))
    del found[JOURNAL]
    for path in folder.rglob("*.json"):
        found[path.relative_to(folder).as_posix()] = _plain(path)
    rows = csv.DictReader((folder / "summary.csv").read_text("utf-8").splitlines())
    return found | {"summary.csv": [{**row, "seconds": ""} for row in rows]}


def _tree(part: str) -> Callable[[Path], dict[str, str]]:
    return lambda output: tree_of(output / part)


TARGETS = (
    Target(
        "san.train", 30, _nothing, _command("san.train", _segmentation_training), _trained,
        _steps_done,
    ),
    Target(
        "ovseg.train", 15, _nothing, _command("ovseg.train", _segmentation_training), _trained,
        _steps_done,
    ),
    Target(
        "ovseg.finetune_clip", 45, _make_pairs,
        _command("ovseg.finetune_clip", _mask_prompt_tuning), _trained, _steps_done,
    ),
    Target(
        "ovseg.collect_pairs", 85, _nothing,
        _command("ovseg.collect_pairs", lambda _, output: _pairs_of_labels(output / "pairs")),
        _tree("pairs"), _files,
    ),
    Target(
        "san.evaluate", 30, _nothing,
        _command("san.evaluate", _evaluation("--dataset", "world:val:8")),
        _scored, _images_done,
    ),
    Target(
        "ovseg.evaluate", 10, _nothing,
        _command("ovseg.evaluate", _evaluation("--dataset", "world:val:3")),
        _scored, _images_done,
    ),
    Target(
        "san.predict", 30, _make_scenes, _command("san.predict", _predictions), _made, _files,
    ),
    Target("run_all", 25, _nothing, _run_all, _compared, _images_done),
    Target(
        "openvocab.prepare", 430, _make_ade,
        _command(
            "openvocab.prepare",
            lambda inputs, output: [
                "ade20k-150", "--source", inputs, "--output", output / "data", "--quiet",
            ],
        ),
        _tree("data"), _files,
    ),
    Target("caches", 300, _make_scenes, _write_caches, _cached, _texts_known),
)  # fmt: skip
