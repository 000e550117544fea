"""Reads the tensors of a TorchScript archive without TorchScript and without running its code.

OpenAI distributes CLIP as such archives. `torch.jit.load` is deprecated and compiles the code in
them; `torch.load(weights_only=True)` refuses them. The archive is a zip whose `data.pkl` describes
a tree of objects: here a restricted unpickler rebuilds the tree with inert stand-ins and looks only
at the tensors, so that nothing in the file can be called.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openvocab.errors import InputError

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Module:
    """Stands in for every class of the archive: keeps its attributes, does nothing."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def is_torchscript(path: str | Path) -> bool:
    """Tell whether a file is a TorchScript archive: a zip with `constants.pkl` beside its data."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(
            name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist()
        )


def read_torchscript(path: str | Path) -> dict[str, Tensor]:
    """Return parameters and buffers of a TorchScript archive, named as its `state_dict` names them.

    Raises:
        InputError: the archive is damaged, or its pickle asks for anything but tensors.
    """
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/", 1)[0]
        try:
            with archive.open(f"{root}/data.pkl") as file:
                tree = _Unpickler(file, archive, root, path).load()
        except (KeyError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            if isinstance(error, _Refused):
                raise InputError(str(error)) from None
            raise InputError(f"{path} is a damaged TorchScript archive; fetch it again") from error
    tensors: dict[str, Tensor] = {}
    _collect(tree, "", tensors)
    return tensors


class _Refused(pickle.UnpicklingError):
    """The pickle asked for something that is not needed to describe tensors."""


class _Unpickler(pickle.Unpickler):
    """Knows the handful of names that such an archive needs, and refuses all others."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str, path: str | Path) -> None:
        super().__init__(file)
        self.archive, self.root, self.path = archive, root, path

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch.jit._pickle", "build_intlist"): list,
            ("torch.jit._pickle", "build_doublelist"): list,
            ("torch.jit._pickle", "build_boollist"): list,
            ("torch.jit._pickle", "build_tensorlist"): list,
            ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
            ("collections", "OrderedDict"): OrderedDict,
        }
        if (module, name) not in allowed:
            raise _Refused(
                f"{self.path} was refused: its pickle asks for {module}.{name}, which "
                "no file of weights needs; do not use this file"
            )
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, _ = pid
        data = self.archive.read(f"{self.root}/data/{key}")
        return (
            torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        )


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _collect(node: Any, prefix: str, tensors: dict[str, Tensor]) -> None:
    """Walk the tree of stand-ins and note every tensor attribute under its dotted name."""
    for name, value in vars(node).items() if isinstance(node, _Module) else ():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value
        elif isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", tensors)
