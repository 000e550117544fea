"""Pickles of arrays, read without running what else may be in them."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openvocab.errors import InputError

# What NumPy's and torch's own pickles of arrays ask for, in all their versions.
_ARRAY_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}
_NUMPY_MODULES = tuple(
    f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "numeric")
)
# What the unpickler raises on damaged or made-up bytes.
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError),
    *(TypeError, ValueError, OverflowError, UnicodeDecodeError, MemoryError, RuntimeError),
)


class _Refused(Exception):
    """The pickle asks for something that arrays do not need."""


def read_pickled_arrays(path: Path) -> dict[str, Tensor]:
    """Read the arrays of a `.pkl` checkpoint of detectron2, Caffe2 or torchvision conversions.

    Raises:
        InputError: the file is missing, damaged, holds no arrays by name, or would have to run
            code; nothing was run.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except OSError as error:
        raise InputError(f"Cannot read the weights {path}: {error.strerror}.") from None
    except _Refused as error:
        raise InputError(
            f"{path} was refused: loading it would run {error}; a pickle of weights holds arrays "
            f"only, so get the file from its authors or save it as .safetensors."
        ) from None
    except _DAMAGE as error:
        raise InputError(f"{path} is not a readable pickle ({error}); fetch it again.") from None
    tensors = _tensors(content)
    if not tensors:
        raise InputError(f"{path} holds no arrays by name; expected {{'model': {{name: array}}}}.")
    return tensors


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAY_GLOBALS:
            return _ARRAY_GLOBALS[module, name]
        if module in _NUMPY_MODULES and name in _NUMPY_MAKERS:
            return _NUMPY_MAKERS[name]
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _storage
        raise _Refused(f"{module}.{name}")


def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes | str) -> Any:
    if kind is not np.ndarray or shape != (0,):  # NumPy fills it afterwards
        raise _Refused("the making of arrays of an unknown kind")
    return np.ndarray((0,), dtype="b")


def _scalar(dtype: np.dtype[Any], value: bytes | str) -> Any:
    data = value.encode("latin1") if isinstance(value, str) else value
    return np.frombuffer(data, dtype=dtype, count=1)[0]


def _frombuffer(
    data: bytes | bytearray, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any, *axes: Any
) -> Any:
    array = np.frombuffer(data, dtype=dtype)  # refuses objects, which could be anything
    if order == "K":  # the axes, from slow to fast
        stored = tuple(shape[axis] for axis in axes[0])
        return array.reshape(stored).transpose(np.argsort(axes[0]))
    return array.reshape(shape, order=order)


_NUMPY_MAKERS = {"_reconstruct": _reconstruct, "scalar": _scalar, "_frombuffer": _frombuffer}


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # how pickles of protocol 2 keep bytes
        raise _Refused(f"the codec {encoding!r}")
    return text.encode("latin1")


def _storage(data: bytes) -> Any:
    """Read a storage that torch saved inside the pickle, with torch's own restrictions."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensors(content: object) -> dict[str, Tensor]:
    for wrapper in ("model", "blobs", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        return {}
    found = {}
    for name, value in content.items():
        if isinstance(value, Tensor):
            found[str(name)] = value.detach()
        elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
            native = np.array(value, dtype=value.dtype.newbyteorder("="))
            found[str(name)] = torch.from_numpy(native)
    return found
