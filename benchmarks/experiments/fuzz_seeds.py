"""The valid and the hostile files from which the fuzzing campaign starts, and who reads them."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from scipy.io import savemat
from torch import nn

from openvocab.clip import load_clip
from openvocab.clip.config import CLIPConfig, TextConfig, VisionConfig
from openvocab.clip.model import CLIP
from openvocab.clip.text_cache import EmbeddingStore
from openvocab.config import load_config
from openvocab.datasets.ade20k_full import read_index
from openvocab.datasets.archives import Source
from openvocab.datasets.label_check import LabelSurvey, recall
from openvocab.datasets.label_files import read_mat, read_stored
from openvocab.datasets.prediction_files import read_prediction
from openvocab.evaluation.log import EvaluationLog, ImageRecord, read_records
from openvocab.evaluation.results import ProtocolCard, Result
from openvocab.formats.detectron2 import (
    labels_of_predictions,
    read_checkpoint,
    read_predictions,
    read_yaml,
)
from openvocab.formats.run_length import encode_rle
from openvocab.image import read_image, read_label_map
from openvocab.metrics.scores import PairCounts
from openvocab.reading.array_files import read_arrays
from openvocab.reading.checkpoints import read_whole
from openvocab.reading.pickles import read_plain_pickle
from openvocab.reading.yaml_files import read_yaml_file
from openvocab.training.settings import RunConfig
from openvocab.vocabulary import Vocabulary
from openvocab.weights.state_dict import read_metadata, read_state_dict
from ovseg.pairs import read_pairs

KEY = "0" * 64
CARD = ProtocolCard(data_set="x", n_classes=2)
TINY = CLIPConfig(
    embed_dim=4,
    vision=VisionConfig(image_size=8, patch_size=4, width=8, layers=1, heads=1, mlp_width=8),
    text=TextConfig(context_length=5, vocab_size=9, width=8, layers=1, heads=1, mlp_width=8),
    activation="gelu",
)


@dataclass(frozen=True)
class Seed:
    """A file to start from.

    Attributes:
        kind: kind of file that readers take it for.
        suffix: suffix of its name.
        data: contents of the file.
    """

    kind: str
    suffix: str
    data: bytes


@dataclass(frozen=True)
class Reader:
    """A way in which the product reads a kind of file."""

    kind: str
    name: str
    read: Callable[[Path], Any]


class _Hostile:
    """Pickles as a call that would plant the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def _predictions(path: Path) -> None:
    for entries in read_predictions(path).values():
        labels_of_predictions(entries, None, (6, 8))


def _archive(path: Path) -> None:
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    inside = folder / f"data{''.join(path.suffixes)}"
    path.rename(inside)
    Source(folder, folder / "out", ("data",))


def _cache(path: Path) -> None:
    import hashlib

    folder = path.parent / "cache" / KEY
    folder.mkdir(parents=True, exist_ok=True)
    data = path.read_bytes()
    (folder / f"{hashlib.sha256(data).hexdigest()}.safetensors").write_bytes(data)
    EmbeddingStore(KEY, folder.parent).missing(["a", "b"])
    for file in folder.iterdir():
        file.unlink()


def _log(path: Path) -> None:
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    lines = [line.partition(b" ")[2] for line in path.read_bytes().splitlines()]
    written = b"".join(b"%08x %b\n" % (zlib.crc32(line), line) for line in lines)  # whole lines
    (folder / "images-0-of-1.log").write_bytes(written)
    list(read_records(folder, CARD))


def _card_of(path: Path) -> None:
    Result.load(path).table()


