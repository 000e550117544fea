"""Options that the tests of all packages share."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--golden-root DIR`: run the parity tests on other recordings in the same layout."""
    parser.addoption("--golden-root", default=None, help="folder of recordings to test against")
