"""Label maps in MATLAB's files: as scipy wrote them, and damaged in every place."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from openvocab.errors import InputError
from openvocab.reading import mat_files
from openvocab.reading.mat_files import read_mat

TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_arrays_are_those_of_scipy(tmp_path: Path, dtype: str, compressed: bool) -> None:
    path = tmp_path / "a.mat"
    for shape in ((3, 5), (1, 1), (1, 4), (7, 0), (2, 3, 4)):
        labels = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
        others = {"note": "text", "many": np.array([[1, "a"]], object), "LabelMap": labels, "z": 1}
        scipy.io.savemat(path, others, do_compression=compressed)
        found = read_mat(path, "LabelMap")
        assert found.dtype == labels.dtype and np.array_equal(found, labels)


def test_numbers_of_the_other_order_of_bytes_are_read(tmp_path: Path) -> None:
    def part(kind: int, content: bytes) -> bytes:
        head = kind.to_bytes(4, "big") + len(content).to_bytes(4, "big")
        return head + content + bytes(-len(content) % 8)

    flags, sizes = np.array([11, 0], ">u4"), np.array([2, 2], ">i4")  # unsigned, of 16 bits
    small = (4 << 16 | 4).to_bytes(4, "big") + np.array([513, 2], ">u2").tobytes()
    for values, shape in ((np.array([[1, 256], [3, 4]], ">u2"), sizes), (None, sizes // [1, 2])):
        number = small if values is None else part(4, values.tobytes("F"))
        parts = [part(6, flags.tobytes()), part(5, shape.astype(">i4").tobytes()), part(1, b"L")]
        data = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + part(14, b"".join(parts) + number)
        (tmp_path / "a.mat").write_bytes(data)
        expected = [[513], [2]] if values is None else values
        assert np.array_equal(read_mat(tmp_path / "a.mat", "L"), expected)
        assert np.array_equal(scipy.io.loadmat(tmp_path / "a.mat")["L"], expected)


def test_what_is_no_array_of_real_numbers_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, labels = tmp_path / "a.mat", np.zeros((300, 400))
    sentence = r"a\.mat is no \.mat file with a LabelMap"
    for value in ("text", labels + 1j, {"a": 1}):
        scipy.io.savemat(path, {"LabelMap": value})
        with pytest.raises(InputError, match=sentence):
            read_mat(path, "LabelMap")
    scipy.io.savemat(path, {"Labels": labels}, do_compression=True)
    with pytest.raises(InputError, match=sentence):
        read_mat(path, "LabelMap")
    assert read_mat(path, "Labels").shape == (300, 400)
    monkeypatch.setattr(mat_files, "MOST_BYTES", 300 * 400 * 8 - 1)
    with pytest.raises(InputError, match="unpacks to more than 959999 bytes"):
        read_mat(path, "Labels")
    scipy.io.savemat(path, {"Labels": labels.astype(np.uint8)})
    with pytest.raises(InputError, match=r"it has \[300, 400\] values"):
        read_mat(path, "Labels")
    os.mkfifo(tmp_path / "b.mat")
    with pytest.raises(InputError, match="is a pipe"):
        read_mat(tmp_path / "b.mat", "LabelMap")


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_in_every_place_is_read_or_refused(tmp_path: Path, compressed: bool) -> None:
    path, random_byte = tmp_path / "a.mat", random.Random(0).randrange
    scipy.io.savemat(path, {"LabelMap": np.eye(4), "note": "x"}, do_compression=compressed)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for data in (
            whole[:place],
            whole[:place] + bytes([random_byte(256)]) + whole[place + 1 :],
            whole[:place] + b"\xff\xff\xff\xff" + whole[place + 4 :],
        ):
            path.write_bytes(data)
            try:
                read_mat(path, "LabelMap")
            except InputError as error:
                assert "\n" not in str(error)