READERS = (
    Reader("image", "read_image", read_image),
    Reader("image", "read_label_map", read_label_map),
    Reader("yaml", "read_yaml_file", read_yaml_file),
    Reader("yaml", "read_yaml", read_yaml),
    Reader("yaml", "load_config", lambda path: load_config(RunConfig, path)),
    Reader("weights", "read_state_dict", read_state_dict),
    Reader("weights", "read_checkpoint", read_checkpoint),
    Reader("weights", "read_metadata", read_metadata),
    Reader("weights", "read_whole", read_whole),
    Reader("weights", "load_clip", lambda path: load_clip(path, heads=(1, 1))),
    Reader("names", "Vocabulary.from_file", Vocabulary.from_file),
    Reader("predictions", "read_predictions", _predictions),
    Reader("archive", "Source", _archive),
    Reader("pickle", "read_plain_pickle", read_plain_pickle),
    Reader("pickle", "read_index", read_index),
    Reader("cache", "EmbeddingStore", _cache),
    Reader("result", "Result.load", _card_of),
    Reader("log", "read_records", _log),
    Reader("mat", "read_mat", read_mat),
    Reader("arrays", "read_arrays", lambda path: read_arrays(path, "cache")),
    Reader("arrays", "read_prediction", lambda path: read_prediction(path, 12)),
    Reader("array", "read_prediction", lambda path: read_prediction(path, 12)),
    Reader("survey", "survey of labels", recall),
    Reader("pairs", "read_pairs", read_pairs),
    Reader("codes", "read_stored", read_stored),
)


def make_seeds(canary: Path) -> list[Seed]:
    """Make all seeds; the hostile ones would plant the canary if anything of them ran."""
    return [
        *_images(),
        *_texts(canary),
        *_weights(canary),
        *_data(canary),
        *_archives(),
        *_arrays(),
    ]


def _images() -> list[Seed]:
    rng = np.random.default_rng(0)
    color = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8))
    grey = Image.fromarray(rng.integers(0, 5, (9, 7), np.uint8))
    deep = Image.fromarray(rng.integers(0, 60000, (9, 7), np.uint16))
    palette = color.convert("P")
    seeds = []
    for image, names in (
        (color, ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "TGA", "JPEG2000", "AVIF")),
        (grey, ("PNG", "TIFF", "PPM", "BMP")),
        (deep, ("PNG", "TIFF")),
        (palette, ("PNG", "GIF", "TIFF")),
        (color.convert("RGBA"), ("PNG", "WEBP", "TIFF", "ICO")),
    ):
        for name in names:
            if name in Image.SAVE or (Image.init() and name in Image.SAVE):
                data = io.BytesIO()
                image.save(data, format=name)
                seeds.append(Seed("image", f".{name.lower()}", data.getvalue()))
    return seeds


def _texts(canary: Path) -> list[Seed]:
    laugh = "a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\nd: [*c,*c,*c,*c]\n"
    yamls = (
        "lr: 0.1\nsteps: [1, 2]\nMODEL: {A: &x {k: 1}, B: {<<: *x, z: 2}}\n",
        "_BASE_: /dev/zero\nMODEL: {X: !!python/object/apply:eval ['[x * 2 for x in range(3)]']}\n",
        f"a: !!python/object/apply:os.system ['touch {canary}']\n",
        "MODEL:\n  SIZE: !!python/tuple [1, 2]\n  T: (640,)\n  D: 2024-01-31\n",
        "output: out\nsteps: 10\nbatch: 2\nseed: 3\n",
        laugh,
    )
    mask = encode_rle(np.eye(6, 8) > 0)
    predictions = [
        {"file_name": "a.png", "category_id": 1, "segmentation": mask},
        {"file_name": "b/a.png", "category_id": 0, "segmentation": {**mask, "counts": [6, 42]}},
    ]
    bomb = [{**predictions[0], "segmentation": {"size": [100000, 60000], "counts": [6000000000]}}]
    result = Result(CARD, ("cat", "dog"), np.arange(6).reshape(2, 3), complete=True)
    return [
        *(Seed("yaml", ".yaml", text.encode()) for text in yamls),
        *(Seed("predictions", ".json", json.dumps(p).encode()) for p in (predictions, bomb)),
        Seed("names", ".txt", b"cat\ndog, puppy\nhot air balloon\n"),
        Seed("names", ".txt", b"0: cat\n1: dog\n2: bird\n"),
        Seed("names", ".json", b'["cat", "dog"]'),
        Seed("result", ".json", json.dumps(result.to_json()).encode()),
    ]


