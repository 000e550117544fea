"""Functions that all commands share: exit codes, errors, the version and lists of commands.

A command ends with an exit code, and after an error with one sentence instead of a traceback.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import select
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from openvocab import __version__
from openvocab.errors import InputError, is_out_of_memory, one_line

DEBUG, VERSION = "--debug", "--version"
FAILED = 1
USAGE_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141  # as a shell says of programs that the signal ends
_RUNS = re.compile(r'^if __name__ == "__main__":', re.MULTILINE)
_OWN_CALL = re.compile(r":? *`python -m [^`]*`:?")


class CommandParser(argparse.ArgumentParser):
    """The parser of a command, whose `--help` also lists the two options that `run` reads."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.add_argument(
            VERSION,
            action="version",
            version=f"openvocab-seg {__version__}",
            help="print the version and exit",
        )
        self.add_argument(
            DEBUG,
            action="store_true",
            default=argparse.SUPPRESS,
            help="also print the traceback of an error",
        )


def run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main` and turn every way in which it can end into an exit code.

    Every command takes `--debug`, which also prints the traceback of an error, and `--version`.

    Args:
        main: takes the arguments behind the program's name, returns the code.
        argv: the arguments to hand over; None: those of the process.

    Returns:
        What `main` returns; 2 after an `InputError` or an error of the system such as a full disk;
        130 after Ctrl-C; 141 where nobody reads the output any more; 1 after a mistake of the
        program. One line on stderr says what happened, except for 141.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if VERSION in arguments:
        print(f"openvocab-seg {__version__}")
        return 0
    debug = DEBUG in arguments
    arguments = [argument for argument in arguments if argument != DEBUG]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names of files need not be text that it can encode
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = print_warning  # type: ignore[assignment]  # takes any place
            code = main(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except Exception as error:  # whatever it is, a person should not have to read a traceback
        if debug:
            traceback.print_exc()
        if isinstance(error, OSError):
            nobody_reads = _nobody_reads()
            _drop_output()  # which may be what cannot be written
            if isinstance(error, BrokenPipeError) and nobody_reads:
                return BROKEN_PIPE
        message, code = _explain(error)
        _say(f"error: {message}")
        return code


def commands_of(package: str) -> dict[str, str]:
    """Return the modules of a package that `python -m` can run, each with its purpose.

    Their files are read, not imported.
    """
    folder = Path(str(resources.files(package)))
    found = {}
    for file in sorted(Path(folder).rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        parts = file.relative_to(folder).with_suffix("").parts
        if _RUNS.search(text) and parts != ("__main__",):
            name = ".".join([package, *(part for part in parts if part != "__main__")])
            first = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
            purpose = _OWN_CALL.sub("", first).strip(" :.")
            found[name] = f"{purpose[:1].upper()}{purpose[1:]}."
    return found


def run_package(package: str, argv: Sequence[str] | None = None) -> int:
    """Run a command of a package: `package COMMAND ...` is `python -m package.COMMAND ...`.

    Without a command, or with `--help`, the commands are listed.

    Args:
        package: import name.
        argv: the command's name, in which `-` stands for `_` too, and its arguments; None: those of
            the process.

    Returns:
        The exit code; see `run`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = f"{package}.{arguments[0].replace('-', '_')}" if arguments else package
    if name not in commands_of(package):
        return run(partial(list_commands, package), arguments)
    return run(partial(_run_module, name), arguments[1:])


def _run_module(name: str, argv: Sequence[str] | None = None) -> int:
    """Run the `main` of a module, or of a package's `__main__`."""
    module = import_module(name)
    if not hasattr(module, "main"):
        module = import_module(f"{name}.__main__")
    code: int = module.main(argv)
    return code


def list_commands(package: str, argv: Sequence[str] | None) -> int:
    """Print the commands of a package, one on each line, as `python -m package` does.

    Args:
        package: import name.
        argv: nothing, or `--help`.

    Returns:
        The exit code.

    Raises:
        InputError: anything else is given.
    """
    commands = commands_of(package)
    if argv and list(argv) not in (["--help"], ["-h"]):
        raise InputError(
            f"{package} has no command {argv[0]!r}; its commands are "
            + ", ".join(name.removeprefix(f"{package}.") for name in commands)
        )
    width = max(len(name) for name in commands)
    print(f"The commands of {package} are below; each of them has --help.\n")
    for name, purpose in commands.items():
        print(f"python -m {name:<{width}}  {purpose}")
    return 0


def print_warning(message: Warning | str, *place: Any) -> None:
    """Print the text of a warning, without its line of code."""
    _say(f"warning: {message}")


def _explain(error: Exception) -> tuple[str, int]:
    """Return a sentence that describes an error, and the exit code."""
    if isinstance(error, InputError):
        return str(error), USAGE_ERROR
    if isinstance(error, OSError) and error.strerror:
        place = "" if error.filename is None else f" ('{os.fsdecode(error.filename)}')"
        return f"the system says: {error.strerror}{place}.", USAGE_ERROR
    if is_out_of_memory(error):
        return (
            "there is not enough memory; use smaller images, fewer names or --precision bf16.",
            FAILED,
        )
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"a mistake of this program ended it ({type(error).__name__}: {error}, in "
        f"{Path(frame.filename).name} line {frame.lineno}); please report it with what the same "
        f"command prints with {DEBUG} added.",
        FAILED,
    )


def _say(line: str) -> None:
    """Print one line to stderr, if anybody listens."""
    try:
        print(one_line(line), file=sys.stderr, flush=True)
    except OSError:
        pass


def _nobody_reads() -> bool:
    """Tell whether stdout is a pipe whose other end is closed."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return bool(poll.poll(0))  # errors are reported unasked
    except (OSError, ValueError, AttributeError):  # no pipe, or no poll on this system
        return True


def _drop_output() -> None:
    """Discard the output that stdout cannot write, so that Python does not complain at the end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
        except (OSError, ValueError, AttributeError):
            pass  # no stream of the system, such as that of a test
