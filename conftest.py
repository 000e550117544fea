"""Options that the tests of all packages share."""

import pytest
from hypothesis import settings

# No test is timed: a busy machine must not fail one.
settings.register_profile("openvocab", deadline=None)
settings.load_profile("openvocab")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--golden-root DIR`: run the parity tests on other recordings in the same layout."""
    parser.addoption("--golden-root", default=None, help="folder of recordings to test against")
