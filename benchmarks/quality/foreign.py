"""Other programs in the comparison: their predictions are scored, and nothing is run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.plan import Missing, Plan
from openvocab.datasets.predictions import open_predictions
from openvocab.errors import InputError, one_line
from openvocab.evaluation.run import RESULT_FILE
from openvocab.evaluation.stated import LINES, read_stated
from openvocab.score import save_evaluation, score_images

_LONGEST = 40  # of a title in the name of a file
_ALL = ""  # no row is called so


@dataclass(frozen=True)
class Foreign:
    """Predictions of another program.

    Attributes:
        key: key of the row, in file names and figures.
        title: name of the row in print.
        path: a folder or a JSON; see `openvocab.datasets.predictions.open_predictions`.
        card: YAML of what the user states of it; None where there is none.
        offset: number that is added to the labels.
    """

    key: str
    title: str
    path: Path
    card: Path | None
    offset: int = 0


def read_foreign(
    entries: Sequence[str], cards: Sequence[str] = (), offsets: Sequence[str] = ()
) -> tuple[Foreign, ...]:
    """Read what `--predictions NAME=PATH`, `--predictions-card` and `--prediction-offset` name.

    Without a card of its own, `NAME.yaml` or the YAML beside the predictions is taken. An offset
    without a name holds for all rows that have none of their own.

    Raises:
        InputError: a form, a path or a name that cannot be meant, or two rows of one name.
    """
    given = dict(_split(entry, "--predictions-card") for entry in cards)
    shifts = _offsets(offsets)
    found: dict[str, Foreign] = {}
    for title, text in (_split(entry, "--predictions") for entry in entries):
        path, key = Path(text), _key(title)
        if not path.exists():
            raise InputError(f"there is no '{path}'; --predictions needs a folder or a JSON file")
        if key in found:
            raise InputError(f"two rows would be called {title!r}; give them different names")
        named = Path(title).name  # whatever a title is, it leads into no other folder
        beside = (path.parent / f"{named}.yaml", path.parent / f"{path.stem}.yaml")
        own = given.get(title)
        card = Path(own) if own else next((one for one in beside if _is_file(one)), None)
        if card is not None:
            read_stated(card)  # a wrong card is said before anything runs
        found[key] = Foreign(key, title, path, card, shifts.get(title, shifts[_ALL]))
    titles = {one.title for one in found.values()}
    for option, there in (("--predictions-card", set(given)), ("--prediction-offset", set(shifts))):
        for title in there - titles - {_ALL}:
            raise InputError(
                f"{option} names {title!r}, but no predictions do; use a NAME of --predictions"
            )
    return tuple(found.values())


def _offsets(entries: Sequence[str]) -> dict[str, int]:
    """Return the offset of each title, and that of all others under `_ALL`."""
    found = {_ALL: 0}
    for entry in entries:
        title, number = _split(entry, "--prediction-offset") if "=" in entry else (_ALL, entry)
        try:
            found[title] = int(number)
        except ValueError:
            raise InputError(
                f"--prediction-offset has {entry!r}; give a whole number, or NAME=N for one row"
            ) from None
    return found


def _split(entry: str, option: str) -> tuple[str, str]:
    title, sign, path = entry.rpartition("=")
    title = one_line(title).strip()
    if not sign or not path or not title:
        raise InputError(f"{option} has {entry!r}; give NAME=PATH, such as CAT-Seg=maps")
    return title, path


def _key(title: str) -> str:
    word = re.sub(r"[^a-z0-9]+", "-", title.lower())[:_LONGEST].strip("-")
    return f"foreign-{word or 'row'}"  # no method's key and no part of a result


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a title that can be the name of no file
        return False


def score_foreign(plan: Plan, name: str, foreign: Foreign) -> list[Missing]:
    """Score predictions on a data set into the folder of their row.

    Returns:
        Why that cannot be done, or nothing.
    """
    folder = plan.folder(name, foreign.key)
    (folder / RESULT_FILE).unlink(missing_ok=True)  # that of an earlier run is of other files
    try:
        stated = {} if foreign.card is None else read_stated(foreign.card)
        predictions = open_predictions(foreign.path, plan.data[name], offset=foreign.offset)
        result, records = score_images(
            predictions,
            plan.data[name],
            method=foreign.title,
            stated=stated,
            segments=True,
            limit=plan.limit,
        )
    except InputError as error:
        return [Missing(f"{foreign.title} on {name}", str(error))]
    save_evaluation(folder, result, records)
    return []


def not_stated(foreign: Foreign) -> list[Missing]:
    """Ask for the lines of the protocol card that only the user can know."""
    stated = {} if foreign.card is None else read_stated(foreign.card)
    asked = [line for line in LINES if line not in (*stated, "note")]
    place = foreign.card or foreign.path.parent / f"{foreign.path.stem}.yaml"
    sentence = f"nobody stated {', '.join(asked)}; write them as lines into {place}"
    return [Missing(f"card of {foreign.title}", sentence)] if asked else []
