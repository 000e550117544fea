"""Arithmetic in text, computed without running any code."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from openvocab.errors import InputError

_LONGEST_TEXT = 1000
_LONGEST_LIST = 10_000
_LARGEST_EXPONENT = 64
_LARGEST_NUMBER = 10**30

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_CALLS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "float": float,
    "int": int,
    "max": max,
    "min": min,
    "range": range,
    "round": round,
}


def evaluate_arithmetic(text: str) -> Any:
    """Compute numbers, lists and tuples of them, and list comprehensions over ranges.

    >>> evaluate_arithmetic("[int(x * 0.1 * 640) for x in range(5, 8)]")
    [320, 384, 448]

    Raises:
        InputError: the text holds anything else; nothing in it has been run.
    """
    if len(text) > _LONGEST_TEXT:
        raise InputError(f"The expression has {len(text)} characters; at most {_LONGEST_TEXT}.")
    try:
        return _plain(_value(ast.parse(text.strip(), mode="eval").body, {}))
    except InputError as error:
        raise InputError(f"{text!r} is not arithmetic: {error}.") from None
    except (SyntaxError, RecursionError, MemoryError):
        raise InputError(f"{text!r} is not an expression.") from None
    except (ArithmeticError, TypeError, ValueError) as error:
        raise InputError(f"{text!r} cannot be computed: {error}.") from None


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() as number):
            return number
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.List(elts=items):
            return [_value(item, names) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item, names) for item in items)
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
            return _UNARY[type(sign)](_number(_value(operand, names)))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            return _binary(sign, _number(_value(left, names)), _number(_value(right, names)))
        case ast.Call(func=ast.Name(id=name), args=given, keywords=[]) if name in _CALLS:
            return _CALLS[name](*(_argument(_value(item, names)) for item in given))
        case ast.ListComp(elt=element, generators=[loop]):
            return [_value(element, inner) for inner in _loop(loop, names)]
    raise InputError(f"{ast.unparse(node)!r} is neither a number, an operation nor a list")


def _binary(sign: ast.operator, left: float, right: float) -> float:
    if isinstance(sign, ast.Pow) and abs(right) > _LARGEST_EXPONENT:
        raise InputError(f"the exponent {right} is too large")
    result = _BINARY[type(sign)](left, right)
    return float(result) if isinstance(result, float) else _bounded(result)


def _bounded(number: int) -> int:
    if isinstance(number, complex) or abs(number) > _LARGEST_NUMBER:
        raise InputError("a number on the way is too large, or not real")
    return number


def _loop(loop: ast.comprehension, names: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the names with the loop's variable bound to each item in turn."""
    if not isinstance(loop.target, ast.Name) or loop.ifs or loop.is_async:
        raise InputError("lists are made by one loop over one name, without conditions")
    items = _value(loop.iter, names)
    if not isinstance(items, range | list | tuple) or len(items) > _LONGEST_LIST:
        raise InputError(f"loops run over a range or list of at most {_LONGEST_LIST} items")
    for item in items:
        yield {**names, loop.target.id: item}


def _number(value: Any) -> Any:
    if not isinstance(value, int | float):
        raise InputError(f"{value!r} is not a number")
    return value


def _argument(value: Any) -> Any:
    if isinstance(value, range) and len(value) > _LONGEST_LIST:
        raise InputError(f"{value} has more than {_LONGEST_LIST} items")
    return value


def _plain(value: Any) -> Any:
    """Return a range as the list it stands for."""
    return list(_argument(value)) if isinstance(value, range) else value
