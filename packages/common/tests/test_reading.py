"""Every file from outside comes through one door: bounded, plain data, one sentence."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openvocab.config import load_config
from openvocab.datasets.archives import Source
from openvocab.errors import InputError, one_line, shorten_value
from openvocab.evaluation.results import unpack
from openvocab.formats.arithmetic import evaluate_arithmetic
from openvocab.formats.detectron2 import labels_of_predictions, read_predictions, read_yaml
from openvocab.formats.run_length import decode_rle, encode_rle
from openvocab.reading.json_files import parse_json, read_json_file
from openvocab.reading.pickles import read_plain_pickle
from openvocab.reading.trees import tree_size
from openvocab.reading.yaml_files import parse_yaml, read_yaml_file

CASES = Path(__file__).with_name("cases")


# --- sentences ----------------------------------------------------------------------------------


@given(st.text(max_size=200))
def test_errors_are_one_printable_line(text: str) -> None:
    message = str(InputError(f"{text}: {text!r}"))
    assert message.isprintable() and message == one_line(message)


def test_what_a_file_says_cannot_leave_the_sentence() -> None:
    assert str(InputError("a\n\x1b[2Jb\u202ec\udcff")) == r"a \x1b[2Jb\u202ec\udcff"
    assert len(str(InputError("x" * 10**6))) < 1000
    assert len(str(InputError("word " * 10**6))) < 10_000


def test_values_are_shortened() -> None:
    endless: list[object] = []
    endless.append(endless)
    for value in (endless, "x" * 10**6, list(range(10**5)), {"k": ["v" * 1000] * 1000}):
        assert len(shorten_value(value)) < 500


# --- regular files ------------------------------------------------------------------------------


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    sparse = tmp_path / "sparse.yaml"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    refused = {
        pipe: "is a pipe",
        Path("/dev/zero"): "is a device",
        tmp_path: "is a folder",
        sparse: "at most",
        tmp_path / "no.yaml": "No such file",
        tmp_path / "zero\0byte": "cannot be the name",
    }
    for path, words in refused.items():
        for read in (read_yaml_file, read_yaml, read_plain_pickle):
            if path != sparse or read is not read_plain_pickle:
                with pytest.raises(InputError, match=words):
                    read(path)
    with pytest.raises(InputError, match="is a device"):
        read_json_file("/dev/zero", "predictions")


def test_a_config_that_inherits_from_a_device_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("_BASE_: /dev/zero\nA: 1\n")
    with pytest.raises(InputError, match="is a device"):
        read_yaml(config)
    config.write_text("_BASE_: 7\n")
    with pytest.raises(InputError, match="name of a file"):
        read_yaml(config)


# --- YAML ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["laugh_runall.yaml", "laugh_san.yaml"])
def test_aliases_are_counted_before_anything_is_built(name: str) -> None:
    for read in (read_yaml_file, read_yaml):
        with pytest.raises(InputError, match="aliases and lists stand for"):
            read(CASES / name)


def test_merged_mappings_are_counted_too() -> None:
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
    with pytest.raises(InputError, match="stand for"):
        parse_yaml("\n".join(lines), "bomb")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [*a]", "contains itself"),
        ("[" * 5000 + "]" * 5000, "nested too deep"),
        ("a: " + "[" * 60 + "]" * 60, "nested 6. deep"),
        ("!!python/object/apply:os.system [true]", "constructor"),
        ("a: !!binary x", "YAML of plain data"),
        ("a: 1_" + "9" * 5000, "YAML of plain data"),
        ("\x00", "YAML of plain data"),
    ],
)
def test_yaml_that_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_yaml(text, "the file")


def test_ordinary_yaml_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("\ufeffday: 2024-01-31\nbase: &b {x: 1}\nmore: {<<: *b, y: [1.5, no, ~]}\n")
    content = {"day": "2024-01-31", "base": {"x": 1}, "more": {"x": 1, "y": [1.5, False, None]}}
    assert read_yaml_file(file) == content
    file.write_bytes(b"a: \xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        read_yaml_file(file)


@given(
    st.recursive(
        st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_sizes_are_those_of_what_is_written_out(value: object) -> None:
    def count(node: object) -> int:
        inner = list(node.values()) if isinstance(node, dict) else node
        return 1 + sum(map(count, inner)) if isinstance(inner, list) else 1

    def inside(node: object) -> tuple[int, list[object]]:
        inner = list(node.values()) if isinstance(node, dict) else node
        return 0, inner if isinstance(inner, list) else []

    assert tree_size(value, inside).nodes == count(value)
    assert tree_size([value, value], inside).nodes == 1 + 2 * count(value)


# --- arithmetic ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[max([x for x in range(10000)]) for y in range(10000)]",
        "[[z for z in range(10000)] for y in range(10000)]",
        "round(5, -1000000000)",
        "9" * 500,
        "int(1e308) ** 64",
        "(-1) ** 0.5",
    ],
)
def test_arithmetic_ends(text: str) -> None:
    with pytest.raises(InputError):
        evaluate_arithmetic(text)


# --- JSON and predictions -----------------------------------------------------------------------


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 500 + "]" * 500, "9" * 5000, "{", "nul"])
def test_json_that_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_json(text, "the file", "predictions")


def test_a_prediction_larger_than_its_image_is_refused_before_it_is_decoded() -> None:
    (entries,) = read_predictions(CASES / "bomb.json").values()
    for size, words in (((24, 32), "its image is 32x24"), (None, "more than the")):
        with pytest.raises(InputError, match=words):
            labels_of_predictions(entries, None, size)


def test_counts_that_are_a_number_are_one_sentence() -> None:
    (entries,) = read_predictions(CASES / "rle_counts_number.json").values()
    with pytest.raises(InputError, match=r"a\.png.*'counts', a string or a list"):
        labels_of_predictions(entries)


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [2, 2], "counts": [2**63, 2**63 + 4]},
        {"size": [2, 2], "counts": [[4]]},
        {"size": [2, 2], "counts": [1.5, 2.5]},
        {"size": [2.0, 2], "counts": [4]},
        {"size": ["2", "2"], "counts": [4]},
        {"size": [10**10, 10**10], "counts": []},
        {"size": [-1, -4], "counts": [4]},
        {"size": {"a": 1}, "counts": [4]},
        {"counts": [4]},
        [],
        "text",
    ],
)
def test_masks_that_are_none(rle: object) -> None:
    with pytest.raises(InputError):
        decode_rle(rle)


def test_the_expected_size_lets_the_right_mask_through() -> None:
    mask = np.eye(3, 4) > 0
    assert np.array_equal(decode_rle(encode_rle(mask), (3, 4)), mask)
    with pytest.raises(InputError, match="4x3, but its image is 3x4"):
        decode_rle(encode_rle(mask), (4, 3))


@pytest.mark.parametrize(
    "entry",
    [
        {"file_name": 1, "category_id": 1, "segmentation": {}},
        {"file_name": "a", "category_id": "1", "segmentation": {}},
        {"file_name": "a", "category_id": True, "segmentation": {}},
        {"file_name": "a"},
        7,
    ],
)
def test_predictions_of_another_form(tmp_path: Path, entry: object) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps([entry]))
    with pytest.raises(InputError, match="entry 0"):
        read_predictions(file)


def test_packed_counts_of_another_shape_are_not_unpacked() -> None:
    with pytest.raises(InputError, match="have shape"):
        unpack({"shape": [10**9, 10**9], "data": ""}, (2, 3))


# --- pickles ------------------------------------------------------------------------------------


def test_a_pickle_gets_no_array_type() -> None:
    """Its state would turn bytes of the file into pointers."""
    with pytest.raises(InputError, match="refused: it asks for arrays of type 'V8'"):
        read_plain_pickle(CASES / "evil_index.pkl")


DTYPE = b"cnumpy\ndtype\n"
STATE = b"(I3\nS'|'\nNNNI-1\nI-1\nI63\ntb."
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
HOSTILE = {
    "object type": DTYPE + b"(S'O8'\nI00\nI01\ntR" + STATE,
    "type with fields": DTYPE + b"(S'V16'\nI00\nI01\ntR" + STATE,
    "inner types": DTYPE + b"(S'f4'\nI00\nI01\ntR(I3\nS'<'\n(S'f4'\n(I9\nttNNI-1\nI-1\nI0\ntb.",
    "a type of types": DTYPE + b"((lp0\n(S'a'\nS'O8'\ntatR.",
    "a date": DTYPE + b"(S'M8'\nI00\nI01\ntR" + STATE,
    "too few bytes": ARRAY + b"(I1\n(I1000000\nt" + DTYPE + b"(S'f8'\nI00\nI01\ntRI00\nS'x'\ntb.",
    "negative sides": ARRAY + b"(I1\n(I-1\nI-8\nt" + DTYPE + b"(S'i1'\ntRI00\nS'xxxxxxxx'\ntb.",
    "state of a class": b"cnumpy\ndtype\n(dS'shape'\nI1\nsb.",
    "a second call": b"cnumpy\ndtype\n(S'f4'\ntR(S'f4'\ntR.",
    "a long frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "a huge byte array": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "a huge integer": b"\x80\x02\x8a\xff" + b"\x01" * 255 + b".",
    "a byte array of a number": b"cbuiltins\nbytearray\n(I1099511627776\ntR.",
    "an extension": b"\x80\x02\x82\x01.",
    "a function": b"cos\nsystem\n(S'true'\ntR.",
    "an old instance": b"(S'true'\nios\nsystem\n.",
    "deep": b"(" * 200 + b"t" * 200 + b".",
    "itself": b"(lp0\ng0\na.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_one_sentence(tmp_path: Path, name: str) -> None:
    file = tmp_path / "index.pkl"
    file.write_bytes(HOSTILE[name])
    with pytest.raises(InputError, match=r"index\.pkl"):
        read_plain_pickle(file)


def test_a_far_place_in_the_memo_costs_nothing(tmp_path: Path) -> None:
    """Python's unpickler in C makes room for all places before it: 16 GiB."""
    file = tmp_path / "index.pkl"
    file.write_bytes(b"\x80\x02]r\xff\xff\xff\x7f.")
    assert read_plain_pickle(file) == []


