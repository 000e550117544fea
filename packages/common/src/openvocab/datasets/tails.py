"""Pairing predictions with images, by the longest common end of their paths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import TypeAlias

Parts: TypeAlias = tuple[str, ...]

_DEEPEST = 16  # folders of a path that are compared


def parts_of(name: str) -> Parts:
    r"""Return the folders and the stem of a path, whichever system wrote it.

    >>> parts_of("C:\\data\\a\\x.png")
    ('data', 'a', 'x')
    """
    windows = "\\" in name
    path = PureWindowsPath(name) if windows else PurePosixPath(name)
    found = path.with_suffix("").parts if path.name else path.parts
    return found[1:] if path.anchor else found


def match_tails(
    wanted: Mapping[str, Iterable[Parts]], offered: Mapping[str, Parts]
) -> dict[str, str]:
    """Pair wanted with offered paths, where each is the other's only best match.

    The best match has the longest common end. Where two match equally well, as those that share
    nothing but the name of a file in different folders, none is taken.

    Args:
        wanted: paths by which each wanted key may be known.
        offered: path of each offered key.

    Returns:
        The keys of what is offered by those of what is wanted.
    """
    of_wanted = _by_tail((key, parts) for key, paths in wanted.items() for parts in paths)
    of_offered = _by_tail(offered.items())
    pairs = {}
    for key, paths in wanted.items():
        best = _only_best(list(paths), of_offered)
        if best is not None and _only_best([offered[best]], of_wanted) == key:
            pairs[key] = best
    return pairs


def _by_tail(paths: Iterable[tuple[str, Parts]]) -> Mapping[Parts, set[str]]:
    found: dict[Parts, set[str]] = defaultdict(set)
    for key, parts in paths:
        for length in range(1, min(len(parts), _DEEPEST) + 1):
            found[parts[-length:]].add(key)
    return dict(found)


def _only_best(paths: Sequence[Parts], by_tail: Mapping[Parts, set[str]]) -> str | None:
    for length in range(_DEEPEST, 0, -1):
        hits = {
            key
            for parts in paths
            if len(parts) >= length
            for key in by_tail.get(parts[-length:], ())
        }
        if hits:
            return hits.pop() if len(hits) == 1 else None
    return None
