"""What the tests of the whole project share: the page with all methods, as a user starts it."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def app_url() -> Iterator[str]:
    """Start `python -m openvocab.app` with the world's weights; at the end it stops in order."""
    if importlib.util.find_spec("gradio") is None:
        reason = 'gradio is not installed (pip install ".[app]")'
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    command = [sys.executable, "-m", "openvocab.app", "--weights", "world", "--port", "0"]
    server = subprocess.Popen(
        [*command, "--mcp"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert server.stdout is not None
    said = ""
    for line in server.stdout:
        said += line
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            break
    else:
        pytest.fail(f"the page did not start: {said}")
    yield found[0]
    server.send_signal(signal.SIGTERM)
    rest = server.communicate(timeout=600)[0]
    assert server.returncode == 0, rest
    assert "a request failed" not in rest, rest
