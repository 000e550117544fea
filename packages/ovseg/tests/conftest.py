"""Recordings of the original program, and small models with the recorded weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from openvocab.clip.weights import config_from_state_dict
from ovseg._convert import CLIP_PREFIX, config_from_detectron2
from ovseg.config import InferenceConfig, OVSegConfig
from ovseg.model import OVSeg

HERE = Path(__file__).parent / "golden"


class Arrays(dict[str, np.ndarray]):
    """Arrays of one or several files."""

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self[name])


@dataclass(frozen=True)
class Golden:
    """One recorded set."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def arrays(self, pattern: str) -> Arrays:
        """All arrays of the files that match, or skip the test where there is none."""
        files = sorted(self.folder.glob(pattern))
        if not files:
            pytest.skip(f"{self.name} has no {pattern}")
        arrays = Arrays()
        for file in files:
            with np.load(file) as data:
                arrays.update({name: data[name] for name in data.files})
        return arrays

    def cases(self, kind: str) -> list[Arrays]:
        names = sorted(f.name for f in self.folder.glob(f"case*_{kind}.npz"))
        assert names, f"{self.folder} has no case*_{kind}.npz"
        return [self.arrays(name) for name in names]

    def state_dict(self) -> dict[str, Tensor]:
        return dict(_state_dict(self.folder))

    def configs(self) -> tuple[OVSegConfig, InferenceConfig]:
        clip = {
            k.removeprefix(CLIP_PREFIX): v
            for k, v in _state_dict(self.folder).items()
            if k.startswith(CLIP_PREFIX)
        }
        data = yaml.safe_load(self.json("config.json")["cfg_yaml"])
        config = config_from_state_dict(clip, "quick_gelu", heads=(1, 1))
        return config_from_detectron2(data, clip=config)

    def demo_config(self) -> InferenceConfig:
        inference = self.configs()[1]
        mode = self.json("config.json")["mode_demo"]
        region = replace(inference.region, mask_threshold=mode["MASK_THR"])
        return replace(inference, mode="demo", ensemble_weight=mode["WEIGHT"], region=region)

    def model(self) -> OVSeg:
        """The model with the recorded weights; shared by tests, so do not change it."""
        return _model(self.folder)

    def class_names(self) -> list[str]:
        return [str(n) for n in self.arrays("text.npz")["class_names"]]


@cache
def _state_dict(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for part in ("maskformer", "clip"):
        tensors.update(load_file(folder / f"state_dict_{part}.safetensors"))
    ids, rows = tensors.pop("TOKEN_EMBEDDING_ROW_IDS"), tensors.pop("TOKEN_EMBEDDING_ROWS")
    embedding = torch.zeros(49408, rows.shape[1])
    embedding[ids.long()] = rows.float()
    tensors[CLIP_PREFIX + "token_embedding.weight"] = embedding
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


@cache
def _model(folder: Path) -> OVSeg:
    golden = Golden(folder)
    model = OVSeg(golden.configs()[0])
    model.load_state_dict(golden.state_dict(), strict=True)
    return model.eval()


def _folders(config: pytest.Config, holding: str) -> list[Path]:
    """Return the folders with a recorded file, ours and those of `--golden-root`."""
    roots = [HERE]
    if given := config.getoption("--golden-root"):
        root = Path(given)
        roots.append(root / "ovseg" if (root / "ovseg").is_dir() else root)
    return [file.parent for root in roots for file in sorted(root.glob(f"*/{holding}"))]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" in metafunc.fixturenames:
        folders = _folders(metafunc.config, "state_dict_clip.safetensors")
        sets = [Golden(folder) for folder in folders]
        ids = [("" if HERE in s.folder.parents else "given-") + s.name for s in sets]
        metafunc.parametrize("golden", sets, ids=ids)

    for fixture, file in (("mpt_step", "mpt_step.npz"), ("maskget", "maskget.npz")):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, _folders(metafunc.config, file), indirect=True)


def _loaded(request: pytest.FixtureRequest) -> Arrays:
    return Golden(request.param).arrays(f"{request.fixturename}.npz")


@pytest.fixture
def mpt_step(request: pytest.FixtureRequest) -> Arrays:
    """A recorded step of mask prompt tuning."""
    return _loaded(request)


@pytest.fixture
def maskget(request: pytest.FixtureRequest) -> Arrays:
    """Recorded masks of painted crops."""
    return _loaded(request)


@pytest.fixture(autouse=True)
def _no_text_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENVOCAB_CACHE", "")


@pytest.fixture
def tiny() -> Golden:
    """The first recorded set, for tests that need any small working model."""
    return Golden(HERE / "cfg_a")
