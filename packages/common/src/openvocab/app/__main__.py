"""Open the page in a browser: `python -m openvocab.app`."""

from __future__ import annotations

import sys

from openvocab.app.command import main
from openvocab.cli import run

if __name__ == "__main__":
    sys.exit(run(main))
