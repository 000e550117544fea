"""Training SAN as a person would: from two folders to a checkpoint that segments, through kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openvocab.cli import run
from openvocab.config import load_config
from openvocab.errors import InputError
from openvocab.training.log import read_log
from san.train import SANTrainConfig, main
from san.weights import save_network

HERE = Path(__file__).parent
SIDE = 96


def _scene(rng: np.random.Generator, names: int) -> tuple[np.ndarray, np.ndarray]:
    """A background and two rectangles whose colour tells the class; a void strip."""
    label = np.full((120, 150), rng.integers(names), dtype=np.uint8)
    for _ in range(2):
        top, left = rng.integers(0, 70, 2)
        label[top : top + 50, left : left + 60] = rng.integers(names)
    image = (label[..., None] * np.array([31, 17, 43]) + rng.integers(0, 9, 3)).astype(np.uint8)
    label[:5] = 255
    return image, label


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, label maps and names, and a tiny SAN with random weights to start from."""
    from conftest_free import recorded  # replaced below

    return recorded


