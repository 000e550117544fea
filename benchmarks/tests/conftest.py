"""Networks that are as fast as they are ignorant, and a data set that fits into a pocket."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import run_all
from PIL import Image
from tiny_models import clip_config, tiny_ovseg, tiny_san

from car.config import CaRConfig
from car.segmenter import CaRSegmenter
from openvocab.clip.model import CLIP
from openvocab.weights.state_dict import save_state_dict
from ovseg import InferenceConfig, OVSegSegmenter, RegionConfig, save_model
from san import SANInference, SANSegmenter
from san.weights import save_network

NAMES = ("sky", "grass", "quux", "dog")
SIZE = 64
OVSEG_RULES = InferenceConfig(min_size=64, region=RegionConfig(mask_threshold=0.2))


@pytest.fixture
def segmenters() -> dict[str, object]:
    """All three methods, tiny, with random weights."""
    torch.manual_seed(0)
    clips = [CLIP(clip_config(*c)).eval().requires_grad_(False) for c in ((16, 64), (14, 56))]
    model = tiny_ovseg()
    return {
        "san": SANSegmenter(tiny_san(), SANInference(short_side=64), cache_dir=False),
        "ovseg": OVSegSegmenter(model, OVSEG_RULES, cache_dir=False),
        "car": CaRSegmenter(*clips, CaRConfig(), cache_dir=False),  # type: ignore[call-arg]
    }


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny checkpoint files by method, as --weights takes them."""
    folder = tmp_path_factory.mktemp("weights")
    save_network(tiny_san(), folder / "san.safetensors", SANInference(short_side=64))
    model = tiny_ovseg()
    save_model(model, folder / "ovseg.safetensors", OVSEG_RULES)
    torch.manual_seed(1)
    clip = CLIP(clip_config(16, 64))
    metadata = {"activation": "quick_gelu", "heads": [2, 1]}
    save_state_dict(folder / "clip.safetensors", clip.state_dict(), metadata)
    return {
        "san": str(folder / "san.safetensors"),
        "ovseg": str(folder / "ovseg.safetensors"),
        "car": str(folder / "clip.safetensors"),
    }


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/, labels/ and names.txt: three images of four classes."""
    folder = tmp_path_factory.mktemp("data") / "pocket"
    random = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for index in range(3):
        labels = np.repeat(np.repeat(random.integers(0, 4, (2, 2)), 32, 0), 32, 1).astype(np.uint8)
        labels[:4] = 255
        noise = random.integers(0, 60, (SIZE, SIZE, 3))
        image = (labels[..., None].astype(int) % 4 * 60 + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{index}.png")
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n")
    return folder


@pytest.fixture(scope="session")
def world_run(checkpoints: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run on the first scenes of the world, without structure."""
    output = tmp_path_factory.mktemp("world") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENVOCAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        weights = [f"{method}={path}" for method, path in checkpoints.items()]
        words = ["--weights", *weights, "--datasets", "world", "--limit", "4"]
        assert run_all.main([*words, "--no-structure", "--output", str(output)]) == 0
    return output
