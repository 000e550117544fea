"""YAML from outside, measured before it is built, and restricted to plain data."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from openvocab.errors import InputError
from openvocab.reading.files import DAMAGE, read_text
from openvocab.reading.trees import tree_size

MOST_BYTES = 1 << 18
MOST_NODES = 100_000
DEEPEST = 50
_TIMESTAMP, _TEXT = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:str"


class PlainLoader(yaml.SafeLoader):
    """Safe YAML of text, numbers, lists and mappings; derived loaders may add tags of data."""


def read_yaml_file(
    path: str | Path, what: str = "config", loader: type[PlainLoader] = PlainLoader
) -> dict[str, Any]:
    """Read a YAML file that holds keys with values.

    Aliases are counted as often as they are used before anything is built, so that no file costs
    more than its size promises.

    Args:
        path: a regular file.
        what: name of the kind of file for the error.
        loader: loader with the allowed tags.

    Returns:
        The keys with their values; empty for an empty file.

    Raises:
        InputError: the file cannot be read, is no YAML, or holds anything but plain data.
    """
    text = read_text(path, what, most_bytes=MOST_BYTES)
    content = parse_yaml(text, f"{path}", loader)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds a {type(content).__name__} and no keys with values; expected a {what}"
        )
    unnamed = next((key for key in content if not isinstance(key, str)), None)
    if unnamed is not None:
        raise InputError(f"{path} has the key {unnamed!r}; expected names")
    return content


def parse_yaml(text: str, source: str, loader: type[PlainLoader] = PlainLoader) -> Any:
    """Build the data of a YAML text, with the limits of `read_yaml_file`.

    Raises:
        InputError: as there.
    """
    try:
        reader = loader(text)
        node = reader.get_single_node()
        if node is None:
            return None
        _check(node)
        return reader.construct_document(node)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except RecursionError:
        raise InputError(
            f"{source} is not YAML of settings: it is nested too deep; simplify it"
        ) from None
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(
            f"{source} is not YAML of plain data: {error.problem or error.context}{line}"
        ) from None
    except (yaml.YAMLError, *DAMAGE) as error:
        raise InputError(f"{source} is not YAML of plain data: {error}") from None


def packaged_yaml(package: str, *path: str) -> Any:
    """Return the content of a YAML file that a package of ours brings along.

    Args:
        package: its import name.
        path: the file below its folder, part by part.
    """
    return parse_yaml(resources.files(package).joinpath(*path).read_text("utf-8"), path[-1])


def _check(root: yaml.Node) -> None:
    try:
        size = tree_size(root, _children)
    except InputError as error:
        raise InputError(f"the YAML was refused, because {error}") from None
    if size.nodes > MOST_NODES or size.depth > DEEPEST:
        raise InputError(
            f"the YAML was refused: its aliases and lists stand for {size.nodes} values, nested "
            f"{size.depth} deep; at most {MOST_NODES} and {DEEPEST} are read"
        )


def _children(node: yaml.Node) -> tuple[int, Iterable[yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        return 0, [part for pair in node.value for part in pair]
    if isinstance(node, yaml.SequenceNode):
        return 0, list(node.value)
    if node.tag == _TIMESTAMP:  # 2024-01-31 in a config is text
        node.tag = _TEXT
    return 0, ()
