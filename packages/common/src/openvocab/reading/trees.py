"""The size of nested data, as if every shared part were written out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from openvocab.errors import InputError


class TreeSize(NamedTuple):
    """The size of nested data.

    Args:
        nodes: the values in it, containers too, shared ones as often as they are reached.
        depth: the containers around the innermost value.
    """

    nodes: int
    depth: int


def tree_size(root: Any, inside: Callable[[Any], tuple[int, Iterable[Any]]]) -> TreeSize:
    """Measure nested data in a time that is linear in what is stored, not in what it expands to.

    Args:
        root: the outermost value.
        inside: function that returns the number of plain values directly inside a value, and the
            containers there.

    Raises:
        InputError: something contains itself.
    """
    sizes: dict[int, TreeSize] = {}
    kept: list[Any] = []  # keeps every measured value alive, so that no identity is used twice
    above: set[int] = set()
    path: list[tuple[Any, Iterator[Any]]] = []
    nodes: list[int] = []
    depth: list[int] = []

    def enter(value: Any) -> None:
        if id(value) in above:
            raise InputError("something in it contains itself")
        above.add(id(value))
        plain, containers = inside(value)
        path.append((value, iter(containers)))
        nodes.append(1 + plain)
        depth.append(0)

    enter(root)
    while True:
        value, rest = path[-1]
        inner = next(rest, path)  # `path` stands for "no more"
        if inner is path:
            path.pop()
            above.discard(id(value))
            size = TreeSize(nodes.pop(), depth.pop())
            sizes[id(value)] = size
            kept.append(value)
            if not path:
                return size
        elif id(inner) in sizes:
            size = sizes[id(inner)]
        else:
            enter(inner)
            continue
        nodes[-1] += size.nodes
        depth[-1] = max(depth[-1], size.depth + 1)


def plain_depth(value: Any) -> int:
    """Return how deep lists and mappings that share nothing are nested, such as JSON's."""
    depth, level = 0, [value]
    while level := [inner for outer in level for inner in plain_children(outer)]:
        depth += 1
    return depth


def plain_children(value: Any) -> Iterable[Any]:
    """Return the values in a list, tuple or set, the keys and values of a mapping, or nothing."""
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, Mapping):
        return (*value.keys(), *value.values())
    return ()
