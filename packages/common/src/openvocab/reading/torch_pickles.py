"""Files of `torch.save` and TorchScript: a pickle that describes tensors, and their bytes.

The pickle is read first, with stand-ins. A tensor is built only when its type, size and stride fit
into the storage that is there, so a file costs about as much memory as it has bytes.
"""

from __future__ import annotations

import io
import math
import mmap
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openvocab.errors import InputError
from openvocab.reading.arrays import Refused
from openvocab.reading.files import DAMAGE, open_regular, read_bytes, reason
from openvocab.reading.pickles import (
    DATA,
    ForeignName,
    Forgotten,
    Maker,
    Names,
    RestrictedUnpickler,
    check_size,
)
from openvocab.reading.pickles import MOST_BYTES as PICKLE_BYTES
from openvocab.reading.pickles import checked_bytes as _checked

Read = Callable[["Storage"], bytearray]
Opened = Callable[[], AbstractContextManager[Read]]

MOST_BYTES = 1 << 37
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MOST_PICKLE = 1 << 28
_MOST_AXES = 64
_MOST_SHARED = 8  # tensors may share a storage, but not claim it more often than this on average
_MOST_UNPACKED = 16  # times the size of the archive
_SMALL = _CHUNK = 1 << 24
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

_STORAGES = {
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
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
_TYPES = {
    name: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
        *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool"),
        *("complex64", "complex128"),
    )
}


