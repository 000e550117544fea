"""The page for all installed methods: `python -m openvocab.app`.

What computes or serves is imported only when the arguments have been read.
"""

from __future__ import annotations

import argparse
import os
import socket
import urllib.parse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

from openvocab.app.limits import Limits
from openvocab.cli import CommandParser
from openvocab.computation import add_computation_arguments, choose_device, computation_options
from openvocab.errors import InputError
from openvocab.methods import Method, available_methods, find_method
from openvocab.vocabulary import WORLD

PORT = 7860
_PATIENCE = 3.0  # seconds that a network has to answer


def main(argv: Sequence[str] | None = None, only: str | None = None) -> int:
    """Serve the page until it is told to stop.

    Args:
        argv: the arguments.
        only: key of the one method to show; None for all that are installed.

    Raises:
        InputError: an argument makes no sense, or gradio is not installed.
    """
    args = build_parser(only).parse_args(argv)
    from openvocab.app.engine import Engine
    from openvocab.app.server import serve

    methods = available_methods() if only is None else {only: find_method(only)}
    if not methods:
        raise InputError("no method is installed; install openvocab-seg, or san, ovseg or car")
    if args.max_pixels < 1:
        raise InputError(f"--max-pixels is {args.max_pixels}, expected at least 1")
    given = read_weights(args.weights, methods)
    weights = choose_weights(methods, given)
    for key, source in weights.items():
        print(f"{methods[key].title}: weights {source}")
    engine = Engine(
        methods,
        weights,
        computation_options(args) | {"device": choose_device(args.device)},
        limits=Limits(max_pixels=args.max_pixels),
    )
    return serve(engine, host=args.host, port=args.port, root_path=args.root_path, mcp=args.mcp)


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the command, for all methods or only one."""
    program = f"python -m {'openvocab' if only is None else only}.app"
    shown = "all installed methods" if only is None else find_method(only).title
    parser = CommandParser(prog=program, description=f"Serve a page in a browser for {shown}.")
    default = "default: what was published, or world if no network answers"
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="METHOD=WEIGHTS" if only is None else "WEIGHTS",
        help=f"what to load, such as san=world, or world for every method ({default})",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 for all of this machine's (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, default=PORT, help="default: %(default)s")
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=Limits.max_pixels,
        metavar="N",
        help="refuse larger pictures (default: %(default)s)",
    )
    parser.add_argument(
        "--root-path", default="", metavar="PATH", help="path of the page behind a proxy"
    )
    parser.add_argument(
        "--mcp", action="store_true", help="offer the API to language-model tools as well"
    )
    add_computation_arguments(parser)
    return parser


def read_weights(words: Sequence[str], methods: Mapping[str, Method]) -> dict[str, str]:
    """Read `METHOD=WEIGHTS`; weights without a method are for all methods.

    Raises:
        InputError: a method is unknown or given twice.
    """
    given: dict[str, str] = {}
    for word in words:
        key, equals, source = word.partition("=")
        if not equals or key not in methods:
            if equals and key.isidentifier() and len(methods) > 1:
                known = ", ".join(methods)
                raise InputError(f"--weights {word}: there is no method {key!r}, but {known}")
            targets, source = list(methods), word
        else:
            targets = [key]
        for target in targets:
            if target in given:
                raise InputError(f"--weights gives {target} twice; give it once")
            given[target] = source
    if any(not source for source in given.values()):
        raise InputError("--weights needs something behind the '='")
    return given


def choose_weights(methods: Mapping[str, Method], given: Mapping[str, str]) -> dict[str, str]:
    """Complete the weights: what a method has by default, or the world where no network answers."""
    missing = [key for key in methods if key not in given]
    online = any(methods[key].default_weights for key in missing) and network_answers()
    chosen = {}
    for key, method in methods.items():
        default = method.default_weights if online else None
        chosen[key] = given.get(key) or default or WORLD
    return chosen


def network_answers() -> bool:
    """Return whether the host that weights are fetched from can be reached at once."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    address = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = address.port or (80 if address.scheme == "http" else 443)

    def reach() -> bool:
        with socket.create_connection((address.hostname or "", port), timeout=_PATIENCE):
            return True

    asker = ThreadPoolExecutor(1)  # a name server may take longer than any time limit
    try:
        return asker.submit(reach).result(timeout=_PATIENCE)
    except (OSError, FutureTimeout):
        return False
    finally:
        asker.shutdown(wait=False)
