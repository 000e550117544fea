"""Files of weights, read without running anything in them, loaded strictly, written atomically."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from openvocab.errors import InputError
from openvocab.files import atomic_path
from openvocab.reading.checkpoints import read_notes, read_tensors, state_dict_in
from openvocab.reading.json_files import parse_json

TRAINED_ON = "trained_on"  # in the metadata: the names whose masks were seen in training
METADATA = "metadata"  # of a `.pth` file: beside "model", where safetensors keeps it in its header
_TORCH = (".pth", ".pt")
_SHOWN = 4  # names of tensors in one error


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a file of weights; see `openvocab.reading.checkpoints.read_tensors`."""
    return read_tensors(path)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the text metadata of a `.safetensors` or of our `.pth`; empty where there is none.

    Raises:
        InputError: the file is missing, damaged or hostile.
    """
    return read_notes(path, METADATA)


def read_values(path: str | Path, without: Collection[str] = ()) -> dict[str, Any]:
    """Return the metadata of a file as the values that `save_state_dict` was given.

    Args:
        path: the file.
        without: keys that are left out, whatever is there.

    Raises:
        InputError: the file is missing, damaged or hostile.
    """
    return {
        key: parse_json(text, f"{key} in {path}", "a value")
        for key, text in read_metadata(path).items()
        if key not in without
    }


def metadata_text(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the values as JSON text, in the form in which files store metadata."""
    return {key: json.dumps(value) for key, value in metadata.items()}


def unwrap_state_dict(content: object, *, source: str) -> dict[str, Tensor]:
    """Find the mapping from names to tensors in a file that a training program saved.

    Raises:
        InputError: there is none.
    """
    return state_dict_in(content, source=source)


class _WithoutNormal(TorchFunctionMode):
    """Leaves tensors uninitialized where they would be filled with normally distributed numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.init.normal_, Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def unfilled() -> Iterator[None]:
    """Build modules without memory, which get their weights by `fill`.

    Not only `torch.device("meta")`: there, the first normally distributed number imports torch's
    compiler, which takes longer than loading a CLIP.
    """
    with torch.device("meta"), _WithoutNormal():
        yield


def load_strict(module: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Load a state dict whose names and shapes must be exactly the module's.

    Args:
        module: module to load into.
        state_dict: tensors by name; floats are cast to the module's dtype.
        source: description of where the tensors come from, for the error.

    Raises:
        InputError: tensors are missing, unexpected or of another shape; the message names them, and
            nothing was loaded.
    """
    check_fits(module, state_dict, source=source)
    check_finite(state_dict, source=source)
    module.load_state_dict(dict(state_dict), strict=True)


def fill(module: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Give a module that was built `unfilled` its weights, strictly and without a copy of them.

    A file that is mapped into memory stays mapped, so that a model takes no more memory than its
    weights, and processes share them. Only what has another type than the module, is not contiguous
    or overlaps an earlier tensor is copied. Buffers that no state dict holds get memory, but no
    values.

    Args:
        module: becomes the owner of the tensors.
        state_dict: names with tensors, which nobody else may change afterwards.
        source: where the tensors come from, for the error.

    Raises:
        InputError: see `load_strict`.
    """
    check_fits(module, state_dict, source=source)
    check_finite(state_dict, source=source)
    own = module.state_dict()
    tensors = {n: t.detach().to(own[n].dtype).contiguous() for n, t in state_dict.items()}
    module.load_state_dict(_disjoint(tensors), strict=True, assign=True)
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_meta:
                part._buffers[name] = torch.empty_like(buffer, device="cpu")


def _disjoint(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy contiguous tensors that overlap an earlier one, so that each has its own memory."""
    result, end = {}, 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        start = tensor.data_ptr()
        result[name] = tensor.clone() if start < end else tensor
        end = max(end, start + tensor.nbytes)
    return result


def check_fits(module: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Compare names and shapes with a module's, which may still be without memory.

    Raises:
        InputError: tensors are missing, unexpected or of another shape; the message names them.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state_dict]
    unexpected = [name for name in state_dict if name not in own]
    misshaped = [
        f"{name} is {_shape(state_dict[name])} instead of {_shape(own[name])}"
        for name in own
        if name in state_dict and state_dict[name].shape != own[name].shape
    ]
    problems = [
        f"{len(names)} {label} ({_some(names)})"
        for label, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("mis-shaped", misshaped),
        )
        if names
    ]
    if problems:
        raise InputError(
            f"{source} does not fit {type(module).__name__}: tensors {'; '.join(problems)}; "
            "use the checkpoint of this variant, or the variant of this checkpoint"
        )


def check_finite(state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Refuse weights that are not finite, since the results of such a model mean nothing.

    Raises:
        InputError: a tensor holds NaN or infinity; the message names the first one.
    """
    for name, tensor in state_dict.items():
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        if tensor.float().sum().isfinite():  # cheap, and any NaN or infinity would stay in it
            continue
        bad = int((~tensor.isfinite()).sum())
        if bad:
            raise InputError(
                f"{source} is unusable: {bad} of {tensor.numel()} values of its tensor {name} are "
                f"NaN or infinite, so its training failed or the file is damaged; take another "
                f"checkpoint"
            )


def save_state_dict(
    path: str | Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write tensors atomically: `.safetensors` with metadata, or `{"model": ...}` as `.pth`/`.pt`.

    Args:
        path: the suffix decides the format; detectron2 reads the second.
        state_dict: tensors by name.
        metadata: small values stored as JSON text beside the tensors.

    Raises:
        InputError: the suffix is another one.
        OSError: the disk is full.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in state_dict.items()}
    text = metadata_text(metadata or {})
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".safetensors":
            # Not `save_file`, whose own temporary file stays behind when its process is killed.
            temporary.write_bytes(save(_unshared(tensors), metadata=text))
        elif Path(path).suffix in _TORCH:
            with temporary.open("wb") as file:  # of a file torch passes on what the disk says
                torch.save({"model": tensors} | ({METADATA: text} if text else {}), file)
        else:
            raise InputError(f"cannot write weights to {path}: use .safetensors, .pth or .pt")


def fingerprint(state_dict: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of all names, shapes, types and values, independent of file and device."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory with an earlier one, which safetensors refuses."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return result


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
