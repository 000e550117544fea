"""Nothing around a call of `segment` changes the labels of a method."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from car.config import named_config
from car.segmenter import load_car
from openvocab.world import scene, world_vocabulary
from ovseg import load_ovseg
from san import load_san

LOADERS = {
    "san": lambda: load_san("world"),
    "ovseg": lambda: load_ovseg("world"),
    "car": lambda: load_car(named_config("world").car),
}


@pytest.mark.parametrize("method", LOADERS)
def test_autocast_default_type_and_threads_give_the_same_labels(method: str) -> None:
    images = [scene(index, "val").image for index in range(2)]
    segmenter = LOADERS[method]()
    expected = [found.labels for found in segmenter.segment(images, world_vocabulary())]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = segmenter.segment(images[0], world_vocabulary()).labels
    np.testing.assert_array_equal(cast, expected[0])

    found: dict[int, Any] = {}

    def work(index: int) -> Any:
        found[index] = fresh.segment(images[index], world_vocabulary()).labels

    torch.set_default_dtype(torch.float64)
    try:
        fresh = LOADERS[method]()  # loading, too, is not to look at it
        threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_default_dtype(torch.float32)
    for index, labels in enumerate(expected):
        np.testing.assert_array_equal(found[index], labels)
