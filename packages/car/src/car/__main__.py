"""`python -m car`: list the commands that there are."""

from __future__ import annotations

import sys
from functools import partial

from openvocab.cli import list_commands, run

if __name__ == "__main__":
    sys.exit(run(partial(list_commands, "car")))
