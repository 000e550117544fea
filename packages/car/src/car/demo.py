"""`python -m car.demo`: the original's name for car.predict."""

from __future__ import annotations

import sys

from car.predict import build_parser, main
from openvocab.cli import run

__all__ = ["build_parser", "main"]

if __name__ == "__main__":
    sys.exit(run(main))
