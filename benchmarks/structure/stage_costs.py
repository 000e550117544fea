"""The cost of each stage of a running model, and what each CLIP layer is used for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from benchmarks.forms import TowerUse
from benchmarks.measuring import FORMULAS, FlopCounter
from openvocab.clip.model import CLIP, VisionTransformer
from openvocab.stages import Stage

REST = "rest"


@dataclass
class Spent:
    """The costs of a stage so far."""

    calls: int = 0
    seconds: float = 0.0
    flops: int = 0


@dataclass
class Meter:
    """A meter that assigns time and operations to the innermost running stage.

    Attributes:
        spent: costs by key of the stage; `REST` is what belongs to no stage.
        counter: counts operations; None measures time alone, undisturbed.
    """

    spent: dict[str, Spent]
    counter: FlopCounter | None = None
    _running: list[str] = field(default_factory=lambda: [REST])
    _since: float = field(default_factory=time.perf_counter)
    _counted: int = 0

    def book(self) -> None:
        """Assign the costs since the last call to the stage that is running."""
        now = time.perf_counter()
        spent = self.spent[self._running[-1]]
        spent.seconds += now - self._since
        if self.counter is not None:
            spent.flops += self.counter.total - self._counted
            self._counted = self.counter.total
        self._since = time.perf_counter()

    @contextmanager
    def stage(self, key: str) -> Iterator[None]:
        """Assign the costs of the block to a stage."""
        self.book()
        self._running.append(key)
        self.spent[key].calls += 1
        try:
            yield
        finally:
            self.book()
            self._running.pop()


@contextmanager
def metered(stages: tuple[Stage, ...], *, flops: bool) -> Iterator[Meter]:
    """Measure the stages while the block runs.

    Counting slows small operations down, so time is measured in a separate run.
    """
    with ExitStack() as stack:
        counter = stack.enter_context(FlopCounter()) if flops else None
        meter = Meter({stage.key: Spent() for stage in stages} | {REST: Spent()}, counter)
        for stage in stages:
            for owner, name in stage.calls:
                stack.enter_context(_replaced(owner, name, _booked(owner, name, stage.key, meter)))
        yield meter
        meter.book()


def _booked(owner: object, name: str, key: str, meter: Meter) -> Callable[..., Any]:
    original = getattr(owner, name)

    @wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with meter.stage(key):
            return original(*args, **kwargs)

    return wrapped


@contextmanager
def _replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """Set an attribute for the block, and restore it afterwards."""
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@dataclass
class TowerTrace:
    """The inputs and the changes of an image tower while it was watched.

    Attributes:
        inputs: (pictures, height, width) of every pass, in order.
        tokens: tokens that each block saw in its largest call.
        replaced: blocks, from 1, whose input tokens are not what the block before put out.
        recomposed: blocks whose queries, keys and values were used outside their own attention.
        gradients: blocks that were differentiated.
    """

    inputs: list[tuple[int, int, int]] = field(default_factory=list)
    tokens: dict[int, int] = field(default_factory=dict)
    replaced: set[int] = field(default_factory=set)
    recomposed: set[int] = field(default_factory=set)
    gradients: set[int] = field(default_factory=set)

    @property
    def pictures(self) -> int:
        """How many pictures the tower was shown."""
        return sum(count for count, _, _ in self.inputs)

    def to_json(self) -> TowerUse:
        """Return the trace as values that JSON knows."""
        sizes = sorted({(height, width) for _, height, width in self.inputs})
        return {
            "passes": len(self.inputs),
            "pictures": self.pictures,
            "input_sizes": [list(size) for size in sizes],
            "tokens": [self.tokens.get(i, 0) for i in range(1, max(self.tokens, default=0) + 1)],
            "replaced_before": sorted(self.replaced),
            "attention_recomposed": sorted(self.recomposed),
            "gradients": sorted(self.gradients),
        }


@contextmanager
def traced(clip: CLIP) -> Iterator[TowerTrace]:
    """Watch a CLIP's image tower while the block runs."""
    trace, tower = TowerTrace(), clip.visual
    with ExitStack() as stack:
        watch = _Watch(trace, tower)
        for module, hook in watch.hooks():
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        for index, block in enumerate(tower.blocks, start=1):
            own = watch.counting(index, block.attn.qkv)
            stack.enter_context(_replaced(block.attn, "qkv", own))
            stack.enter_context(_replaced(block.attn, "forward", watch.inside(block.attn.forward)))
        yield trace


class _Watch:
    """The hooks of `traced`."""

    def __init__(self, trace: TowerTrace, tower: VisionTransformer) -> None:
        self.trace, self.tower = trace, tower
        self.last: Tensor | None = None
        self.depth = 0

    def hooks(self) -> Iterator[tuple[nn.Module, Callable[..., None]]]:
        yield self.tower.conv1, self.on_patches
        yield self.tower.ln_pre, self.on_positions
        for index, block in enumerate(self.tower.blocks, start=1):
            yield block.ln_1, self.on_block(index)
            yield block, self.on_output
            yield block.mlp, self.on_mlp
            yield block.mlp.gelu, self.on_activation(index)

    def on_patches(self, module: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        images = args[0]
        self.trace.inputs.append((len(images), *images.shape[2:]))
        self.last = out.flatten(2).transpose(1, 2)

    def on_positions(self, module: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        """Compare the patches behind the positions with those of the convolution."""
        table = self.tower.positional_embedding
        tokens = args[0]
        if self.last is not None and tokens.shape[1] == len(table):  # native grid
            patches = tokens[:, 1:] - table[1:]
            if not torch.allclose(patches, self.last, atol=1e-2):
                self.trace.replaced.add(1)
        self.last = out

    def on_block(self, index: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any, out: Tensor) -> None:
            tokens, trace = args[0], self.trace
            trace.tokens[index] = max(trace.tokens.get(index, 0), tokens.shape[1])
            last = self.last
            if last is None or last is tokens or last.shape != tokens.shape:
                return
            if not torch.equal(last, tokens):
                trace.replaced.add(index)

        return hook

    def on_output(self, module: Any, args: Any, kwargs: Any, out: Any) -> None:
        self.last = out if isinstance(out, Tensor) else None

    def on_mlp(self, module: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        self.last = None  # set again behind a whole block

    def on_activation(self, index: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any, out: Tensor) -> None:
            if out.requires_grad:
                self.trace.gradients.add(index)

        return hook

    def counting(self, index: int, qkv: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            if not self.depth:
                self.trace.recomposed.add(index)
            return qkv(*args)

        return wrapped

    def inside(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.depth += 1
            try:
                return forward(*args, **kwargs)
            finally:
                self.depth -= 1

        return wrapped


class _ShapesOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Skips matrix products: their results have the right shapes but no values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, or only say what its result would look like."""
        kwargs = kwargs or {}
        if func.overloadpacket not in FORMULAS:
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        empty = partial(torch.zeros_like, device="cpu")
        return tree_map_only(Tensor, empty, func(*args, **kwargs))


@contextmanager
def kept_for_training(parameters: list[nn.Parameter]) -> Iterator[list[int]]:
    """Count the bytes that a forward pass keeps for its backward pass, without the weights.

    The pass must not depend on computed values, since only the shapes are right.

    Yields:
        A list of the sizes, one for each distinct storage.
    """
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            sizes.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _ShapesOnly():  # type: ignore[no-untyped-call]
        yield sizes