@dataclass(frozen=True)
class Storage:
    """The bytes of tensors in a file.

    Attributes:
        key: name of the bytes in the file.
        dtype: type of the tensors' elements.
        count: number of elements, as the pickle says.
    """

    key: str
    dtype: torch.dtype
    count: int

    @property
    def nbytes(self) -> int:
        """The bytes that it claims."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a file describes it, as a view of a storage."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes that its elements need, each counted once."""
        return math.prod(self.size) * self.dtype.itemsize

    def problem(self) -> str | None:
        """Return why the tensor does not fit into its storage, or None."""
        if self.nbytes > self.storage.nbytes:
            return f"claims {self.nbytes} bytes, but its storage holds {self.storage.nbytes}"
        spans = ((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        end = (self.offset + sum(spans) + 1) * self.dtype.itemsize
        if 0 not in self.size and end > self.storage.nbytes:
            return f"ends at byte {end} of a storage of {self.storage.nbytes}"
        return None


class ScriptModule:
    """A stand-in for every class of a TorchScript archive; it keeps attributes and does nothing.

    Args:
        kind: the name of the class.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.attributes: dict[str, Any] = {}


class TorchPickle:
    """A pickle of tensors whose storages are elsewhere in the file.

    Attributes:
        content: saved contents, with a `StoredTensor` for each tensor.
    """

    def __init__(self, content: Any, source: str, opened: Opened) -> None:
        self.content, self.source = content, source
        self._opened = opened

    def build(self, described: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """Build the tensors, after all of them were compared with their storages.

        Raises:
            InputError: one claims what is not there; nothing was built.
        """
        for name, tensor in described.items():
            if problem := tensor.problem():
                raise InputError(
                    f"{self.source} was refused: its tensor {name} {problem}; do not use this file"
                )
        claimed = sum(tensor.nbytes for tensor in described.values())
        there = sum(s.nbytes for s in {tensor.storage for tensor in described.values()})
        if claimed > _MOST_SHARED * there + _SMALL:
            raise InputError(
                f"{self.source} was refused: its tensors claim {claimed} bytes of {there} that "
                f"they share; do not use this file"
            )
        storages: dict[tuple[str, torch.dtype], Tensor] = {}
        with _sentences(self.source), self._opened() as read:
            for storage in {tensor.storage for tensor in described.values()}:
                data = read(storage)
                storages[storage.key, storage.dtype] = (
                    torch.frombuffer(data, dtype=storage.dtype)
                    if data
                    else torch.empty(0, dtype=storage.dtype)
                )
            return {name: _view(storages, tensor) for name, tensor in described.items()}

    def whole(self) -> Any:
        """Return the content with every tensor built.

        Raises:
            InputError: as of `build`.
        """
        found = dict(_tensors_below(self.content, ""))
        return _replaced(self.content, "", self.build(found))


def open_torch_zip(path: str | Path) -> TorchPickle:
    """Read the pickle of a zip archive of `torch.save` or TorchScript.

    Raises:
        InputError: the archive is damaged, unpacks to much more than its size, or asks for more
            than tensors.
    """
    with _sentences(path), open_zip(path) as archive:
        root = root_of(archive)
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        order = f"{root}/byteorder"
        if sizes.get(order) == len(b"big") and archive.read(order) == b"big":
            raise InputError(f"{path} was written by a big-endian machine; save it on another one")
        if sizes[f"{root}/data.pkl"] > _MOST_PICKLE:
            raise InputError(
                f"{path} was refused: its pickle has over {_MOST_PICKLE} bytes; use other weights"
            )

        def storage(pid: Any) -> Storage:
            found = _storage(pid)
            there = sizes.get(f"{root}/data/{found.key}", 0)
            if there < found.nbytes:
                raise Refused(f"a storage of {found.nbytes} bytes where the file has {there}")
            return found

        data = io.BytesIO(archive.read(f"{root}/data.pkl"))
        content = _Unpickler(data, TENSORS, storage).load()
        check_size(content, str(path), len(data.getvalue()))

    @contextmanager
    def opened() -> Iterator[Read]:
        with open_zip(path) as again:
            yield lambda stored: _zip_record(again, f"{root}/data/{stored.key}", stored.nbytes)

    return TorchPickle(content, str(path), opened)


def open_torch_legacy(path: str | Path) -> TorchPickle:
    """Read the pickle of a file that torch wrote before version 1.6.

    Raises:
        InputError: the file is damaged, claims more than it has, or asks for more than tensors.
    """
    with _sentences(path), open_regular(path, "weights", most_bytes=MOST_BYTES) as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content, places = _legacy(data)
        check_size(content, str(path), len(data))

    @contextmanager
    def opened() -> Iterator[Read]:
        yield lambda stored: bytearray(data[places[stored.key]])

    return TorchPickle(content, str(path), opened)


def open_pickle(path: str | Path) -> TorchPickle:
    """Read a pickle of arrays or tensors, as detectron2, Caffe2 and conversions write them.

    Raises:
        InputError: the file is damaged, or asks for more than arrays.
    """
    inline: dict[str, bytes] = {}

    def from_bytes(data: Any) -> Storage:
        """Read a storage that torch saved inside the pickle."""
        content, places = _legacy(io.BytesIO(_checked(data)))
        if not isinstance(content, Storage):
            raise Refused("a storage that is none")
        key = str(len(inline))
        inline[key] = data[places[content.key]]
        return replace(content, key=key)

    names = {**TENSORS, ("torch.storage", "_load_from_bytes"): Maker(from_bytes)}
    data = read_bytes(path, "weights", most_bytes=PICKLE_BYTES)
    with _sentences(path):
        content = _Unpickler(io.BytesIO(data), names, _no_storage).load()
        check_size(content, str(path), len(data))

    @contextmanager
    def opened() -> Iterator[Read]:
        yield lambda stored: bytearray(inline[stored.key])

    return TorchPickle(content, str(path), opened)


@contextmanager
def open_zip(path: str | Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive of weights, unless it unpacks to much more than its size.

    Raises:
        InputError: the archive unpacks to much more than its size, or packs with anything but
            deflate.
    """
    with open_regular(path, "weights", most_bytes=MOST_BYTES) as file:
        size = file.seek(0, io.SEEK_END)
        with zipfile.ZipFile(file) as archive:
            total = sum(info.file_size for info in archive.infolist())
            if total > _MOST_UNPACKED * size + _SMALL:
                raise InputError(
                    f"{path} was refused: its {size} bytes unpack to {total}; weights never shrink "
                    f"so far, so do not use this file"
                )
            if any(info.compress_type not in _PACKINGS for info in archive.infolist()):
                raise InputError(f"{path} is packed as torch never does; save its weights again")
            yield archive


def root_of(archive: zipfile.ZipFile) -> str:
    """Return the folder in an archive that contains all other files of torch."""
    for name in archive.namelist():
        if name.count("/") == 1 and name.endswith("/data.pkl"):
            return name.removesuffix("/data.pkl")
    raise KeyError("there is no data.pkl in it")


class _Unpickler(RestrictedUnpickler):
    """Knows what torch and TorchScript need to describe tensors."""

    def __init__(self, data: Any, names: Names, storage: Callable[[Any], Storage]) -> None:
        super().__init__(data, names)
        self.storage = storage

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage that a persistent id describes."""
        return self.storage(pid)

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a name; classes of TorchScript keep their attributes."""
        if module.split(".")[0] == "__torch__":
            kind = f"{module}.{name}"
            return Maker(lambda *_: ScriptModule(kind))
        if module.split(".")[0] in _HARMLESS and re.fullmatch(r"[A-Z]\w*", name):
            return Maker(lambda *_: Forgotten())
        return super().find_class(module, name)

    def fill(self, value: Any, state: Any) -> None:
        """Take the attributes of TorchScript's modules."""
        if isinstance(value, ScriptModule):
            if not isinstance(state, dict):
                raise Refused("a module without attributes")
            value.attributes |= {str(name): inner for name, inner in state.items()}
        elif not isinstance(value, StoredTensor):  # attributes of tensors do not matter
            super().fill(value, state)


def _storage(pid: Any) -> Storage:
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
        raise Refused("a storage of an unknown kind")
    _, dtype, key, _, count = pid[:5]
    if not isinstance(dtype, torch.dtype) or type(count) is not int or count < 0:
        raise Refused("a storage of an unknown type")
    return Storage(str(key), dtype, count)


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> StoredTensor:
    return _rebuild_typed(storage, offset, size, stride, getattr(storage, "dtype", None))


def _rebuild_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> StoredTensor:
    return _rebuild_typed(storage, offset, size, stride, dtype)


def _rebuild_typed(storage: Any, offset: Any, size: Any, stride: Any, dtype: Any) -> StoredTensor:
    numbers = (offset, *size, *stride)
    if not all(type(n) is int and n >= 0 for n in numbers) or not len(size) == len(stride):
        raise Refused("a tensor of an impossible size")
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise Refused("a tensor without a storage")
    if len(size) > _MOST_AXES:
        raise Refused(f"a tensor of {len(size)} axes")
    return StoredTensor(storage, dtype, offset, tuple(size), tuple(stride))


def _rebuild_from_type(maker: Any, kind: Any, arguments: Any, state: Any) -> Any:
    if not isinstance(maker, Maker) or not isinstance(arguments, tuple):
        raise Refused("a tensor of an unknown kind")
    return maker.make(*arguments)


def _first(value: Any, *_: Any) -> Any:
    return value


def _list(items: Any = ()) -> list[Any]:
    if not isinstance(items, list | tuple):
        raise Refused("a list made from a value")
    return list(items)


# Classes of these libraries lie in checkpoints beside the weights; they become `Forgotten`.
_HARMLESS = frozenset(
    (
        *("argparse", "pathlib", "omegaconf", "typing", "yacs", "easydict", "addict"),
        *("pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities"),
    )
)

TENSORS: dict[tuple[str, str], Any] = {
    **DATA,
    **{("torch", name): dtype for name, dtype in (_STORAGES | _TYPES).items()},
    ("torch.storage", "UntypedStorage"): torch.uint8,
    ("torch", "Size"): Maker(lambda sides=(): tuple(_list(sides))),
    ("torch", "device"): Maker(lambda *name: ":".join(map(str, name))),
    ("torch", "Tensor"): "Tensor",
    ("torch.nn.parameter", "Parameter"): "Parameter",
    ("torch._utils", "_rebuild_tensor"): Maker(_rebuild),
    ("torch._utils", "_rebuild_tensor_v2"): Maker(_rebuild),
    ("torch._utils", "_rebuild_tensor_v3"): Maker(_rebuild_v3),
    ("torch._utils", "_rebuild_parameter"): Maker(_first),
    ("torch._utils", "_rebuild_parameter_with_state"): Maker(_first),
    ("torch._tensor", "_rebuild_from_type_v2"): Maker(_rebuild_from_type),
    ("torch.jit._pickle", "build_intlist"): Maker(_list),
    ("torch.jit._pickle", "build_doublelist"): Maker(_list),
    ("torch.jit._pickle", "build_boollist"): Maker(_list),
    ("torch.jit._pickle", "build_tensorlist"): Maker(_list),
    ("torch.jit._pickle", "restore_type_tag"): Maker(_first),
    ("collections", "defaultdict"): Maker(lambda *_: {}),
    ("collections", "Counter"): Maker(lambda *_: {}),
    **{
        (module, n): n
        for n in ("list", "dict", "int", "float")
        for module in ("builtins", "__builtin__")
    },
}


def _zip_record(archive: zipfile.ZipFile, name: str, size: int) -> bytearray:
    data = bytearray(size)
    rest = memoryview(data)
    with archive.open(name) as record:
        while rest:
            count = record.readinto(rest[:_CHUNK])  # type: ignore[attr-defined]
            if not count:
                raise EOFError(f"the record {name} is cut short")
            rest = rest[count:]
        record.read(1)  # at its end zipfile compares the checksum
    return data


def _legacy(data: io.BytesIO | mmap.mmap) -> tuple[Any, dict[str, slice]]:
    """Read a file of torch before 1.6; return its content and the places of its storages."""
    storages: dict[str, Storage] = {}

    def storage(pid: Any) -> Storage:
        if isinstance(pid, tuple) and len(pid) > 5 and pid[5] is not None:
            raise Refused("views of storages, as torch wrote before version 0.4")
        found = _storage(pid)
        return storages.setdefault(found.key, found)

    if data.read(len(LEGACY_MAGIC)) != LEGACY_MAGIC:
        raise ValueError("it is no file of torch")
    _version, _system, content, keys = (_Unpickler(data, TENSORS, storage).load() for _ in range(4))
    places = {}
    for key in map(str, _list(keys)):
        count, start = int.from_bytes(data.read(8), "little"), data.tell()
        if key not in storages or count != storages[key].count:
            raise ValueError(f"storage {key} is not the one that is described")
        data.seek(storages[key].nbytes, io.SEEK_CUR)
        if data.tell() != start + storages[key].nbytes:
            raise EOFError(f"storage {key} is cut short")
        places[key] = slice(start, data.tell())
    end = data.seek(0, io.SEEK_END) if isinstance(data, io.BytesIO) else len(data)
    if places.keys() != storages.keys() or any(place.stop > end for place in places.values()):
        raise EOFError("it is cut short")
    return content, places


def _no_storage(pid: Any) -> Storage:
    raise Refused("a storage outside the file")


def _view(storages: Mapping[tuple[str, torch.dtype], Tensor], described: StoredTensor) -> Tensor:
    elements = storages[described.storage.key, described.storage.dtype]
    if described.dtype != elements.dtype:
        elements = elements.view(described.dtype)
    return elements.as_strided(described.size, described.stride, described.offset)


def _tensors_below(content: Any, name: str) -> Iterator[tuple[str, StoredTensor]]:
    if isinstance(content, StoredTensor):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors_below(value, f"{name}.{key}")
    elif isinstance(content, list | tuple):
        for index, value in enumerate(content):
            yield from _tensors_below(value, f"{name}.{index}")


def _replaced(content: Any, name: str, built: Mapping[str, Tensor]) -> Any:
    """Return the content with tensors in place of their descriptions."""
    if isinstance(content, StoredTensor):
        return built[name]
    if isinstance(content, Mapping):
        return {key: _replaced(value, f"{name}.{key}", built) for key, value in content.items()}
    if isinstance(content, list | tuple):
        kind = type(content)
        return kind(_replaced(v, f"{name}.{i}", built) for i, v in enumerate(content))
    return content


@contextmanager
def _sentences(path: str | Path) -> Iterator[None]:
    """Raise our own errors for a file that is hostile or damaged."""
    try:
        yield
    except ForeignName as error:
        raise InputError(
            f"{path} was refused because loading it would run code ({error}); weights hold tensors "
            f"only, so do not use this file, or have its state dict alone saved as .safetensors"
        ) from None
    except Refused as error:
        raise InputError(f"{path} was refused: it asks for {error}; do not use this file") from None
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(
            f"{path} is damaged or not a readable pickle of weights ({reason(error)}); fetch it "
            f"again"
        ) from None
