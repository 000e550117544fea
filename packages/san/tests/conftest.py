"""Recordings of the original SAN, and the networks that their weights give.

`--golden-root DIR` replaces the recordings of this folder by those in DIR, or in DIR/san.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from openvocab.clip import CLIPConfig, TextConfig, VisionConfig
from san.config import SANConfig, SANInference, from_detectron2
from san.model import SAN
from san.weights import load_network_state, save_network

HERE = Path(__file__).parent
_SPARSE = "__sparse__.ov_classifier.token_embedding."


@dataclass(frozen=True)
class Recording:
    """One recorded set: a folder with a configuration, weights, inputs and outputs."""

    path: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.path / "config.json").read_text())

    @property
    def config(self) -> SANConfig:
        return self.configs[0]

    @property
    def inference(self) -> SANInference:
        return self.configs[1]

    @cached_property
    def configs(self) -> tuple[SANConfig, SANInference]:
        nested: dict[str, Any] = {}
        for key, value in self.meta["overrides_on_top_of_san_vit_b_16"].items():
            *parents, leaf = key.split(".")
            node = nested
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
        nested["INPUT"] = {
            "MIN_SIZE_TEST": self.meta["resize_short"],
            "MAX_SIZE_TEST": self.meta["resize_max"],
        }
        return from_detectron2(nested, self._clip_config())

    def _clip_config(self) -> CLIPConfig:
        clip = self.meta["clip"]
        vision, text = clip["vision_cfg"], clip["text_cfg"]
        return CLIPConfig(
            embed_dim=clip["embed_dim"],
            vision=VisionConfig(
                image_size=vision["image_size"],
                patch_size=vision["patch_size"],
                width=vision["width"],
                layers=vision["layers"],
                heads=vision["width"] // vision.get("head_width", 64),
                mlp_width=4 * vision["width"],
            ),
            text=TextConfig(
                context_length=text["context_length"],
                vocab_size=text["vocab_size"],
                width=text["width"],
                layers=text["layers"],
                heads=text["heads"],
                mlp_width=4 * text["width"],
            ),
            activation="quick_gelu" if clip["quick_gelu"] else "gelu",
        )

    @cached_property
    def state_dict(self) -> dict[str, torch.Tensor]:
        """The complete state dict of the original."""
        parts = ("state_clip_visual", "state_rest")
        state = {k: v for p in parts for k, v in load_file(self.path / f"{p}.safetensors").items()}
        rows, values, shape = (state.pop(_SPARSE + part) for part in ("rows", "values", "shape"))
        table = torch.zeros(*shape.tolist())
        table[rows.long()] = values.float()
        return state | {"ov_classifier.token_embedding.weight": table}

    def network(self) -> SAN:
        network = SAN(self.config)
        load_network_state(network, self.state_dict, source=str(self.path))
        return network.eval()

    def load(self, name: str) -> dict[str, torch.Tensor]:
        """The arrays of a recorded `.npz`, as tensors."""
        with np.load(self.path / f"{name}.npz") as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    @property
    def images(self) -> list[int]:
        names = (path.name for path in self.path.glob("infer_*_input.npz"))
        return sorted(int(name.split("_")[1]) for name in names)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "recording" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--golden-root")
        roots = [Path(chosen), Path(chosen) / "san"] if chosen else [HERE / "golden"]
        sets = sorted(
            p.parent
            for root in roots
            for p in root.glob("*/config.json")
            if (p.parent / "state_clip_visual.safetensors").is_file()
        )
        if metafunc.module.__name__.endswith("_commands"):
            sets = sets[:1]  # commands start processes; what they compute is tested elsewhere
        metafunc.parametrize("recording", [Recording(p) for p in sets], ids=[p.name for p in sets])


@pytest.fixture
def published_keys() -> dict[str, dict[str, list[int]]]:
    """Names and shapes of the tensors in the two published checkpoints."""
    result = {}
    for path in (HERE / "data").glob("keys_*.json"):
        entries = json.loads(path.read_text())["state_dict"]
        result[path.stem.removeprefix("keys_")] = {e["name"]: e["shape"] for e in entries}
    return result


@pytest.fixture(scope="session")
def tiny_san(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A checkpoint with the recorded weights that stores its configuration, and its words."""
    recording = Recording(HERE / "golden" / "A")
    path = tmp_path_factory.mktemp("san") / "tiny.safetensors"
    save_network(recording.network(), path, recording.inference)
    return path, recording.meta["vocabulary"]
