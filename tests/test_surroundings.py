"""Nothing around a call of `segment` changes the labels of a method."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from openvocab.methods import load
from openvocab.world import scene, world_vocabulary


@pytest.mark.parametrize("method", ["san", "ovseg", "car"])
def test_autocast_default_type_and_threads_give_the_same_labels(method: str) -> None:
    images = [scene(index, "val").image for index in range(2)]
    segmenter = load(method, "world", device="cpu")
    expected = [found.labels for found in segmenter.segment(images, world_vocabulary())]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = segmenter.segment(images[0], world_vocabulary()).labels
    np.testing.assert_array_equal(cast, expected[0])

    found: dict[int, Any] = {}

    def work(index: int) -> Any:
        found[index] = fresh.segment(images[index], world_vocabulary()).labels

    torch.set_default_dtype(torch.float64)
    try:
        fresh = load(method, "world", device="cpu")  # loading, too, is not to look at it
        threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_default_dtype(torch.float32)
    for index, labels in enumerate(expected):
        np.testing.assert_array_equal(found[index], labels)
