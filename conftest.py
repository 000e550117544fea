"""Options and checks that the tests of all packages share."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

pytest_plugins = ["archives"]

# Each process of pytest-xdist computes with one thread, so that they do not slow each other down.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_DEATHS = Path(__file__).parent / "tests" / "deaths.py"

# No test is timed: a busy machine must not fail one.
settings.register_profile("openvocab", deadline=None)
settings.load_profile("openvocab")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--golden-root DIR`: run the parity tests on other recordings in the same layout."""
    parser.addoption("--golden-root", default=None, help="folder of recordings to test against")


def _torch_threads() -> dict[str, str]:
    """Return an environment in which another process computes with as many threads as this one."""
    import torch

    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}


@pytest.fixture(scope="session")
def lives_of() -> Callable[[str, list[tuple[str, list[str]]]], list[int]]:
    """Run a command several times, each time with a death of `tests/deaths.py`."""

    def run(module: str, lives: list[tuple[str, list[str]]]) -> list[int]:
        finished = subprocess.run(
            [sys.executable, str(_DEATHS), module, json.dumps(lives)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=_torch_threads(),
        )
        return list(json.loads(finished.stdout))

    return run


@pytest.fixture
def check_survival(
    lives_of: Any, tmp_path: Path
) -> Callable[[str, Callable[..., list[str]]], None]:
    """Check that a training of at least four steps, killed anywhere, continues to the bit.

    It must write a checkpoint every two steps, and a line of the log for each.
    """
    import torch

    from openvocab.training.log import read_log

    def losses(folder: Path) -> list[list[float]]:
        lines = read_log(folder / "metrics.jsonl")
        assert [line["iteration"] for line in lines] == list(range(len(lines)))
        return [[v for k, v in line.items() if "loss" in k or k == "grad_norm"] for line in lines]

    def check(module: str, arguments: Callable[..., list[str]]) -> None:
        whole, killed = tmp_path / "undisturbed", tmp_path / "killed"
        resume: list[str] = arguments(killed, "--resume")
        lives: dict[str, Any] = {
            "lives undisturbed": ("nowhere", arguments(whole), 0),
            "is killed in a step": ("step", arguments(killed), -9),
            "does not write over what could go on": ("nowhere", arguments(killed), 2),
            "is killed while it writes a checkpoint": ("checkpoint", resume, -9),
            "fails without waiting for workers": ("failure", [*resume, "--run.workers", "1"], 1),
            "saves when it is asked to stop": ("preempted", [*resume, "--run.workers", "1"], 143),
            "ends well": ("nowhere", resume, 0),
        }
        ends = lives_of(module, [(death, list(argv)) for death, argv, _ in lives.values()])
        assert dict(zip(lives, ends, strict=True)) == {k: end for k, (*_, end) in lives.items()}
        assert losses(killed) == losses(whole)
        ours, theirs = (
            torch.load(folder / "model_final.pth", weights_only=True)["model"]
            for folder in (killed, whole)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
        assert not list(killed.glob(".model_*"))

    return check
