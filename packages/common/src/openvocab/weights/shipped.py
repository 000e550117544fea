"""The weights of the embedded world, which the packages contain; every command calls them "world".

SAN and OVSeg share the world's CLIP with CaR, so their files hold only what differs from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openvocab.errors import InputError
from openvocab.reading.json_files import parse_json
from openvocab.vocabulary import WORLD
from openvocab.weights.state_dict import read_metadata, read_state_dict, save_state_dict

_SHARED = "shares_world_clip"  # in the metadata: the prefix of CLIP's tensors


def world_file(package: str) -> Path:
    """Return the weights that a package carries: "openvocab.clip", "san" or "ovseg".

    Raises:
        InputError: this installation has none.
    """
    path = Path(str(resources.files(package).joinpath(f"{WORLD}.safetensors")))
    if not path.is_file():
        raise InputError(
            f"the package {package} was installed without the world's weights ({path.name}); "
            "train them with benchmarks/experiments/train_world.py, or install the released package"
        )
    return path


def read_shared(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict; tensors that a file leaves out are taken from the world's CLIP.

    Raises:
        InputError: unreadable, or the world's CLIP is not there.
    """
    tensors = read_state_dict(path)
    prefix = read_metadata(path).get(_SHARED)
    if prefix is None:
        return tensors
    shared = read_state_dict(world_file("openvocab.clip"))
    front = parse_json(prefix, f"{_SHARED} in {path}", "the beginning of names of tensors")
    return {f"{front}{name}": t for name, t in shared.items()} | tensors


def save_shared(
    path: str | Path,
    state_dict: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    *,
    prefix: str,
) -> None:
    """Write a state dict in half precision, without what equals the world's CLIP.

    Args:
        path: `.safetensors`.
        state_dict: state dict of a model around the world's CLIP.
        metadata: metadata of the file.
        prefix: prefix of CLIP's tensors in the state dict.
    """
    shared = read_state_dict(world_file("openvocab.clip"))
    kept = {}
    for name, tensor in state_dict.items():
        small = tensor.half() if tensor.is_floating_point() else tensor
        own = shared.get(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if own is None or not torch.equal(own, small):
            kept[name] = small
    save_state_dict(path, kept, {**metadata, _SHARED: prefix})
