"""Finding, reading and writing SAN checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from openvocab.clip import CLIPConfig, TextConfig, VisionConfig
from openvocab.errors import InputError
from openvocab.reading.json_files import parse_json
from openvocab.vocabulary import WORLD
from openvocab.weights.folders import find_pretrained
from openvocab.weights.hub import fetch
from openvocab.weights.shipped import read_shared, save_shared, world_file
from openvocab.weights.state_dict import (
    fill,
    load_strict,
    read_metadata,
    save_state_dict,
    unfilled,
)
from san import _convert
from san.config import VARIANTS, SANConfig, SANInference, from_detectron2
from san.model import SAN

REPOSITORY = "Mendel192/san"
_CONFIG, _INFERENCE = "san_config", "san_inference"  # in the metadata of a checkpoint
FILES = {name: f"{name}.pth" for name in VARIANTS}


def find_checkpoint(weights: str | Path) -> Path:
    """Return the file behind a path, a variant's name, `hf:ORG/NAME` or `huggingface:<file>`.

    "world" is the small SAN of the embedded world, which this package carries; the others are
    fetched on first use, from the authors' repository `Mendel192/san`.

    Raises:
        InputError: no such file, or it is not here and there is no network.
    """
    text = str(weights)
    if text in FILES:
        return fetch(REPOSITORY, FILES[text])
    if text == WORLD:
        return world_file("san")
    if text.startswith("huggingface:"):
        return fetch(REPOSITORY, text.removeprefix("huggingface:"))
    if folder := find_pretrained(weights, "san"):
        return folder.weights
    if not Path(weights).is_file():
        raise InputError(
            f"there are no SAN weights at {text!r}; give a file, a folder of save_pretrained, "
            "hf:ORG/NAME, huggingface:<file>, or one of " + ", ".join((*FILES, WORLD))
        )
    return Path(weights)


def load_network(
    path: Path,
    config: SANConfig | None = None,
    inference: SANInference | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[SAN, SANInference]:
    """Build the network of a checkpoint, the original's or ours, and load it strictly.

    Args:
        path: `.pth`, `.pt` or `.safetensors`.
        config: the architecture; None reads it from the file, or tells it from the shapes.
        inference: rules of inference; None reads them from the file, or takes the published ones.
        options: keys of the original release, nested, that change the architecture or the sizes.

    Returns:
        The network, and how it is run.

    Raises:
        InputError: unreadable, or tensors are missing, unexpected or of another shape.
    """
    tensors = read_shared(path)
    stored = stored_config(path) if config is None or inference is None else None
    if config is None:
        config = stored[0] if stored else _published_config(tensors, path)
    if inference is None:
        inference = stored[1] if stored else SANInference()
    if options:
        config, inference = from_detectron2(options, base=(config, inference))
    with unfilled():
        network = SAN(config)
    tensors = _our_names(network, tensors)
    fill(network, tensors, source=str(path))
    network.reset_buffers()
    return network.eval(), inference


def load_network_state(network: SAN, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Load a state dict with the original's names, or with ours, strictly."""
    load_strict(network, _our_names(network, tensors), source=source)


def _our_names(network: SAN, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if _convert.is_official(tensors):
        return _convert.from_official(tensors, list(network.state_dict()), network.config)
    return dict(tensors)


def save_network(
    network: SAN,
    path: str | Path,
    inference: SANInference | None = None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write a checkpoint with the original's names, which the original and we can load.

    Args:
        network: the network to write.
        path: `.pth`, `.pt` or `.safetensors`.
        inference: rules of inference; None: the published ones.
        more: further metadata to store, such as the names of the training.
    """
    state = _convert.to_official(network.state_dict(), network.config)
    save_state_dict(path, state, {**metadata_of(network, inference), **more})


def metadata_of(network: SAN, inference: SANInference | None = None) -> dict[str, Any]:
    """Return the metadata with which a checkpoint can be loaded without further information."""
    run = SANInference() if inference is None else inference
    return {_CONFIG: asdict(network.config), _INFERENCE: asdict(run)}


def save_world_network(network: SAN, inference: SANInference, path: str | Path) -> None:
    """Write a network without the world's CLIP, which the package carries anyway."""
    save_shared(path, network.state_dict(), metadata_of(network, inference), prefix="clip.")


def stored_config(path: Path) -> tuple[SANConfig, SANInference] | None:
    """Return the architecture and the rules of inference that a checkpoint of ours stores.

    Earlier checkpoints store both in one place. The original's checkpoints store neither, which
    gives None.
    """
    metadata = read_metadata(path)
    if _CONFIG not in metadata:
        return None
    values = parse_json(metadata[_CONFIG], f"{_CONFIG} in {path}", "a configuration of SAN")
    stored = metadata.get(_INFERENCE, "{}")
    run = parse_json(stored, f"{_INFERENCE} in {path}", "how a SAN is run")
    try:
        earlier = {f.name: values.pop(f.name) for f in fields(SANInference) if f.name in values}
        clip = values.pop("clip")
        vision = {**clip["vision"], "stem": tuple(clip["vision"].get("stem", ()))}
        towers = {"vision": VisionConfig(**vision), "text": TextConfig(**clip["text"])}
        values["fusion"] = tuple(tuple(pair) for pair in values["fusion"])
        values["supervised"] = tuple(values["supervised"])
        config = SANConfig(clip=CLIPConfig(**{**clip, **towers}), **values)
        return config, SANInference(**{**earlier, **run})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} holds a configuration of SAN that is damaged or of another version "
            f"({error!r:.80}); pass the configuration (--config-file)"
        ) from None


def _published_config(tensors: Mapping[str, Tensor], path: Path) -> SANConfig:
    """Return the published variant that has the width of this CLIP."""
    patches = tensors.get("clip_visual_extractor.conv1.weight")
    for variant in VARIANTS.values():
        config = variant()
        if patches is not None and len(patches) == config.clip.vision.width:
            return config
    raise InputError(
        f"{path} is no checkpoint of {' or '.join(VARIANTS)}, and does not store its configuration;"
        " pass the configuration (--config-file)"
    )
