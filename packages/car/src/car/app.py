"""The page in a browser for CaR: `python -m car.app`, see `openvocab.app`."""

from __future__ import annotations

import sys
from functools import partial

from openvocab.app.command import main
from openvocab.cli import run

if __name__ == "__main__":
    sys.exit(run(partial(main, only="car")))
