"""Parameters are grouped once each, and by what is trained."""

from __future__ import annotations

from torch import nn

from openvocab.stages import group_parameters


def test_every_parameter_is_in_one_part() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5))
    parts = group_parameters(model, {"0.": "first", "": "rest"}, {"0.bias", "2.weight"})
    found = {(part.title, part.trained): part.count for part in parts}
    assert found == {
        ("first", False): 6,
        ("first", True): 3,
        ("rest", False): 16 + 5,
        ("rest", True): 20,
    }
    names = [name for part in parts for name in part.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
