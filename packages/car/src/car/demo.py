"""`python -m car.demo`: the original's name for car.predict."""

from __future__ import annotations

from car.predict import build_parser, cli, main

__all__ = ["build_parser", "cli", "main"]

if __name__ == "__main__":
    cli()
