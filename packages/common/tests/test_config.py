from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from openvocab.config import (
    add_config_flags,
    config_to_dict,
    dump_config,
    flags_of,
    load_config,
)
from openvocab.errors import InputError


@dataclass(frozen=True)
class Optimizer:
    lr: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class Training:
    name: str = "run"
    steps: int = 10
    amp: bool = True
    sizes: tuple[int, ...] = (320, 640)
    precision: Literal["fp32", "bf16"] = "fp32"
    weights: Path | None = None
    clip: float | None = 0.01
    tags: list[str] = field(default_factory=list)
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(lr=6e-5))


@dataclass(frozen=True)
class Required:
    path: str
    limit: int | str = 3


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("steps: 20\nname: from yaml\noptimizer:\n  weight_decay: 0\n")
    config = load_config(Training, file, ["steps=30", "optimizer.betas=0.8,0.9"])
    assert (config.steps, config.name, config.amp) == (30, "from yaml", True)
    # what was not mentioned keeps the default of the outer dataclass, not of the inner one
    assert config.optimizer == Optimizer(lr=6e-5, weight_decay=0.0, betas=(0.8, 0.9))


def test_dotted_keys_in_yaml_and_mappings_as_overrides(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("optimizer.lr: 6e-4\n")  # YAML 1.1 reads 6e-4 as text
    assert load_config(Training, file).optimizer.lr == 6e-4
    assert load_config(Training, None, {"optimizer": {"lr": 1}}).optimizer.lr == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps=1e3", {"steps": 1000}),
        ("amp=no", {"amp": False}),
        ("amp=TRUE", {"amp": True}),
        ("sizes=1,2,3", {"sizes": (1, 2, 3)}),
        ("sizes=(4,)", {"sizes": (4,)}),
        ("sizes=[]", {"sizes": ()}),
        ("precision=bf16", {"precision": "bf16"}),
        ("weights=a/b.pth", {"weights": Path("a/b.pth")}),
        ("weights=none", {"weights": None}),
        ("clip=null", {"clip": None}),
        ("clip=2", {"clip": 2.0}),
        ("tags=x,y", {"tags": ["x", "y"]}),
        ("name=12", {"name": "12"}),
        ("name=a=b", {"name": "a=b"}),
    ],
)
def test_text_becomes_the_type_of_its_field(text, expected):
    config = load_config(Training, None, [text])
    ((key, value),) = expected.items()
    assert getattr(config, key) == value
    assert type(getattr(config, key)) is type(value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stepz=3"], "did you mean steps"),
        (["optimizer.lrr=3"], "did you mean optimizer.lr"),
        (["zzzzzz=3"], "known are amp, clip"),
        (["optimizer=3"], "unknown setting 'optimizer'"),
        (["steps=3.5"], "'steps' is '3.5'; expected an integer"),
        (["steps=many"], "expected an integer"),
        ({"steps": True}, "expected an integer"),
        ({"steps": 2.5}, "expected an integer"),
        (["amp=maybe"], "expected true|false"),
        (["precision=bf61"], "did you mean bf16"),
        (["optimizer.betas=1,2,3"], "expected 2 values, got 3"),
        (["sizes=1,two"], "'sizes' is 'two'"),
        ({"sizes": {"a": 1}}, "expected tuple"),
        ({"name": 3}, "expected text"),
        (["clip=wide"], "expected a number or none"),
        (["steps"], "key=value"),
    ],
)
def test_wrong_settings_are_explained(overrides, message):
    with pytest.raises(InputError) as caught:
        load_config(Training, None, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fields_without_default_need_a_value():
    with pytest.raises(InputError, match="'path' has no value"):
        load_config(Required)
    assert load_config(Required, None, ["path=x", "limit=4"]) == Required("x", 4)
    assert load_config(Required, None, ["path=x", "limit=all"]) == Required("x", "all")


@pytest.mark.parametrize(
    ("content", "message"),
    [(": [", "not YAML"), ("- 1\n", "holds a list"), ("!!python/name:os.system x", "not YAML")],
)
def test_files_that_are_no_config(tmp_path, content, message):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        load_config(Training, file)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load_config(Training, tmp_path / "no.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert load_config(Training, tmp_path / "empty.yaml") == Training()


def test_flags_of_a_parser():
    parser = argparse.ArgumentParser()
    add_config_flags(parser, Training)
    args = parser.parse_args(
        ["--steps", "7", "--amp", "false", "--optimizer.weight-decay", "0.5", "--sizes", "1", "2"]
    )
    given_flags = flags_of(args, Training)
    assert given_flags.keys() == {"steps", "amp", "optimizer.weight_decay", "sizes"}
    config = load_config(Training, None, given_flags)
    assert (config.steps, config.amp, config.sizes) == (7, False, (1, 2))
    assert config.optimizer.weight_decay == 0.5
    assert load_config(Training, None, flags_of(parser.parse_args(["--amp"]), Training)).amp
    assert flags_of(parser.parse_args([]), Training) == {}


configs = st.builds(
    Training,
    name=st.text(max_size=8) | st.sampled_from(["\x85", "\u2028", "on", "1e3", "é 面"]),
    steps=st.integers(-(10**9), 10**9),
    amp=st.booleans(),
    sizes=st.lists(st.integers(1, 999), max_size=3).map(tuple),
    precision=st.sampled_from(["fp32", "bf16"]),
    weights=st.sampled_from([None, Path("w.pth")]),
    clip=st.none() | st.floats(allow_nan=False),
    tags=st.lists(st.text(max_size=4), max_size=2),
    optimizer=st.builds(Optimizer, lr=st.floats(allow_nan=False)),
)


@given(configs)
def test_what_is_written_is_read_back(tmp_path_factory, config):
    file = tmp_path_factory.mktemp("config") / "resolved.yaml"
    dump_config(config, file)
    assert load_config(Training, file) == config
    assert yaml.safe_load(file.read_text()) == config_to_dict(config)
