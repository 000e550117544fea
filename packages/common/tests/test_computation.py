from __future__ import annotations

import argparse
from types import SimpleNamespace

import pytest
import torch

from openvocab.computation import (
    add_computation_arguments,
    choose_device,
    computation_options,
    dtype_of,
)
from openvocab.errors import InputError


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
@pytest.mark.parametrize("name", ["auto", None])
def test_auto_is_cuda_then_mps_then_cpu(monkeypatch, name, cuda, mps, expected) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends, "mps", SimpleNamespace(is_available=lambda: mps))
    assert choose_device(name) == expected


@pytest.mark.parametrize("name", ["auto", "cuda", None])
@pytest.mark.parametrize(
    ("rank", "expected"), [("0", "cuda"), ("1", "cuda:1"), ("2", "cuda"), ("one", "cuda")]
)
def test_each_process_of_torchrun_has_its_own_gpu(monkeypatch, name, rank, expected) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)  # there is no GPU here
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert choose_device(name) == expected


def test_a_device_that_is_there_is_taken() -> None:
    assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["cuda:99", "xpu:7"])
def test_a_device_that_is_not_there_is_one_sentence(name: str) -> None:
    with pytest.raises(InputError, match=f"device '{name}' is not available here; use auto, or"):
        choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "meta", "", "cuda:x"])
def test_a_name_of_no_device_is_one_sentence(name: str) -> None:
    with pytest.raises(InputError, match=f"device '{name}' is unknown; use auto"):
        choose_device(name)


def test_precisions() -> None:
    assert dtype_of("bf16") is torch.bfloat16
    with pytest.raises(InputError, match="'fp8' is unknown; use fp32, bf16, fp16"):
        dtype_of("fp8")


def test_the_options_of_a_command_are_those_of_a_loader() -> None:
    parser = argparse.ArgumentParser()
    add_computation_arguments(parser)
    options = computation_options(parser.parse_args([]))
    assert options == {"device": "auto", "precision": "fp32", "compile": False}
