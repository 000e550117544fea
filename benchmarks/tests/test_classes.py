"""The table of classes against a confusion matrix that is known."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from benchmarks.reporting.classes import class_csv, class_rows, taken

from openvocab.evaluation.results import ProtocolCard, Result

NAMES = ('a "quoted", name', "b", "c", "d", "absent")
MATRIX = np.array(
    [
        [50, 10, 0, 30, 0, 10],  # the last column has no class
        [0, 8, 0, 0, 0, 0],
        [1, 2, 3, 4, 5, 5],
        [0, 0, 0, 0, 0, 6],
        [0, 0, 0, 0, 0, 0],
    ]
)


def test_the_names_that_took_most_pixels_come_first() -> None:
    assert taken(MATRIX, 0, NAMES) == [("d", 0.3), ("b", 0.1), ("no class", 0.1)]
    assert taken(MATRIX, 1, NAMES) == [] and taken(MATRIX, 4, NAMES) == []
    assert [name for name, _ in taken(MATRIX, 2, NAMES)] == ["absent", "no class", "d"]
    assert taken(MATRIX, 3, NAMES) == [("no class", 1.0)]


def test_the_csv_holds_every_class_and_number() -> None:
    found = {m: Result(ProtocolCard(), NAMES, MATRIX) for m in ("one", "two")}
    rows = class_rows(found)
    read = list(csv.DictReader(io.StringIO(class_csv(rows, {"one": "One", "two": "Two, too"}))))
    assert [row["name"] for row in read] == list(NAMES)
    assert [int(row["labelled pixels"]) for row in read] == MATRIX.sum(axis=1).tolist()
    iou = found["one"].scores().iou
    for row, value in zip(read, iou, strict=True):
        assert row["Two, too: IoU, %"] == row["One: IoU, %"]
        if np.isnan(value):
            assert row["One: IoU, %"] == ""
        else:
            assert float(row["One: IoU, %"]) == pytest.approx(value, abs=1e-4)
    assert read[0]["One: taken by 1"] == "d" and float(read[0]["One: share 1, %"]) == 30
    assert read[1]["One: taken by 1"] == ""
