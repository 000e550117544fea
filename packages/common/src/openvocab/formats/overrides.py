"""The originals' `KEY VALUE ...` at the end of a command line, checked in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openvocab.config import convert, near_matches
from openvocab.errors import InputError


def read_overrides(pairs: Sequence[str], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Return `KEY VALUE ...` as nested mappings, every value in the type of its key.

    >>> read_overrides(["MODEL.SAN.NUM_CLASSES", "7"], {"MODEL.SAN.NUM_CLASSES": int})
    {'MODEL': {'SAN': {'NUM_CLASSES': 7}}}

    Args:
        pairs: what was typed.
        kinds: the type of every key that the command understands.

    Raises:
        InputError: a key without value, one that the command does not understand (near ones are
            suggested), or a value of another type.
    """
    if len(pairs) % 2:
        raise InputError(
            f"overrides come as KEY VALUE pairs, but {pairs[-1]!r} has no value; give one"
        )
    nested: dict[str, Any] = {}
    for key, text in zip(pairs[::2], pairs[1::2], strict=True):
        if key not in kinds:
            raise InputError(
                f"the key {key!r} is unknown to this command; {near_matches(key, kinds)}"
            )
        *sections, last = key.split(".")
        node = nested
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = convert(text, kinds[key], key)
    return nested


def check_types(config: Mapping[str, Any], kinds: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return a configuration with the values of the keys in `kinds` in their types.

    Keys of a file that nothing here reads are left alone.

    Args:
        config: nested.
        kinds: the type of every key that is read.
        source: where it comes from, for errors.

    Raises:
        InputError: a value of another type, or a value where a section is expected.
    """
    checked = dict(config)
    for key, kind in kinds.items():
        *sections, last = key.split(".")
        node: Any = checked
        for section in sections:
            inner = node.get(section)
            if inner is None:
                break
            if not isinstance(inner, Mapping):
                raise InputError(f"{source}: {section!r} is {inner!r}; expected keys with values")
            node[section] = dict(inner)
            node = node[section]
        else:
            if last in node:
                try:
                    node[last] = convert(node[last], kind, key)
                except InputError as error:
                    raise InputError(f"{source}: {error}") from None
    return checked