def test_a_pickle_that_repeats_its_parts_is_refused(tmp_path: Path) -> None:
    value: object = ["x"] * 9
    for _ in range(12):
        value = [value] * 9
    file = tmp_path / "laugh.pkl"
    file.write_bytes(pickle.dumps(value))
    with pytest.raises(InputError, match="stand for"):
        read_plain_pickle(file)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_data_comes_through_as_it_was(tmp_path: Path, protocol: int) -> None:
    arrays = [
        np.arange(6).astype(code).reshape(2, 3).T for code in ("<f4", ">f8", "<i2", "u1", "?", "c8")
    ]
    content: dict[str, Any] = {
        "arrays": [*arrays, np.array(["a", "bcd"]), np.zeros((0, 4)), np.array(3.5)],
        "scalars": [np.float64(2.5), np.int8(-3), np.bool_(True)],
        "plain": [1, -(2**62), 2.5, None, True, "ü", b"\x00\xff", bytearray(b"b"), (1, (2,)), {3}],
        "more": [frozenset("a"), complex(1, 2), b""],
    }
    file = tmp_path / "data.pkl"
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_plain_pickle(file)
    assert found["plain"] == content["plain"] and found["more"] == content["more"]
    assert found["scalars"] == content["scalars"]
    for ours, theirs in zip(found["arrays"], content["arrays"], strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype.newbyteorder("=") == theirs.dtype.newbyteorder("=")


# --- archives -----------------------------------------------------------------------------------


def archive_of(path: Path, kind: str, name: str, content: bytes) -> None:
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr(name, content)
        return
    with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar"])
def test_archives_that_unpack_to_much_more_or_elsewhere_are_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openvocab.datasets.archives._SMALL", 1 << 20)
    source = tmp_path / "source"
    source.mkdir()
    archive_of(source / f"data.{kind}", kind, "data/a.txt", b"fine")
    assert Source(source, tmp_path / "out", ("data",)).path("data/a.txt").read_bytes() == b"fine"
    archive_of(source / f"data.{kind}", kind, "../../escaped.txt", b"hostile")
    with pytest.raises(InputError, match="refused"):
        Source(source, tmp_path / "out", ("data",))
    assert not list(tmp_path.rglob("escaped.txt"))
    if kind != "tar":
        archive_of(source / f"data.{kind}", kind, "data/zeros", bytes(1 << 23))
        with pytest.raises(InputError, match="unpack to over"):
            Source(source, tmp_path / "out", ("data",))


def test_a_config_of_dataclasses_has_the_same_door(tmp_path: Path) -> None:
    from openvocab.training.settings import RunConfig

    with pytest.raises(InputError, match="stand for"):
        load_config(RunConfig, CASES / "laugh_runall.yaml")
