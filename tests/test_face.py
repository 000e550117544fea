"""What a user of the library meets first: the loaders, the packages' names, the versions."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import openvocab
from openvocab.cli import commands_of, run_package
from openvocab.errors import InputError
from openvocab.world import scene

PACKAGES = ("openvocab", "san", "ovseg", "car")
LOADERS = {"san": "load_san", "ovseg": "load_ovseg", "car": "load_car"}
WORDS = {
    "weights": None,
    "config": None,
    "device": "auto",
    "precision": "fp32",
    "compile": False,
}


def python(code: str) -> str:
    """Return what a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("package", LOADERS)
def test_every_loader_takes_the_same_words(package: str) -> None:
    parameters = inspect.signature(getattr(import_module(package), LOADERS[package])).parameters
    assert {name: parameters[name].default for name in WORDS} == WORDS
    assert list(parameters)[: len(WORDS)] == list(WORDS)
    kinds = [parameter.kind for parameter in parameters.values()]
    assert kinds[0] is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert set(kinds[1:]) == {inspect.Parameter.KEYWORD_ONLY}


def test_a_method_is_loaded_by_its_name() -> None:
    segmenter = openvocab.load("san", "world", device="cpu", precision="bf16")
    found = segmenter.segment(np.zeros((64, 64, 3), np.uint8), ["dog", "grass"])
    assert found.labels.shape == (64, 64)
    assert segmenter.describe()["precision"] == "bf16"


@pytest.mark.parametrize("method", ["san", "ovseg", "car"])
def test_a_device_that_is_not_there_is_one_sentence(method: str) -> None:
    with pytest.raises(InputError, match="'cuda:99' is not available here"):
        openvocab.load(method, "world", device="cuda:99")


def test_an_unknown_method_is_one_sentence_that_lists_the_installed_ones() -> None:
    with pytest.raises(InputError, match=r"'sam'; installed are san, ovseg, car"):
        openvocab.load("sam")


def test_ovseg_has_no_weights_of_its_own() -> None:
    with pytest.raises(InputError, match=r"name an OVSeg checkpoint, or world"):
        openvocab.load("ovseg")


def test_importing_a_package_does_not_import_torch() -> None:
    code = (
        "import sys, openvocab, san, ovseg, car; "
        "print([name for name in ('torch', 'cv2', 'scipy') if name in sys.modules])"
    )
    assert python(code) == "[]\n"


@pytest.mark.parametrize("package", ["openvocab", "san", "ovseg", "car"])
def test_every_public_name_is_there_and_listed(package: str) -> None:
    module = import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None and name in dir(module)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nonsense'"):
        _ = module.nonsense


@pytest.mark.parametrize("package", ["openvocab", "san", "ovseg", "car"])
def test_all_packages_have_one_version(package: str) -> None:
    assert import_module(package).__version__ == openvocab.__version__


COMMANDS = {package: commands_of(package) for package in ("openvocab", "san", "ovseg", "car")}
# For developers: they may import torch to say hello.
PATIENT = {"openvocab.world.pretrain", "openvocab.datasets.transform_sheet"}
SLOW = ("torch", "gradio", "matplotlib", "scipy.ndimage", "scipy.io")


@pytest.mark.parametrize("package", COMMANDS)
@pytest.mark.parametrize("argument", ["--help", "--no-such-option"])
def test_help_and_typos_do_not_wait_for_torch(package: str, argument: str) -> None:
    code = f"""
import contextlib, importlib, io, sys
from openvocab.cli import run
names = {sorted(set(COMMANDS[package]) - PATIENT)!r}
for name in names:
    module = importlib.import_module(name)
    if not hasattr(module, "main"):
        module = importlib.import_module(name + ".__main__")
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = run(module.main, [{argument!r}])
        except SystemExit as stop:
            code = stop.code
    assert code == {0 if argument == "--help" else 2}, (name, code)
    if code == 0:
        assert "\\n  --version " in shown.getvalue() and "\\n  --debug " in shown.getvalue(), name
    slow = [m for m in {SLOW!r} if m in sys.modules]
    assert not slow, (name, slow)
print(len(names))
"""
    assert int(python(code)) >= 3


