"""Scores of the classes that a training has seen, of those that it has not, and their mean."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from openvocab.errors import InputError
from openvocab.evaluation.results import Result
from openvocab.files import write_text
from openvocab.metrics.scores import seen_unseen
from openvocab.reading.files import read_text
from openvocab.vocabulary import Vocabulary, available_vocabularies

SEEN_FILE = "seen_unseen.json"
_MOST_BYTES = 1 << 24  # of a list of names


def add_seen_argument(group: argparse._ActionsContainer) -> None:
    """Add the option that names the seen classes."""
    group.add_argument(
        "--seen",
        metavar="NAMES",
        help="also score seen, unseen and their harmonic mean: a file with one class name that was "
        "seen in training per line, or a vocabulary such as coco-stuff-171 (default: what the "
        "checkpoint says it was trained on, if it does)",
    )


def seen_classes_of(
    names: str | None, weights: str | Path, package: str, vocabulary: Vocabulary
) -> list[int] | None:
    """Return the classes that training saw: as asked, else as the checkpoint says.

    Args:
        names: the value of `--seen`.
        weights: the checkpoint file, or "world".
        package: import name of the package whose weights "world" stands for.
        vocabulary: vocabulary of the data set.

    Returns:
        Their labels; None where nobody says, or where all or none of the classes were seen.

    Raises:
        InputError: there is no such list, none of its names is a class, or the file is damaged.
    """
    if names is not None:
        return seen_ids(names, vocabulary)
    from openvocab.weights.training_names import seen_by_training, training_names  # late: torch

    ids = seen_by_training(training_names(weights, package), vocabulary)
    return ids if 0 < len(ids) < len(vocabulary) else None


def seen_ids(names: str, vocabulary: Vocabulary) -> list[int]:
    """Return which classes of a vocabulary are in a list of seen names.

    Args:
        names: a file with one name per line, or the key of a vocabulary.
        vocabulary: vocabulary of the data set.

    Raises:
        InputError: if there is no such list, or none of its names is a class.
    """
    if Path(names).is_file():
        text = read_text(names, "list of seen names", most_bytes=_MOST_BYTES)
        seen = {line.strip() for line in text.splitlines()}
    elif names in available_vocabularies():
        seen = set(Vocabulary.load(names).names)
    else:
        raise InputError(f"--seen is {names!r}; give a file of names or a vocabulary's name")
    ids = [index for index, name in enumerate(vocabulary.names) if name.strip() in seen]
    if not ids:
        raise InputError(
            f"none of the seen names in {names} is a class of this data set; "
            "give names of this data set"
        )
    return ids


def report_seen(result: Result, seen: Sequence[int], path: Path) -> None:
    """Print the scores of seen and unseen classes, and write them as JSON."""
    scores = seen_unseen(result.matrix, seen)
    write_text(path, json.dumps({"seen": list(seen), **asdict(scores)}, indent=1) + "\n")
    print(
        f"{len(seen)} seen classes: mIoU {scores.seen_miou:.2f}, pACC {scores.seen_pacc:.2f}; "
        f"{len(result.names) - len(seen)} unseen: mIoU {scores.unseen_miou:.2f}, pACC "
        f"{scores.unseen_pacc:.2f}; harmonic mIoU {scores.harmonic_miou:.2f}"
    )
