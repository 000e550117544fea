"""What each method does with each class: its IoU, and the names that took its pixels."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from typing import TypedDict

import numpy as np

from openvocab.evaluation.results import Result
from openvocab.metrics.scores import IntArray

TAKEN = 3  # names that are shown for each class
NO_CLASS = "no class"  # of pixels to which a method gave none


class ClassCell(TypedDict):
    """IoU of a class in percent, and what took its pixels: names with shares in 0..1."""

    iou: float | None
    taken: list[tuple[str, float]]


class ClassRow(TypedDict):
    """A class, its number of labelled pixels, and what each method does with it."""

    id: int
    name: str
    pixels: int
    cells: dict[str, ClassCell]


def class_rows(found: Mapping[str, Result]) -> list[ClassRow]:
    """Return a row for each class, in the order of the classes.

    Args:
        found: The result of each method, all of them on the same images.
    """
    first = next(iter(found.values()))
    pixels = first.matrix.sum(axis=1)
    iou = {method: result.scores().iou for method, result in found.items()}
    return [
        {
            "id": i,
            "name": name.strip(),
            "pixels": int(pixels[i]),
            "cells": {
                method: {
                    "iou": None if math.isnan(iou[method][i]) else float(iou[method][i]),
                    "taken": taken(result.matrix, i, result.names),
                }
                for method, result in found.items()
            },
        }
        for i, name in enumerate(first.names)
    ]


def taken(matrix: IntArray, index: int, names: tuple[str, ...]) -> list[tuple[str, float]]:
    """Return the names that most pixels of a class got instead of its own, at most `TAKEN`.

    Args:
        matrix: (K, K + 1) confusion matrix; its last column counts pixels without a class.
        index: Of the class, a row of the matrix.
        names: Of the K classes.

    Returns:
        Names with their shares of the class's labelled pixels in 0..1, the largest first.
    """
    row = matrix[index].copy()
    total = int(row.sum())
    row[index] = 0
    order = np.argsort(-row, kind="stable")[:TAKEN]
    said = (*(name.strip() for name in names), NO_CLASS)
    return [(said[i], int(row[i]) / total) for i in order if row[i]]


def class_csv(rows: list[ClassRow], titles: Mapping[str, str]) -> str:
    """Return the rows of all classes as comma-separated values.

    Args:
        rows: What `class_rows` returned.
        titles: The title of each method, by its key.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    methods = list(rows[0]["cells"]) if rows else []
    head = ["class", "name", "labelled pixels"]
    for method in methods:
        head.append(f"{titles[method]}: IoU, %")
        for place in range(1, TAKEN + 1):
            head += [f"{titles[method]}: taken by {place}", f"{titles[method]}: share {place}, %"]
    writer.writerow(head)
    for row in rows:
        values: list[str | int] = [row["id"], row["name"], row["pixels"]]
        for method in methods:
            cell = row["cells"][method]
            values.append("" if cell["iou"] is None else f"{cell['iou']:.4f}")
            shown = [part for name, share in cell["taken"] for part in (name, f"{100 * share:.4f}")]
            values += shown + [""] * (2 * TAKEN - len(shown))
        writer.writerow(values)
    return text.getvalue()
