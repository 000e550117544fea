"""The recipe of the world's weights, from nothing to weights that all methods load, in short."""

from __future__ import annotations

import importlib
import json
import subprocess

import pytest
from benchmarks.experiments import train_world

from openvocab.errors import InputError
from openvocab.weights.shipped import world_file

ONCE = ("--run.batch", "5", "--run.workers", "0", "--run.log-period", "1", "--run.eval-period", "0")
SHORT = {
    "clip_words": ("--steps", "2", *ONCE),
    "clip": ("--steps", "2", *ONCE),
    "san": ("--schedule.steps", "2", "--data.dataset", "world:train:5", *ONCE),
    "proposals": ("--schedule.steps", "2", "--data.dataset", "world:train:5", *ONCE),
    "pairs": ("--limit", "3"),
    "mask_clip": ("--epochs", "1", *ONCE),
    "ovseg": (),
}


@pytest.fixture
def short(monkeypatch):
    """Run the commands in this process, and only some steps of each."""
    whole, ran = train_world.recipe, []

    def recipe(output):
        stages = whole(output)
        return [
            train_world.TrainingStage(s.name, (*s.arguments, *SHORT[s.name]), s.product)
            if s.name != "ovseg"
            else s
            for s in stages
        ]

    def start(words, check):
        assert words[1] == "-m"
        ran.append(words[2])
        module = importlib.import_module(words[2])
        return subprocess.CompletedProcess(words, module.main(words[3:]))

    monkeypatch.setattr(train_world, "recipe", recipe)
    monkeypatch.setattr(subprocess, "run", start)
    return ran


def test_the_whole_recipe_runs_once_and_installs(short, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the world is drawn if nothing is cached
    output, packages = tmp_path / "run", tmp_path / "packages"
    assert train_world.main(["--output", str(output)]) == 0
    assert len(short) == len(SHORT)
    assert train_world.main(["--output", str(output)]) == 0
    assert len(short) == len(SHORT)  # nothing is done twice

    def place(package):
        folder = packages / package
        folder.mkdir(parents=True, exist_ok=True)
        return folder / "world.safetensors"

    monkeypatch.setattr(train_world, "place", place)
    monkeypatch.setattr(train_world, "world_file", place)
    monkeypatch.setattr(train_world, "LIMIT", 1 << 25)  # next to nothing equals the shipped CLIP
    assert train_world.main(["--output", str(output), "--install"]) == 0
    for package in ("openvocab.clip", "san", "ovseg"):
        record = json.loads(place(package).with_suffix(".json").read_text())
        trained = [stage for stage in record["stages"] if "seed" in stage]
        assert trained and all(stage["command"].startswith("python -m") for stage in trained)
        assert all(len(stage["losses"]["loss"]) == len(stage["iterations"]) for stage in trained)
        assert str(tmp_path) not in json.dumps(record)


def test_nothing_is_installed_before_it_is_trained(tmp_path):
    with pytest.raises(InputError, match="clip is not trained yet"):
        train_world.main(["--output", str(tmp_path), "--install"])


def test_a_failing_command_is_named(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 2)
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: failed)
    with pytest.raises(InputError, match="clip_words failed"):
        train_world.main(["--output", str(tmp_path)])


def test_show_prints_commands_that_their_parsers_take(capsys):
    assert train_world.main(["--show"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(SHORT)
    for line in lines:
        _, _, module, *words = line.split()
        importlib.import_module(module).build_parser().parse_args(words)


def test_the_packages_carry_small_weights_and_what_made_them():
    files = [world_file(package) for package in ("openvocab.clip", "san", "ovseg")]
    assert sum(file.stat().st_size for file in files) < train_world.LIMIT
    for file in files:
        stages = json.loads(file.with_suffix(".json").read_text())["stages"]
        for stage in stages:
            for values in stage.get("losses", {}).values():
                first, last = sum(values[:5]), sum(values[-5:])
                assert last <= first, stage["stage"]
