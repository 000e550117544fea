"""Folders that hold a method's weights with all that belongs to them, here or on the Hub.

`save_pretrained` writes such a folder, and every `--weights` takes its path. `hf:ORG/NAME` stands
for a repository of the Hugging Face Hub that holds one, `hf:ORG/NAME@REVISION` for an earlier state
of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openvocab.errors import InputError
from openvocab.reading.json_files import read_json_file
from openvocab.weights.hub import fetch_repository
from openvocab.weights.state_dict import TRAINED_ON, read_values

FORMAT = "openvocab-pretrained-1"
CONFIG, CARD = "config.json", "README.md"
WEIGHTS, SECOND_WEIGHTS = "model.safetensors", "classifier.safetensors"
CALIBRATION = "model.calibration.json"
FILES = (CONFIG, WEIGHTS, SECOND_WEIGHTS, CALIBRATION)
_HUB = re.compile(r"hf:(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?")
_MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class PretrainedFolder:
    """What the configuration of a folder says.

    Attributes:
        path: of the folder.
        method: key of the method, such as "san".
        files: names of the files that belong to it, beside the configuration.
        settings: architecture and settings, as the weights file stores them too.
        trained_on: the names whose masks the weights were trained on.
    """

    path: Path
    method: str
    files: tuple[str, ...]
    settings: Mapping[str, Any]
    trained_on: tuple[str, ...]

    @property
    def weights(self) -> Path:
        """The file of weights that stands for the folder."""
        return self.path / WEIGHTS

    def write_config(self, file: Path, version: str) -> None:
        """Write the configuration."""
        content = {
            "format": FORMAT,
            "method": self.method,
            "version": version,
            "files": list(self.files),
            "trained_on": list(self.trained_on),
            "settings": self.settings,
        }
        text = json.dumps(content, indent=1, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")


def find_pretrained(
    weights: str | Path | None, method: str | None = None
) -> PretrainedFolder | None:
    """Return the folder that `--weights` names, or None if it names something else.

    Args:
        weights: the path of a folder that `save_pretrained` wrote, or `hf:ORG/NAME[@REVISION]`.
        method: key of the method that it shall hold; None: any.

    Raises:
        InputError: the folder holds another method, is damaged or not complete, or the repository
            cannot be fetched.
    """
    if weights is None:
        return None
    text, path = str(weights), Path(weights)
    if text.startswith("hf:"):
        path = _fetched(text)
    elif not (path / CONFIG).is_file():
        return None
    folder = read_folder(path)
    if folder is None and text.startswith("hf:"):
        raise InputError(
            f"the repository {text!r} was not written by save_pretrained of this program; give one "
            "that was, or download its checkpoint and give the file"
        )
    if folder is None:
        return None
    if method is not None and folder.method != method:
        raise InputError(
            f"'{weights}' holds weights of the method {folder.method!r}, not of {method!r}; give "
            f"--method {folder.method}, or other weights"
        )
    for name in folder.files:
        if not (path / name).is_file():
            raise InputError(f"the folder '{path}' lacks its file {name}; copy it again")
    _check_settings(folder)
    return folder


def read_folder(path: Path) -> PretrainedFolder | None:
    """Read the configuration in a folder, or return None if it is not one of ours.

    Raises:
        InputError: it is damaged.
    """
    file = path / CONFIG
    content = read_json_file(file, "the configuration of a method", most_bytes=_MOST_BYTES)
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        return None
    method, files = content.get("method"), content.get("files")
    settings, names = content.get("settings"), content.get("trained_on", [])
    if not (
        isinstance(method, str)
        and isinstance(files, list)
        and WEIGHTS in files
        and set(map(str, files)) <= set(FILES)
        and isinstance(settings, Mapping)
        and isinstance(names, list)
    ):
        raise InputError(f"'{file}' is damaged; write the folder again with save_pretrained")
    return PretrainedFolder(path, method, tuple(files), settings, tuple(map(str, names)))


def _check_settings(folder: PretrainedFolder) -> None:
    """Refuse a configuration that was edited, since the weights file would silently win."""
    stored = read_values(folder.weights, without=(TRAINED_ON, "format"))  # others note a format
    if stored != dict(folder.settings):
        raise InputError(
            f"'{folder.path / CONFIG}' has other settings than {WEIGHTS} beside it; load the "
            "weights file itself, give other settings when loading, and save them again"
        )


def _fetched(reference: str) -> Path:
    match = _HUB.fullmatch(reference)
    if match is None:
        raise InputError(
            f"{reference!r} names no repository; write hf:ORG/NAME, or hf:ORG/NAME@REVISION"
        )
    return fetch_repository(match[1], match[2], FILES, complete)


def complete(path: Path) -> bool:
    """Tell whether a folder holds its configuration and every file that this lists."""
    if not (path / CONFIG).is_file():
        return False
    folder = read_folder(path)
    return folder is None or all((path / name).is_file() for name in folder.files)
