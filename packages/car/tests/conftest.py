"""Recordings of the original, and CLIPs that are small enough for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from car.config import CaRConfig
from car.recurrence import CaR, NameMasks, PreparedImage, Recurrence, Step
from car.segmenter import CaRSegmenter
from openvocab.clip import load_clip
from openvocab.clip.config import CLIPConfig, TextConfig, VisionConfig
from openvocab.clip.model import CLIP
from openvocab.weights.state_dict import save_state_dict

HERE = Path(__file__).parent
LISTS = (
    *("semantic_templates", "bg_cls", "visual_prompt_type"),
    *("stuff_visual_prompt_type", "text_template"),
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the parity test on every case that the golden folder holds."""
    if "case_name" in metafunc.fixturenames:
        folder = golden_folder(metafunc.config)
        names = sorted(path.stem.removeprefix("case_") for path in folder.glob("case_*.npz"))
        metafunc.parametrize("case_name", names)


def golden_folder(config: pytest.Config) -> Path:
    root = config.getoption("--golden-root", default=None)
    if root is None:
        return HERE / "golden"
    folder = Path(root)
    if any(folder.glob("case_*.npz")):
        return folder
    # A folder for all models; without recordings of this one, ours are taken.
    return folder / "car" if (folder / "car").is_dir() else HERE / "golden"


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Path:
    return golden_folder(request.config)


@pytest.fixture(scope="session")
def meta(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "meta.json").read_text())["cases"]


@dataclass(frozen=True)
class Run:
    """A recurrence that was run, with all of its steps."""

    recurrence: Recurrence
    found: NameMasks
    steps: tuple[Step, ...]

    @property
    def crf_probability(self) -> torch.Tensor | None:
        """What the CRF was given, if there was anything."""
        kept = self.recurrence.kept
        return self.recurrence.crf_input() if kept.proposals.any() else None


def run_recurrence(
    car: CaR, image: PreparedImage, names: Sequence[str], config: CaRConfig | None = None
) -> Run:
    """Run a recurrence and keep its steps."""
    steps: list[Step] = []
    recurrence = Recurrence(car, image, names, config, lambda _, step: steps.append(step))
    return Run(recurrence, recurrence.run(), tuple(steps))


@pytest.fixture(scope="session")
def recur():
    """Return what runs a recurrence and keeps its steps."""
    return run_recurrence


def read_clip(path: Path) -> CLIP:
    with np.load(path) as file:
        tensors = {
            name: torch.from_numpy(file[name]).float()
            for name in file.files
            if not name.startswith("token_embedding.")
        }
        rows = torch.from_numpy(file["token_embedding.rows"]).float()
        table = torch.zeros(49408, rows.shape[1])
        table[torch.from_numpy(file["token_embedding.row_ids"]).long()] = rows
    tensors["token_embedding.weight"] = table
    widths = len(tensors["visual.conv1.weight"]), tensors["token_embedding.weight"].shape[1]
    heads = (max(widths[0] // 64, 1), max(widths[1] // 64, 1))  # as the recorded models had
    return load_clip(tensors, activation="quick_gelu", heads=heads)


@pytest.fixture(scope="session")
def recorded_clips(golden: Path) -> tuple[CLIP, CLIP]:
    return read_clip(golden / "weights_cam.npz"), read_clip(golden / "weights_sem.npz")


@pytest.fixture(scope="session")
def case_config(meta: dict[str, Any]):
    """Return the settings with which a case was recorded."""

    def config(name: str, **changes: Any) -> CaRConfig:
        values = dict(meta[name]["car"])
        for key in LISTS:
            if key in values:
                empty = () if key == "bg_cls" else None
                values[key] = empty if values[key] is None else tuple(values[key])
        if name == "stuff":  # recorded in its own pass
            values["bg_cls"] = tuple(meta["thing"]["names"])
            values["visual_prompt_type"] = values["stuff_visual_prompt_type"]
            values["bg_factor"] = values["stuff_bg_factor"]
        standard = {"mode": meta[name]["seg_mode"], "faithful": True, "max_side": None}
        return CaRConfig(**{**values, **standard, **changes})

    return config


def make_clip(seed: int, patch: int, image_size: int) -> CLIP:
    torch.manual_seed(seed)
    vision = VisionConfig(image_size, patch, 64, 3, 2, 128)
    text = TextConfig(77, 49408, 32, 1, 1, 64)
    clip = CLIP(CLIPConfig(32, vision, text, "quick_gelu"))
    return clip.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_clips() -> tuple[CLIP, CLIP]:
    return make_clip(0, 16, 64), make_clip(1, 14, 56)


@pytest.fixture
def tiny(tiny_clips: tuple[CLIP, CLIP]):
    """Return a segmenter that is as fast as it is ignorant."""

    def segmenter(**settings: Any) -> CaRSegmenter:
        values = {"confidence_threshold": 0.0, "mask_threshold": 0.4, **settings}
        return CaRSegmenter(*tiny_clips, CaRConfig(**values), cache_dir=False)

    return segmenter


@pytest.fixture(scope="session")
def clip_files(tmp_path_factory: pytest.TempPathFactory, tiny_clips) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("clips")
    paths = folder / "proposer.safetensors", folder / "classifier.safetensors"
    for clip, path in zip(tiny_clips, paths, strict=True):
        vision, text = clip.config.vision, clip.config.text
        metadata = {"activation": "quick_gelu", "heads": [vision.heads, text.heads]}
        save_state_dict(path, clip.state_dict(), metadata=metadata)
    return paths


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """Return an image (90, 120, 3) with shapes on a gradient."""
    rng = np.random.default_rng(0)
    x = np.linspace(40, 200, 120)
    image = np.stack([np.tile(x + shift, (90, 1)) for shift in (0, 20, -20)], axis=-1)
    image += rng.normal(0, 4, image.shape)
    image = np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))
    cv2.circle(image, (40, 45), 20, (200, 40, 40), -1)
    cv2.rectangle(image, (75, 20), (105, 70), (30, 90, 190), -1)
    return image
