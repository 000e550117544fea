"""The files of a run of `run_all.py`: results as JSON, and below `runs` the logs for resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openvocab.reading.json_files import read_json_file

FORMAT = "openvocab-comparison-7"  # of what `quality/comparison.py` writes and the report reads
COSTS_FILE = "costs.json"
DIAGNOSES_FILE = "diagnoses.json"
CROPS_FILE = "crops.json"


def slug(name: str) -> str:
    """Return a data set's name as a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name).strip("-")


def run_folder(output: Path, data: str, method: str) -> Path:
    """Return the folder in which the evaluation of a method on a data set is logged."""
    return output / "runs" / slug(data) / method


def result_file(output: Path, data: str, *parts: str) -> Path:
    """Return the file of the result of a method, or of one of its diagnoses."""
    return output / "results" / f"{'--'.join((slug(data), *parts))}.json"


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file, or None if there is none."""
    return read_json_file(path, "result") if path.is_file() else None
