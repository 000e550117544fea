"""Settings: frozen dataclasses, filled from defaults, a YAML file and flags, in this order."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from openvocab.errors import InputError, shorten_value
from openvocab.files import write_text
from openvocab.reading.yaml_files import read_yaml_file

Config = TypeVar("Config")

_UNSET: Any = object()
_LONGEST_LITERAL = 10_000  # characters of text that spells a Python value
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def load_config(
    cls: type[Config],
    yaml_file: str | Path | None = None,
    overrides: Mapping[str, Any] | Iterable[str] = (),
) -> Config:
    """Return a config in which overrides replace the file's values, and these the defaults.

    Args:
        cls: a frozen dataclass; its fields may be dataclasses.
        yaml_file: nested keys as the fields are nested, or with dots.
        overrides: `{"key": value}` or `["key=value"]`; `optimizer.lr` is a field of a field.
            Values may be text, which is read as the type of the field.

    Raises:
        InputError: the file cannot be read, a key is unknown (near ones are suggested), a value
            does not have the type of its field, or a field without default has no value.
    """
    values: dict[str, Any] = {}
    if yaml_file is not None:
        _update(values, _flat(cls, read_yaml_file(yaml_file)), cls, source=str(yaml_file))
    if not isinstance(overrides, Mapping):
        overrides = dict(_split(text) for text in overrides)
    _update(values, _flat(cls, overrides), cls, source="the command line")
    return _build(cls, values, "")


def dump_config(config: Any, path: str | Path) -> None:
    """Write a config with every value as YAML, atomically; `load_config` reads it back."""
    write_text(path, yaml.safe_dump(config_to_dict(config), sort_keys=False))


def config_to_dict(config: Any) -> dict[str, Any]:
    """Return a config as nested dicts of values that YAML and JSON know."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def add_config_flags(parser: argparse.ArgumentParser, cls: type) -> None:
    """Add a flag for every field, nested ones as `--outer.inner`; unused flags set nothing.

    The parsed values go to `load_config` by `flags_of`.
    """
    group = parser.add_argument_group(f"settings of {cls.__name__} (over those of a YAML file)")
    for key, kind in leaf_fields(cls).items():
        options: dict[str, Any] = {"dest": key, "default": _UNSET, "metavar": _type_name(kind)}
        if kind is bool:
            options |= {"nargs": "?", "const": "true"}
        elif _is_sequence(kind):
            options |= {"nargs": "*"}
        flags = {f"--{key}", f"--{key.replace('_', '-')}"}
        group.add_argument(*sorted(flags), **options)


def flags_of(args: argparse.Namespace, cls: type) -> dict[str, Any]:
    """Return the fields of `cls` for which a flag was given, with their text."""
    given = vars(args)
    return {key: given[key] for key in leaf_fields(cls) if given.get(key, _UNSET) is not _UNSET}


def leaf_fields(cls: type) -> dict[str, Any]:
    """Return the type of every field by its dotted name, nested dataclasses opened."""
    leaves: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            leaves |= {f"{field.name}.{key}": inner for key, inner in leaf_fields(kind).items()}
        elif field.init:
            leaves[field.name] = kind
    return leaves


