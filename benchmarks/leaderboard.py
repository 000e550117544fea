"""Makes a static page of many results: one table for each data set and convention.

    python benchmarks/leaderboard.py output/results other/result.json --output site

A result is a file that an evaluation, `openvocab.score` or `run_all.py` wrote, or a folder with
such files. Only results with a protocol card are shown. In each table the protocol that most
results have is ranked; a result that differs from it in a line that decides what its mIoU means
stands below, without a rank and with that line.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.reporting.images import SCRIPT, script_hash
from benchmarks.reporting.report import render
from openvocab.cli import CommandParser, run
from openvocab.errors import InputError
from openvocab.evaluation.protocol import ProtocolCard, diff_cards
from openvocab.evaluation.results import Result
from openvocab.evaluation.stated import NOT_STATED, STATED
from openvocab.files import write_text
from openvocab.metrics.scores import CONVENTIONS, Convention

# Lines of a card that decide whether two mIoU can be ranked; others describe the method itself.
LINES = (
    "label_tree_hash", "n_images", "vocabulary_hash", "n_classes", "background", "ignore_index",
    "tta",
)  # fmt: skip
SETTINGS = ("told",)  # of the truth, in an oracle diagnosis
_NEEDED = ("data_set", "method", "label_tree_hash", "vocabulary_hash", "n_images")


@dataclass(frozen=True)
class Entry:
    """A result that can stand in a table, and the file that holds it."""

    path: Path
    result: Result

    @property
    def protocol(self) -> ProtocolCard:
        """The lines of the card that have to be the same for two results to be ranked."""
        card = self.result.card
        lines = {line: getattr(card, line) for line in LINES}
        told = {key: card.settings[key] for key in SETTINGS if key in card.settings}
        return replace(ProtocolCard(), **lines, settings=told)


def read_entries(paths: Sequence[Path]) -> tuple[list[Entry], list[tuple[Path, str]]]:
    """Read results.

    Args:
        paths: Files, or folders with files.

    Returns:
        What can be shown, and the files that cannot, each with the reason.

    Raises:
        InputError: there is no such file or folder, or no result can be shown.
    """
    entries: list[Entry] = []
    left_out: list[tuple[Path, str]] = []
    for path in dict.fromkeys(_files(paths)):
        try:
            result = Result.load(path)
        except InputError as error:
            left_out.append((path, str(error)))
            continue
        reason = _reason(result) or _twin(result, entries)
        if reason:
            left_out.append((path, reason))
        else:
            entries.append(Entry(path, result))
    if not entries:
        why = f": {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
        raise InputError(f"no result with a protocol card was found{why}")
    return entries, left_out


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Return files, and of folders the JSON files in them that could be results."""
    for path in paths:
        if path.is_dir():
            found = sorted(path.glob("*.json")) + sorted(path.glob("results/*.json"))
            others = ("comparison", "images", "missing")
            yield from (
                file
                for file in found
                if file.stem.rpartition("--")[2] not in others
                and not file.stem.startswith(("latency-", "structure-"))
            )
        elif path.is_file():
            yield path
        else:
            raise InputError(f"there is no file or folder '{path}'; give results of evaluations")


def _reason(result: Result) -> str:
    """Return why a result cannot be shown, or nothing."""
    empty = [line for line in _NEEDED if not getattr(result.card, line)]
    if empty:
        return f"its protocol card says nothing of {', '.join(empty)}"
    return "" if result.complete else "images of other processes are missing"


def _twin(result: Result, entries: Sequence[Entry]) -> str:
    same = next((one for one in entries if one.result.to_json() == result.to_json()), None)
    return f"it is the same result as {same.path}" if same else ""


def tables(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return a table for each data set and convention.

    Args:
        entries: In the order in which the results were given.
    """
    sets = dict.fromkeys((one.result.card.data_set, one.result.card.split) for one in entries)
    found = []
    for name, split in sets:
        own = [
            one
            for one in entries
            if (one.result.card.data_set, one.result.card.split) == (name, split)
        ]
        title = f"{name}, {split}" if split else name
        for convention in CONVENTIONS:
            found.append({"title": title, "convention": convention, **_table(own, convention)})
    return found


def _table(entries: Sequence[Entry], convention: Convention) -> dict[str, Any]:
    """Return the rows of a table, those of its protocol first, and the protocol."""
    protocols = [one.protocol for one in entries]
    counts = Counter(map(str, protocols))
    usual = max(protocols, key=lambda protocol: counts[str(protocol)])  # the first of those
    rows = [_row(one, convention, diff_cards(usual, one.protocol)) for one in entries]
    rows.sort(key=lambda row: (bool(row["marks"]), -row["miou"] if row["miou"] >= 0 else 1.0))
    ranked = [row for row in rows if not row["marks"]]
    for row in ranked:  # equal ones share a rank
        row["place"] = 1 + sum(other["miou"] > row["miou"] for other in ranked)
    return {"rows": rows, "images": usual.n_images, "classes": usual.n_classes}


def _row(entry: Entry, convention: Convention, marks: list[str]) -> dict[str, Any]:
    card, interval = entry.result.card, entry.result.intervals.get(convention)
    stated = {
        key.removeprefix(STATED).replace("_", " "): value
        for key, value in card.settings.items()
        if key.startswith(STATED) and value != NOT_STATED
    }
    return {
        "place": None,
        "method": card.method,
        "variant": card.variant,
        "miou": entry.result.scores(convention).miou,
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
        "weights": card.weights_sha256[:12],
        "version": card.code_version,
        "foreign": "scored" in card.settings,
        "stated": stated,
        "marks": marks,
        "file": entry.path.name,
    }


def build_leaderboard(paths: Sequence[Path], output: Path) -> Path:
    """Write index.html into a folder.

    Raises:
        InputError: see `read_entries`.
    """
    entries, left_out = read_entries(paths)
    page = {
        "tables": tables(entries),
        "left_out": left_out,
        "script": SCRIPT,
        "script_hash": script_hash(),
    }
    write_text(output / "index.html", render("leaderboard.html.jinja", page))
    return output / "index.html"


def build_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(prog="leaderboard.py", description=__doc__)
    parser.add_argument(
        "results", type=Path, nargs="+", metavar="RESULT", help="files, or folders with them"
    )
    parser.add_argument("--output", type=Path, default=Path("site"), metavar="DIR")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make the page.

    Raises:
        InputError: see `read_entries`.
    """
    args = build_parser().parse_args(argv)
    print(build_leaderboard(args.results, args.output))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
