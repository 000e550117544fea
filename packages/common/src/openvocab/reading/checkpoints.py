"""Files of weights of every kind, recognized by their first bytes instead of their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from openvocab.errors import InputError
from openvocab.reading.files import DAMAGE, open_regular, reason
from openvocab.reading.torch_pickles import (
    LEGACY_MAGIC,
    MOST_BYTES,
    StoredTensor,
    TorchPickle,
    open_pickle,
    open_torch_legacy,
    open_torch_zip,
    open_zip,
)

Kind = Literal["safetensors", "zip", "torchscript", "legacy", "pickle"]

_HEAD = 1 << 12
_WRAPPERS = ("model", "state_dict", "model_state_dict", "blobs")
_MOST_WRAPPERS = 8
_LIGHTNING = "pytorch-lightning_version"
_PREFIXES = ("module.", "model.")  # of DistributedDataParallel, and of Lightning's modules
_COMPILED = "_orig_mod."
_LONGEST_HEADER = 100_000_000  # of safetensors, by its own rule

# What else is saved under the name of a checkpoint: how it begins, and what to do.
_STRANGERS: tuple[tuple[bytes, str], ...] = (
    (
        rb"version https://git-lfs",
        "is a Git LFS pointer instead of the weights; run 'git lfs pull' where it came from, or "
        "download the file itself",
    ),
    (
        rb"(?i)\s*(?:<!doctype|<html|<head|<\?xml|<body|<!--)",
        "is a web page (HTML) instead of weights; the link led to a page, so download the file "
        "itself",
    ),
    (rb"\x1f\x8b", "is packed with gzip; unpack it first"),
    (rb"BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!", "is a packed archive; unpack it first"),
    (rb"(?s).{257}ustar", "is a tar archive; unpack it first"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|BM", "is an image instead of weights"),
    (rb"\x89HDF", "is an HDF5 file of Keras; give weights of PyTorch"),
    (rb"GGUF", "is a GGUF file; give weights of PyTorch"),
    (rb"\x93NUMPY", "is a single NumPy array; give weights of PyTorch"),
    (rb"%PDF", "is a PDF instead of weights"),
)


def kind_of(path: str | Path) -> Kind:
    """Return the kind of weights in a file, recognized by its first bytes.

    Raises:
        InputError: the file is missing or holds something else; the message says what.
    """
    if not Path(path).exists():
        raise InputError(f"the weights file {path} does not exist; check the path")
    with open_regular(path, "weights", most_bytes=MOST_BYTES) as file:
        head = file.read(_HEAD)
    if not head:
        raise InputError(
            f"{path} is empty (0 bytes) and not a readable pickle or any other file of weights; "
            f"fetch it again"
        )
    for start, answer in _STRANGERS:
        if re.match(start, head):
            raise InputError(f"{path} {answer}")
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    if head.startswith(LEGACY_MAGIC):
        return "legacy"
    if re.match(rb"\x80[\x01-\x05]", head):
        return "pickle"
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header <= _LONGEST_HEADER:
        return "safetensors"
    if re.match(rb"[(\]}c]", head) and Path(path).suffix == ".pkl":  # protocols 0 and 1
        return "pickle"
    if not re.search(rb"[^\t\r\n\f -~\x80-\xff]", head):
        what = "JSON" if head.lstrip()[:1] in (b"{", b"[") else "text, such as YAML,"
        raise InputError(f"{path} holds {what} and not a readable pickle or tensors; check it")
    raise InputError(
        f"{path} is damaged: it begins like no kind of weights, and is not a readable pickle; "
        f"fetch it again"
    )


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a file of weights, without the wrappers around them.

    Every tensor is compared with the bytes in the file before any is built.

    Args:
        path: `.safetensors`, what torch saves in any version, a TorchScript archive, or a pickle of
            arrays; known by its content.

    Raises:
        InputError: the file is missing, damaged, hostile, or holds no tensors; nothing of it was
            run.
    """
    kind = kind_of(path)
    if kind == "safetensors":
        return read_safetensors(path)
    opened = open_kind(path, kind)
    found = state_dict_in(opened.content, source=str(path))
    described = {name: value for name, value in found.items() if isinstance(value, StoredTensor)}
    built = opened.build(described)
    return {name: built.get(name, value) for name, value in found.items()}


