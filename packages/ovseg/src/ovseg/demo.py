"""The original's name of `ovseg.predict`: `python -m ovseg.demo`."""

from __future__ import annotations

from ovseg.predict import build_parser, cli, main

__all__ = ["build_parser", "cli", "main"]

if __name__ == "__main__":
    cli()
