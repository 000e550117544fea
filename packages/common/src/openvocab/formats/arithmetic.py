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
_MOST_STEPS = 200_000
_MOST_DIGITS = 30

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
        raise InputError(f"the expression has {len(text)} characters; at most {_LONGEST_TEXT}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return _plain(_Evaluation().value(tree, {}))
    except InputError as error:
        raise InputError(f"{text!r} is not arithmetic: {error}") from None
    except (SyntaxError, RecursionError, MemoryError):
        raise InputError(f"{text!r} is not an expression") from None
    except (ArithmeticError, TypeError, ValueError) as error:
        raise InputError(f"{text!r} cannot be computed: {error}") from None


class _Evaluation:
    """One computation, which ends after a number of steps whatever loops it has."""

    def __init__(self) -> None:
        self.steps = 0

    def value(self, node: ast.expr, names: Mapping[str, Any]) -> Any:
        """Return the value of a part of the expression."""
        self.steps += 1
        if self.steps > _MOST_STEPS:
            raise InputError(f"it takes more than {_MOST_STEPS} steps")
        match node:
            case ast.Constant(value=bool() | int() | float() as number):
                return _bounded(number)
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.List(elts=items):
                return [self.value(item, names) for item in items]
            case ast.Tuple(elts=items):
                return tuple(self.value(item, names) for item in items)
            case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
                return _UNARY[type(sign)](_number(self.value(operand, names)))
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
                numbers = (_number(self.value(side, names)) for side in (left, right))
                return _binary(sign, *numbers)
            case ast.Call(func=ast.Name(id=name), args=given, keywords=[]) if name in _CALLS:
                return _called(name, [_argument(self.value(item, names)) for item in given])
            case ast.ListComp(elt=element, generators=[loop]):
                return [self.value(element, inner) for inner in self.loop(loop, names)]
        raise InputError(f"{ast.unparse(node)!r} is neither a number, an operation nor a list")

    def loop(self, loop: ast.comprehension, names: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the names with the loop's variable bound to each item in turn."""
        if not isinstance(loop.target, ast.Name) or loop.ifs or loop.is_async:
            raise InputError("lists are made by one loop over one name, without conditions")
        items = self.value(loop.iter, names)
        if not isinstance(items, range | list | tuple) or len(items) > _LONGEST_LIST:
            raise InputError(f"loops run over a range or list of at most {_LONGEST_LIST} items")
        for item in items:
            yield {**names, loop.target.id: item}


def _called(name: str, given: list[Any]) -> Any:
    if name == "round" and len(given) > 1 and abs(_number(given[1])) > _MOST_DIGITS:
        raise InputError(f"it rounds to more than {_MOST_DIGITS} digits")
    result = _CALLS[name](*given)
    return _bounded(result) if isinstance(result, int | float) else result


def _binary(sign: ast.operator, left: float, right: float) -> float:
    if isinstance(sign, ast.Pow) and abs(right) > _LARGEST_EXPONENT:
        raise InputError(f"the exponent {right} is too large")
    result = _BINARY[type(sign)](left, right)
    return float(result) if isinstance(result, float) else _bounded(result)


def _bounded(number: Any) -> Any:
    if isinstance(number, complex):
        raise InputError("a number on the way is not real")
    if isinstance(number, int) and abs(number) > _LARGEST_NUMBER:
        raise InputError("a number on the way is too large")
    return number


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