@pytest.mark.parametrize("package", COMMANDS)
def test_a_package_lists_its_commands(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", package], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()[2:]
    assert [line.split()[2] for line in lines] == list(COMMANDS[package])
    assert all(len(line.split()) > 5 and line.endswith(".") for line in lines)
    assert {f"{package}.predict", f"{package}.evaluate"} <= set(COMMANDS[package]) or (
        package == "openvocab"
    )


def test_every_command_tells_the_version() -> None:
    for module in ("san", "ovseg.predict", "car.demo"):
        done = subprocess.run(
            [sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True
        )
        assert done.stdout == f"openvocab-seg {openvocab.__version__}\n"


def installed_scripts() -> dict[str, str]:
    """Return the console scripts of the project, as its file names them."""
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    scripts: dict[str, str] = tomllib.loads(text)["project"]["scripts"]
    return scripts


@pytest.mark.parametrize("package", COMMANDS)
def test_each_package_is_one_console_script(package: str, capsys: pytest.CaptureFixture) -> None:
    """`san predict ...` is `python -m san.predict ...`; alone it lists what there is."""
    scripts = installed_scripts()
    assert set(scripts) == set(COMMANDS)
    module, _, name = scripts[package].partition(":")
    script = getattr(import_module(module), name)
    assert script([]) == 0
    assert (
        capsys.readouterr().out
        == subprocess.run(
            [sys.executable, "-m", package], capture_output=True, text=True, check=True
        ).stdout
    )
    with pytest.raises(SystemExit) as stop:
        script(["predict", "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m {package}.predict ")


def test_a_console_script_hands_arguments_on_and_ends_as_its_command(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    Image.fromarray(scene(3, "val").image).save(tmp_path / "photo.png")
    words = ["predict", str(tmp_path / "photo.png"), "--class-names", "road", "pig"]
    words += ["--weights", "world", "--device", "cpu", "--output"]
    assert run_package("san", [*words, str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "photo_labels.png").exists()
    assert run_package("san", ["predict", str(tmp_path / "missing.png")]) == 2
    assert capfd.readouterr().err.count("error: ") == 1
    with pytest.raises(SystemExit, match="0"):  # as a shell's user would spell it
        run_package("ovseg", ["search-ensemble", "--help"])
    assert "ovseg.search_ensemble" in capfd.readouterr().out


def test_a_command_behind_a_package_runs_it_and_an_unknown_one_is_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "san", "predict"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("error: no names are given;")
    done = subprocess.run(
        [sys.executable, "-m", "san", "foretell"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr == (
        "error: san has no command 'foretell'; its commands are app, evaluate, export, predict, "
        "train\n"
    )


@pytest.mark.parametrize("method", LOADERS)
def test_every_command_shows_its_steps(method: str, tmp_path) -> None:
    Image.fromarray(scene(3, "val").image).save(tmp_path / "photo.png")
    words = ["--weights", "world", "--input", str(tmp_path / "photo.png"), "--device", "cpu"]
    words += ["--class-names", "road", "snow", "pig", "elephant"]
    own, common = import_module(f"{method}.predict").main, import_module("openvocab.predict").main
    assert own([*words, "--output", str(tmp_path / "plain")]) == 0
    assert not list((tmp_path / "plain").glob("*_steps.png"))
    assert own([*words, "--output", str(tmp_path / "own"), "--show-steps"]) == 0
    assert (
        common(["--method", method, *words, "--output", str(tmp_path / "o"), "--show-steps"]) == 0
    )
    for folder in ("own", "o"):
        steps = Image.open(tmp_path / folder / "photo_steps.png")
        assert steps.width == 1600 and steps.height > 1000
    labels = [np.asarray(Image.open(tmp_path / f / "photo_labels.png")) for f in ("plain", "own")]
    np.testing.assert_array_equal(*labels)