def near_matches(word: str, known: Iterable[str]) -> str:
    """Return the end of an error's sentence, which suggests similar known words or lists all."""
    options = sorted(known)
    near = difflib.get_close_matches(word, options, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known are {', '.join(options)}"


def _split(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise InputError(f"the setting {text!r} is not of the form key=value; give it in this form")
    return key.strip(), value.strip()


def _flat(cls: type, content: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into dotted keys, as deep as the nested dataclasses."""
    flat: dict[str, Any] = {}
    inner = {key.rpartition(".")[0] for key in leaf_fields(cls)}
    groups = {".".join(g.split(".")[: i + 1]) for g in inner if g for i in range(g.count(".") + 1)}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name in groups:
            flat |= _flat(cls, value, f"{name}.")
        else:
            flat[name] = value
    return flat


def _update(values: dict[str, Any], new: Mapping[str, Any], cls: type, source: str) -> None:
    known = leaf_fields(cls)
    for key, value in new.items():
        if key not in known:
            raise InputError(
                f"{source} has the unknown setting {key!r}; {near_matches(key, known)}"
            )
        values[key] = convert(value, known[key], key)


def _build(cls: type[Config], values: Mapping[str, Any], prefix: str) -> Config:
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        name, kind = prefix + field.name, hints[field.name]
        nested = dataclasses.is_dataclass(kind) and isinstance(kind, type)
        if nested and any(key.startswith(f"{name}.") for key in values):
            arguments[field.name] = _build_nested(field, kind, values, name)
        elif name in values:
            arguments[field.name] = values[name]
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"the setting {name!r} has no value; give one")
    return cls(**arguments)


def _build_nested(
    field: dataclasses.Field[Any], kind: type, values: Mapping[str, Any], name: str
) -> Any:
    """Change the given fields in the default of the outer dataclass, if it has one."""
    if field.default is not dataclasses.MISSING:
        base = field.default
    elif field.default_factory is not dataclasses.MISSING:
        base = field.default_factory()
    else:
        return _build(kind, values, f"{name}.")
    changes: dict[str, Any] = {}
    for inner in dataclasses.fields(base):
        key = f"{name}.{inner.name}"
        inner_kind = typing.get_type_hints(kind)[inner.name]
        if key in values:
            changes[inner.name] = values[key]
        elif any(other.startswith(f"{key}.") for other in values):
            below = dataclasses.field(default=getattr(base, inner.name))
            changes[inner.name] = _build_nested(below, inner_kind, values, key)
    return dataclasses.replace(base, **changes)


def convert(value: Any, kind: Any, key: str) -> Any:
    """Return a value as the type of its field.

    Raises:
        InputError: it has another type.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _convert_union(value, parts, key)
    if origin is Literal:
        return _convert_literal(value, parts, key)
    if _is_sequence(kind):
        return _convert_sequence(value, kind, key)
    if origin is dict or kind is dict:
        value = _literal(value)
        if isinstance(value, dict):
            return value
    elif kind is Any:
        return value
    elif kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
            return value.lower() in _TRUE
    elif kind in (int, float):
        number = _convert_number(value, kind)
        if number is not None:
            return number
    elif kind is str and isinstance(value, str):
        return value
    elif kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise InputError(f"the setting {key!r} is {shorten_value(value)}; expected {_type_name(kind)}")


def _convert_number(value: Any, kind: type) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
        # 6e-5 is text to YAML 1.1; 60000.0 and 1e5 are whole numbers to us, but 0.5 is not.
        if kind is float:
            return number
        return int(value) if isinstance(value, int | str) else _whole(number)
    except ValueError:
        return _whole(number) if kind is int and _is_number(value) else None


def _whole(number: float) -> int | None:
    return int(number) if number.is_integer() else None


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _convert_union(value: Any, parts: Sequence[Any], key: str) -> Any:
    none = type(None)
    if none in parts and (
        value is None or (isinstance(value, str) and value.lower() in ("none", "null", "~"))
    ):
        return None
    kinds = [kind for kind in parts if kind is not none]
    for kind in kinds:
        if type(value) is kind and kind is not str:
            return value
    for kind in sorted(kinds, key=lambda k: k is str):  # text fits everything: try it last
        try:
            return convert(value, kind, key)
        except InputError:
            continue
    names = " or ".join(map(_type_name, parts))
    raise InputError(f"the setting {key!r} is {shorten_value(value)}; expected {names}")


def _convert_literal(value: Any, choices: Sequence[Any], key: str) -> Any:
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return choice
    for choice in choices:
        if isinstance(value, str) and value == str(choice):
            return choice
    hint = near_matches(str(value), map(str, choices))
    raise InputError(f"the setting {key!r} is {shorten_value(value)}; {hint}")


def _convert_sequence(value: Any, kind: Any, key: str) -> Any:
    items = _items(value)
    parts = get_args(kind)
    if items is None:
        raise InputError(
            f"the setting {key!r} is {shorten_value(value)}; expected {_type_name(kind)}"
        )
    fixed = get_origin(kind) is tuple and parts and Ellipsis not in parts
    if fixed and len(items) != len(parts):
        raise InputError(
            f"the setting {key!r} is {shorten_value(value)}; expected {len(parts)} values, "
            f"got {len(items)}"
        )
    kinds = parts if fixed else [parts[0] if parts else Any] * len(items)
    converted = [convert(item, inner, key) for item, inner in zip(items, kinds, strict=True)]
    return converted if get_origin(kind) is list or kind is list else tuple(converted)


def _items(value: Any) -> list[Any] | None:
    """Return the items of a list, of its text "[1, 2]", "(1, 2)" or "1,2", or of one number."""
    if isinstance(value, str):
        if value[:1] in ("[", "("):
            value = _literal(value)
        else:
            return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list | tuple):
        return list(value)
    return [value] if isinstance(value, int | float) else None


def _literal(value: Any) -> Any:
    if not isinstance(value, str) or len(value) > _LONGEST_LITERAL:
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _is_sequence(kind: Any) -> bool:
    return get_origin(kind) in (tuple, list) or kind in (tuple, list)


def _type_name(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is type(None):
        return "none"
    if origin in (Union, types.UnionType):
        return " or ".join(map(_type_name, parts))
    if origin is Literal:
        return "|".join(map(str, parts))
    if _is_sequence(kind):
        inner = ", ".join("..." if part is Ellipsis else _type_name(part) for part in parts)
        return f"{(origin or kind).__name__}[{inner}]"
    names = {bool: "true|false", int: "an integer", float: "a number", str: "text", Path: "a path"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return config_to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
