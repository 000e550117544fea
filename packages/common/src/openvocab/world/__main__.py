"""Show or write the embedded world: `python -m openvocab.world`."""

from __future__ import annotations

import sys

from openvocab.cli import run
from openvocab.world.command import main

if __name__ == "__main__":
    sys.exit(run(main))
