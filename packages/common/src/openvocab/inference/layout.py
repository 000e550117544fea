"""The files in a folder of results: those of each image, and those of the run as a whole."""

from __future__ import annotations

KINDS = ("label", "overlay", "json", "scores")
DEFAULT_KINDS = ("label", "overlay", "json")
ENDINGS = {
    "label": "_labels.png",
    "overlay": "_overlay.png",
    "json": ".json",
    "scores": "_scores.npz",
}
JOURNAL = ".predict.jsonl"
NAMES = "names.txt"  # name i, in line i from 0 on, belongs to the label i
SUMMARY_CSV, SUMMARY_JSON = "summary.csv", "summary.json"
