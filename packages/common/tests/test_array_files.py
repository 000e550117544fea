"""Files of arrays: as many bytes as promised, numbers only, one sentence for everything else."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy

from openvocab.errors import InputError
from openvocab.reading import array_files
from openvocab.reading.array_files import read_array, read_arrays


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    wanted = {
        "a": np.arange(6.0).reshape(2, 3).T,
        "b": np.array([True, False]),
        "c": np.array(3, np.int64),
    }
    np.savez(tmp_path / "a.npz", **wanted)
    found = read_arrays(tmp_path / "a.npz", "cache")
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype and found[name].flags.writeable
        np.testing.assert_array_equal(found[name], array)


def claims(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return header.getvalue() + b"\0" * 16


def objects() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object))
    return file.getvalue()


@pytest.mark.parametrize(
    "content", [claims((1 << 40,)), claims((3,)), objects(), b"", b"\x93NUMPY\x09"]
)
def test_what_is_no_array_of_numbers_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(InputError, match=r"cache .*a\.npz is damaged .*delete it"):
        read_arrays(tmp_path / "a.npz", "cache")


def test_damaged_and_swelling_archives_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match="is damaged"):
        read_arrays(tmp_path / "a.npz", "cache")
    np.savez_compressed(tmp_path / "b.npz", a=np.zeros(10_000))
    monkeypatch.setattr(array_files, "MOST_BYTES", 50_000)
    with pytest.raises(InputError, match="would unpack to more than 50000 bytes"):
        read_arrays(tmp_path / "b.npz", "cache")


@pytest.mark.parametrize("damage", [slice(0, 60), slice(0, 11), slice(90, 300)])
def test_a_header_that_is_cut_or_no_text_is_one_sentence(tmp_path: Path, damage: slice) -> None:
    file = io.BytesIO()
    np.save(file, np.arange(12))
    data = bytearray(file.getvalue())
    data[damage] = b"{" * len(data[damage]) if damage.start else data[damage][:-20] + b" " * 20
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.npy is no array of NumPy"):
        read_array(tmp_path / "a.npy", "array")