def _weights(canary: Path) -> list[Seed]:
    torch.manual_seed(0)
    clip = {k: v.contiguous() for k, v in CLIP(TINY).state_dict().items()}
    seeds = []
    for content in (
        clip,
        {"model": {"a": torch.ones(2, 3).T, "b": torch.arange(4)}, "metadata": {"x": '"y"'}},
        {"state_dict": {f"module.{k}": v.half() for k, v in clip.items()}, "step": np.float64(1)},
        {"model": {"a": torch.ones(2)}, "evil": _Hostile(canary)},
        {"model": {"a": torch.ones(1).expand(1 << 33)}},
    ):
        for new in (True, False):
            data = io.BytesIO()
            torch.save(content, data, _use_new_zipfile_serialization=new)
            seeds.append(Seed("weights", ".pth", data.getvalue()))
    notes = {"activation": '"gelu"', "heads": "[1, 1]"}
    seeds.append(Seed("weights", ".safetensors", save(clip, notes)))
    arrays: dict[str, Any] = {"a": np.ones((2, 3), np.float32), "b": np.arange(3)}
    for values in (arrays, OrderedDict(arrays), {**arrays, "t": torch.ones(2)}):
        for protocol in (0, 2, 5):
            data_bytes = pickle.dumps({"model": values}, protocol=protocol)
            seeds.append(Seed("weights", ".pkl", data_bytes))
    script = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = nn.Sequential(nn.Linear(2, 2), nn.GELU())
        traced = torch.jit.trace(network, torch.ones(2))  # type: ignore[no-untyped-call]
        torch.jit.save(traced, script)
    seeds.append(Seed("weights", ".pt", script.getvalue()))
    return seeds


def _data(canary: Path) -> list[Seed]:
    index = {"folder": ["a/b", "c"], "filename": ["ADE_val_1.jpg", "ADE_train_2.jpg"]}
    refs = [{"ref_id": 1, "sentences": [{"sent": "x"}], "n": np.arange(3)}, {3.5, None}, b"\xff"]
    nested: Any = ["x"] * 5
    for _ in range(6):
        nested = [nested] * 5
    seeds = [
        Seed("pickle", ".pkl", pickle.dumps(value, protocol=protocol))
        for value in (index, refs, _Hostile(canary), nested)
        for protocol in (0, 2, 4, 5)
    ]
    entry = json.dumps({"key": KEY, "texts": ["a", "b"]})
    seeds.append(
        Seed("cache", ".safetensors", save({"embeddings": torch.ones(2, 4)}, {"entry": entry}))
    )
    return [*seeds, Seed("log", ".log", _log_bytes())]


def _log_bytes() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        log = EvaluationLog(Path(folder), CARD, (0, 1), keep=False)
        counts = (np.array([0, 1]), np.array([1, 2]), np.array([5, 7]))
        log.append(ImageRecord("a", PairCounts(*counts)))
        log.close()
        return log.path.read_bytes()


def _archives() -> list[Seed]:
    seeds = []
    for name in ("data/a.txt", "../../canary", "/canary"):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, b"text" * 50)
        seeds.append(Seed("archive", ".zip", packed.getvalue()))
        for mode, suffix in (("w:gz", ".tar.gz"), ("w", ".tar")):
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode=mode) as tar:  # type: ignore[call-overload]
                info = tarfile.TarInfo(name)
                info.size = 4
                tar.addfile(info, io.BytesIO(b"text"))
            seeds.append(Seed("archive", suffix, packed.getvalue()))
    return seeds


def _arrays() -> list[Seed]:
    labels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    seeds = []
    for compressed in (False, True):
        packed = io.BytesIO()
        savemat(packed, {"LabelMap": labels, "note": "x"}, do_compression=compressed)
        seeds.append(Seed("mat", ".mat", packed.getvalue()))
        packed = io.BytesIO()
        (np.savez_compressed if compressed else np.savez)(packed, labels=labels)
        seeds.append(Seed("arrays", ".npz", packed.getvalue()))
    for array in (labels, labels.T.astype(np.float32), np.array([None])):
        packed = io.BytesIO()
        np.save(packed, array)
        seeds.append(Seed("array", ".npy", packed.getvalue()))
    survey = LabelSurvey(12, (255,), 2, {0: 5, 255: 7}, {0: 1, 255: 2})
    codes = [{"category_id": 3, "segmentation": encode_rle(labels > 4)}]
    return [
        *seeds,
        Seed("survey", ".json", json.dumps(asdict(survey)).encode()),
        Seed("codes", ".json", json.dumps(codes).encode()),
        Seed("pairs", ".tsv", b"filepath\ttitle\na.png\ta cat\nb/c.png\ta dog\n"),
    ]
