"""`python -m ovseg.demo`: what the original calls `python -m ovseg.predict`."""

from __future__ import annotations

from ovseg.predict import build_parser, cli, main

__all__ = ["build_parser", "cli", "main"]

if __name__ == "__main__":
    cli()
