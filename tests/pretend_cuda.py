"""A CUDA device for machines without one: tensors that say they are there, with numbers on the CPU.

Torch's `FakeTensorMode` knows on which device a result is, and refuses an operation on tensors of
two devices as a GPU does, but its tensors hold no numbers, so that nothing that depends on them can
run. Here a tensor "on CUDA" keeps its numbers in a tensor of the CPU. Devices are still checked by
torch's own rule for fake tensors; only the numbers are added. It is also noted where the CPU would
have to wait for the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")

# What torch's own C++ code takes for the device: it would ask the driver about CUDA, and there is
# none. It treats "meta" as no CPU either, and autograd needs no stream for it.
_INSIDE = torch.device("meta")

# For the results of these the CPU waits, since it needs the numbers, or how many there are.
_WAITING = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal",
            "bincount", "_unique2", "unique_consecutive", "repeat_interleave")  # fmt: skip

# Indices and the source of a copy may be on the CPU, or on any device: the result is where the
# first argument is.
_LIKE_FIRST = ("copy_", "index", "index_put", "index_put_", "_index_put_impl_")

# Not element by element, but they take a number of the CPU too.
_WITH_NUMBERS = ("masked_fill", "masked_fill_", "fill_")


class PretendTensor(Tensor):
    """A tensor that says it is on another device; its `numbers` are on the CPU."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> PretendTensor:
        """Wrap a tensor of the CPU."""
        made: PretendTensor = Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=_INSIDE,
        )
        made.numbers = numbers
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Say that it is on CUDA."""
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """Say that it is on CUDA."""
        return True

    def tolist(self) -> Any:
        """Return the numbers, as a GPU's tensor does."""
        return self.cpu().tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None) -> Tensor:  # type: ignore[override]
        """Make a tensor beside this one; torch's C++ code would take `_INSIDE` by its word."""
        return torch.tensor(data, dtype=dtype or self.dtype, device=CUDA)

    def __getitem__(self, index: Any) -> Tensor:
        """Index; lists become indices on the device, as with a GPU."""
        return super().__getitem__(_indices(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        """Assign at an index."""
        super().__setitem__(_indices(index), value)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Show the numbers."""
        return f"PretendTensor({self.numbers!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Compute on the CPU."""
        return _compute(func, args, kwargs or {})


class _PretendMode(FakeTensorMode):
    """Makes pretend tensors where code asks for CUDA; being a fake mode, torch looks for no GPU."""

    # True would replace what torch knows of CUDA for the rest of the process.
    avoid_device_init = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


@contextmanager
def pretend_cuda() -> Iterator[list[str]]:
    """Let "cuda" be a device, and modules move there in place, as their optimizers expect.

    Yields:
        The operations so far for which the CPU would have waited.
    """
    _waits.clear()
    lifting = torch._C._only_lift_cpu_tensors()
    swapping = torch.__future__.get_swap_module_params_on_conversion()
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _PretendMode():
            yield _waits
    finally:
        torch._C._set_only_lift_cpu_tensors(lifting)
        torch.__future__.set_swap_module_params_on_conversion(swapping)


def _compute(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation on the CPU, if a GPU would; its result says where it would be."""
    device = _device_of_result(func, args, kwargs)
    if _waits_for(func, args, kwargs, device):
        _waits.append(func._schema.name.removeprefix("aten::"))
    with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
        own, named = tree_map_only(PretendTensor, lambda t: t.numbers, (args, dict(kwargs)))
        own, named = tree_map_only(torch.device, lambda _: CPU, (own, named))
        if func._schema.name in ("aten::_pin_memory", "aten::pin_memory"):  # needs a driver
            return _pin(args[0])
        result = func(*own, **named)
        if func._schema.is_mutable:  # what was changed is returned as the caller knows it
            known = {id(t.numbers): t for t in tree_leaves((args, kwargs)) if _pretends(t)}
            result = tree_map_only(Tensor, lambda t: known.get(id(t), t), result)
        if any(leaf.is_meta for leaf in tree_leaves((own, named, result)) if type(leaf) is Tensor):
            raise AssertionError(f"{func} met a tensor without numbers")
        if device.type == "cpu":
            return result
        return tree_map_only(Tensor, lambda t: t if _pretends(t) else PretendTensor(t), result)


def _device_of_result(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    """Return where the result is.

    Raises:
        RuntimeError: the tensors are on two devices; of torch's rule for fake tensors.
    """
    for device in tree_leaves((args, kwargs)):
        if isinstance(device, torch.device):
            return CUDA if device.type in (CUDA.type, _INSIDE.type) else device
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not any(map(_pretends, tensors)):
        return CPU
    name = func._schema.name.removeprefix("aten::")
    if name in _LIKE_FIRST:
        return tensors[0].device
    if func._overloadname == "other" and name == "to":
        return tensors[1].device
    # Torch's rule lets a number of the CPU join any operation; a GPU takes it only here.
    joins = torch.Tag.pointwise in func.tags or name in _WITH_NUMBERS
    with _disable_current_modes(), torch.inference_mode(False):
        sizes = [t.shape if joins else (*t.shape, 1) for t in tensors]
        shells = [
            FakeTensor(_RULE, torch.empty(size, device="meta"), t.device)
            for size, t in zip(sizes, tensors, strict=True)
        ]
    common: torch.device = FakeTensor._find_common_device(func, shells)[0]
    return common


def _waits_for(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device
) -> bool:
    """Tell whether the CPU needs what the device computes before it can go on."""
    name = func._schema.name.removeprefix("aten::")
    if name in ("to", "_to_copy", "copy_"):
        source = args[1 if name == "copy_" else 0]
        at_once = kwargs.get("non_blocking", name == "copy_" and len(args) > 2 and args[2])
        if _pretends(source):
            return device.type == "cpu"
        # A copy from memory that is not pinned waits for all that the GPU was given before.
        return device.type == "cuda" and not (at_once and hasattr(source, "pinned"))
    own = [leaf for leaf in tree_leaves(args) if _pretends(leaf)]
    if not own:
        return False
    if name.startswith("index") and name in (*_LIKE_FIRST, "index"):
        return any(index.dtype in (torch.bool, torch.uint8) for index in tree_leaves(args[1])
                   if isinstance(index, Tensor))  # fmt: skip
    return name in _WAITING


def _pin(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor of the CPU that counts as pinned."""
    copy = tensor.clone()
    copy.pinned = True  # type: ignore[attr-defined]
    return copy


def _indices(index: Any) -> Any:
    """Make tensors of lists and ranges, which torch's C++ code would put on `_INSIDE`."""
    if isinstance(index, tuple):
        return tuple(map(_indices, index))
    return torch.tensor(list(index), device=CUDA) if isinstance(index, list | range) else index


def _pretends(value: object) -> bool:
    return isinstance(value, PretendTensor)


_RULE = FakeTensorMode()
_waits: list[str] = []
