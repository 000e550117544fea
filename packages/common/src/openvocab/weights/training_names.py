"""The names with whose masks a checkpoint was trained, which decide the seen classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from openvocab.errors import InputError
from openvocab.reading.files import LIST_BYTES
from openvocab.reading.json_files import parse_json, read_json_file
from openvocab.reading.names import same_word
from openvocab.vocabulary import WORLD, Vocabulary
from openvocab.weights.folders import find_pretrained
from openvocab.weights.shipped import world_file
from openvocab.weights.state_dict import TRAINED_ON, read_metadata


def training_names(weights: str | Path, package: str = "") -> tuple[str, ...]:
    """Return the names that a checkpoint was trained on, or nothing if it does not store them.

    Args:
        weights: a checkpoint file, a folder of `save_pretrained` or `hf:ORG/NAME`, or "world" for
            the weights that a package carries.
        package: name of the package; needed for "world" only.

    Raises:
        InputError: the file is damaged.
    """
    try:
        path = world_file(package) if str(weights) == WORLD and package else Path(weights)
    except InputError:  # a method without weights of its own
        return ()
    if folder := find_pretrained(weights):
        return folder.trained_on
    if not path.is_file():
        return ()
    beside = path.with_suffix(".json")
    stored = read_metadata(path).get(TRAINED_ON)
    if stored is not None:
        return _listed(parse_json(stored, f"{TRAINED_ON} in {path}", "a list of names"))
    if path.suffix == ".safetensors" and beside.is_file():
        content = read_json_file(beside, "training record", most_bytes=LIST_BYTES)
        return _listed(content.get(TRAINED_ON) if isinstance(content, Mapping) else None)
    return ()


def seen_by_training(names: Sequence[str], vocabulary: Vocabulary) -> list[int]:
    """Return the labels of a vocabulary that are among the names of a training."""
    known = {same_word(name) for name in names}
    return [label for label, name in enumerate(vocabulary.names) if same_word(name) in known]


def _listed(value: object) -> tuple[str, ...]:
    return tuple(str(name) for name in value) if isinstance(value, list) else ()
