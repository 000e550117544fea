"""The original's name of `ovseg.predict`: `python -m ovseg.demo`."""

from __future__ import annotations

import sys

from openvocab.cli import run
from ovseg.predict import build_parser, main

__all__ = ["build_parser", "main"]

if __name__ == "__main__":
    sys.exit(run(main))
