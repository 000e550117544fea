"""`python -m openvocab COMMAND ...`, which is also installed as `openvocab COMMAND ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from openvocab.cli import run_package


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of the package; see `run_package`."""
    return run_package("openvocab", argv)


if __name__ == "__main__":
    sys.exit(main())
