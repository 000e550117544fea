"""The page in a browser for SAN: `python -m san.app`, see `openvocab.app`."""

from __future__ import annotations

import sys
from functools import partial

from openvocab.app.command import main
from openvocab.cli import run

if __name__ == "__main__":
    sys.exit(run(partial(main, only="san")))