def read_whole(path: str | Path) -> Any:
    """Read everything that torch saved, such as the state of a training run.

    Raises:
        InputError: the file is missing, damaged or hostile.
    """
    kind = kind_of(path)
    if kind == "safetensors":
        return read_safetensors(path)
    return open_kind(path, kind).whole()


def read_notes(path: str | Path, key: str) -> dict[str, str]:
    """Return the text beside the tensors: safetensors' own metadata, or a mapping of text.

    Args:
        path: a file of weights.
        key: key of the mapping in files of torch.

    Raises:
        InputError: the file is missing, damaged or hostile.
    """
    kind = kind_of(path)
    if kind == "safetensors":
        with _safetensors(path) as file:
            return dict(file.metadata() or {})
    if kind == "torchscript":
        return {}
    content = open_kind(path, kind).content
    notes = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(notes, Mapping):
        return {}
    return {k: v for k, v in notes.items() if isinstance(k, str) and isinstance(v, str)}


def open_kind(path: str | Path, kind: Kind) -> TorchPickle:
    """Read the pickle of a file whose kind is known."""
    if kind == "legacy":
        return open_torch_legacy(path)
    return open_pickle(path) if kind == "pickle" else open_torch_zip(path)


def state_dict_in(content: Any, *, source: str) -> dict[str, Any]:
    """Find the tensors with their names in a file that a training program saved.

    Wrappers such as `{"model": ...}`, and what distributed training, torch.compile and Lightning
    put in front of every name, are taken off.

    Returns:
        Names with tensors, described or built.

    Raises:
        InputError: there are none.
    """
    lightning = isinstance(content, Mapping) and _LIGHTNING in content
    for _ in range(_MOST_WRAPPERS):
        wrapped = content if isinstance(content, Mapping) else {}
        inner = (wrapped[key] for key in _WRAPPERS if isinstance(wrapped.get(key), Mapping))
        content = next(inner, content)
    values = content if isinstance(content, Mapping) else {}
    tensors = {str(k): t for k, v in values.items() if (t := _as_tensor(v)) is not None}
    if not tensors:
        raise InputError(
            f"{source} holds no state dict (no arrays by name); expected {{name: tensor}}, or that "
            f"under 'model' or 'state_dict'"
        )
    if lightning and any(name.startswith("model.") for name in tensors):
        tensors = {name: t for name, t in tensors.items() if name.startswith("model.")}
    return _plain_names(tensors)


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        InputError: the file is damaged, or its tensors are not where it says.
    """
    with _safetensors(path) as file:
        try:
            return {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, *DAMAGE) as error:
            raise InputError(f"{path} is damaged ({reason(error)}); fetch it again") from None


def _safetensors(path: str | Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, *DAMAGE) as error:
        raise InputError(f"{path} is damaged ({reason(error)}); fetch it again") from None


def _kind_of_zip(path: str | Path) -> Kind:
    try:
        with open_zip(path) as archive:
            names = archive.namelist()
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(
            f"{path} is a damaged or cut archive ({reason(error)}); fetch it again"
        ) from None
    inside = {name.split("/")[1] for name in names if name.count("/") == 1}
    if "data.pkl" not in inside:
        what = "NumPy arrays" if any(n.endswith(".npy") for n in names) else "no data.pkl of torch"
        raise InputError(
            f"{path} is a zip archive with {what} in it; if weights lie in it, unpack it first"
        )
    return "torchscript" if "constants.pkl" in inside else "zip"


def _as_tensor(value: Any) -> Tensor | StoredTensor | None:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, StoredTensor):
        return value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        native = np.array(value, dtype=value.dtype.newbyteorder("="))
        return torch.from_numpy(native)
    return None


def _plain_names(tensors: dict[str, Any]) -> dict[str, Any]:
    """Remove prefixes that all names share, and torch.compile's mark wherever it stands."""
    plain = {name.replace(_COMPILED, ""): value for name, value in tensors.items()}
    plain = plain if len(plain) == len(tensors) else tensors
    while (
        prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in plain)), None)
    ) is not None:
        plain = {name.removeprefix(prefix): value for name, value in plain.items()}
    return plain
