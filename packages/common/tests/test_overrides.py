"""`KEY VALUE ...` at the end of a command line: known keys, values of their types."""

from __future__ import annotations

from typing import Any

import pytest

from openvocab.errors import InputError
from openvocab.formats.overrides import check_types, read_overrides

KINDS: dict[str, Any] = {
    "MODEL.WEIGHTS": str,
    "MODEL.SAN.NUM_CLASSES": int,
    "INPUT.MIN_SIZE_TEST": int,
    "TEST.AUG.MIN_SIZES": list[int],
    "TEST.AUG.FLIP": bool,
}


def test_values_get_the_types_of_their_keys() -> None:
    pairs = ["MODEL.WEIGHTS", "7", "INPUT.MIN_SIZE_TEST", "256", "TEST.AUG.MIN_SIZES", "(1, 2)"]
    found = read_overrides([*pairs, "TEST.AUG.FLIP", "False"], KINDS)
    assert found == {
        "MODEL": {"WEIGHTS": "7"},
        "INPUT": {"MIN_SIZE_TEST": 256},
        "TEST": {"AUG": {"MIN_SIZES": [1, 2], "FLIP": False}},
    }
    assert read_overrides([], KINDS) == {}


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (
            ["INPUT.MIN_SIZE", "1"],
            "unknown to this command; did you mean INPUT.MIN_SIZE_TEST",
        ),
        (["MODEL", "1"], "'MODEL' is unknown"),
        (["MODEL.WEIGHTS"], "'MODEL.WEIGHTS' has no value"),
        (["INPUT.MIN_SIZE_TEST", "abc"], "'INPUT.MIN_SIZE_TEST' is 'abc'; expected an integer"),
        (["INPUT.MIN_SIZE_TEST", "(1, 2)"], "expected an integer"),
        (["TEST.AUG.MIN_SIZES", "[1, 'a']"], "expected an integer"),
        (["TEST.AUG.FLIP", "2"], "expected true.false"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(pairs: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_overrides(pairs, KINDS)


def test_files_are_checked_where_they_are_read() -> None:
    file: dict[str, Any] = {"INPUT": {"MIN_SIZE_TEST": "256", "OTHER": "x"}, "SOLVER": {"LR": []}}
    assert check_types(file, KINDS, "a.yaml") == {
        "INPUT": {"MIN_SIZE_TEST": 256, "OTHER": "x"},
        "SOLVER": {"LR": []},
    }
    assert file["INPUT"]["MIN_SIZE_TEST"] == "256"  # what was given stays as it was
    with pytest.raises(InputError, match=r"a\.yaml: the setting 'INPUT\.MIN_SIZE_TEST'"):
        check_types({"INPUT": {"MIN_SIZE_TEST": []}}, KINDS, "a.yaml")
    with pytest.raises(InputError, match=r"a\.yaml: 'INPUT' is 3; expected keys with values"):
        check_types({"INPUT": 3}, KINDS, "a.yaml")
