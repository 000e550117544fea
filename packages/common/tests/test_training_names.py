"""A checkpoint carries the names it was trained on, and nobody guesses at them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from openvocab.errors import InputError
from openvocab.vocabulary import Vocabulary
from openvocab.weights.state_dict import TRAINED_ON, save_state_dict
from openvocab.weights.training_names import seen_by_training, training_names
from openvocab.world import seen_labels, world_vocabulary


@pytest.mark.parametrize("package", ["san", "ovseg"])
def test_the_shipped_weights_know_their_40_names(package: str) -> None:
    names = training_names("world", package)
    assert seen_by_training(names, world_vocabulary()) == list(seen_labels())
    assert len(names) == 40


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_names_are_in_the_metadata(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save_state_dict(path, {"w": torch.zeros(1)}, {TRAINED_ON: ["cat", "Sofa"]})
    assert training_names(path) == ("cat", "Sofa")
    assert seen_by_training(("cat", "Sofa"), Vocabulary(("dog", "sofa ", "cat"))) == [1, 2]


def test_a_checkpoint_that_says_nothing_has_none(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_state_dict(path, {"w": torch.zeros(1)}, {})
    assert training_names(path) == training_names(tmp_path / "none") == ()
    assert training_names("world", "car") == training_names("ViT-B-16:openai") == ()
    path.with_suffix(".json").write_text(json.dumps({TRAINED_ON: ["cat"]}))
    assert training_names(path) == ("cat",)
    path.with_suffix(".json").write_text("{")
    with pytest.raises(InputError, match=r"a\.json"):
        training_names(path)
