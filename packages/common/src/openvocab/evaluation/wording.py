"""How much a score depends on the list of names: distractors, paraphrases, templates, absent names.

Each wording is an evaluation of its own, with a folder, a protocol card and a log, so that a run
that was killed goes on where it stopped. What the wording changes is the paired difference from the
wording of the data set, on the same images.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import openvocab
from openvocab.clip.template_sets import load_templates
from openvocab.datasets.samples import SampleSet
from openvocab.errors import InputError
from openvocab.evaluation.log import ImageRecord, read_records
from openvocab.evaluation.results import Result
from openvocab.evaluation.run import evaluate_set
from openvocab.evaluation.variations import OWN, Part, Study, Variation, WordedSegmenter
from openvocab.files import write_text
from openvocab.metrics.bootstrap import Interval, paired_difference, share_interval
from openvocab.segmenter import Segmenter

FORMAT = "openvocab-wording-1"
WORDING_FILE = "wording.json"
PARTS: tuple[Part, ...] = ("distractors", "paraphrase", "templates", "absent")


class WordingRow(TypedDict):
    """The score with one wording.

    `changed` is how many names differ from the data set's, or how many others compete, and
    `unreadable` lists the names that this method cannot use: they stay as they are in the data set,
    or do not compete. `difference` is the mIoU minus that with the data set's own wording, in
    points. Where there is no score, `reason` says why.
    """

    part: Part
    title: str
    changed: int
    unreadable: list[str]
    miou: NotRequired[float]
    low: NotRequired[float]
    high: NotRequired[float]
    difference: NotRequired[float]
    difference_low: NotRequired[float]
    difference_high: NotRequired[float]
    reason: NotRequired[str]


class Share(TypedDict):
    """An estimate with its 95 % bootstrap interval over images."""

    estimate: float
    low: float
    high: float


class AbsentNames(TypedDict):
    """How often names are found in images that do not show them.

    `names` is how many of 100 absent names win at least one labeled pixel of an image, and `pixels`
    how many of 100 labeled pixels absent names win.
    """

    names: Share
    pixels: Share


class Wording(TypedDict):
    """All that `vary_wording` measures; `card` has the lists and the seed."""

    format: str
    code_version: str
    method: str
    data_set: str
    images: int
    card: dict[str, Any]
    notes: list[str]
    rows: list[WordingRow]
    absent: NotRequired[AbsentNames]


@dataclass(frozen=True)
class _Evaluation:
    """What one wording gave, with the record of each image by its id."""

    result: Result
    records: Mapping[str, ImageRecord]


def vary_wording(
    segmenter: Segmenter,
    data: SampleSet,
    output: Path,
    *,
    parts: Sequence[Part] = PARTS,
    counts: Sequence[int] | None = None,
    pool: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    resume: bool = True,
    progress: bool = True,
) -> Wording:
    """Evaluate a method with each wording, and write `wording.json` into the output folder.

    Args:
        segmenter: the method.
        data: images with ground truth.
        output: gets a folder with result and log for each wording.
        parts: some of `PARTS`.
        counts: how many distractors; see `Study.distractors`.
        pool: where distractors come from; see `Study.distractors`.
        templates: template sets; see `Study.templates`.
        limit: only the first so many images.
        seed: of the distractors, of the segmenter and of the bootstrap.
        resume: keep what an earlier run with the same protocol has finished.
        progress: say what is evaluated, and show bars.

    Raises:
        InputError: see `evaluate_set`, or a part or a count that cannot be.
    """
    _check(parts, counts)
    for name in templates or ():
        load_templates(name)  # a wrong one is said before anything runs
    study = Study(segmenter, data, seed)
    asked = _variations(study, parts, counts, pool, templates)
    options = {"limit": limit, "seed": seed, "resume": resume, "progress": progress}
    found: dict[str, _Evaluation | InputError] = {}
    for number, one in enumerate(asked, start=1):
        if one.folder in found:
            continue
        if progress:
            print(f"{number} of {len(asked)}: {one.part}, {one.title}", file=sys.stderr, flush=True)
        try:
            found[one.folder] = _evaluate(segmenter, one, output / one.folder, options)
        except InputError as error:
            if one.title == OWN:
                raise
            found[one.folder] = error
    wording = _conclude(study, asked, found)
    write_text(output / WORDING_FILE, json.dumps(wording, indent=1) + "\n")
    return wording


def _check(parts: Sequence[str], counts: Sequence[int] | None) -> None:
    if unknown := [part for part in parts if part not in PARTS]:
        raise InputError(f"there is no part {unknown[0]!r}; give some of {', '.join(PARTS)}")
    if not parts:
        raise InputError(f"no part was asked for; give some of {', '.join(PARTS)}")
    if counts is not None and (not counts or min(counts) < 0):
        raise InputError("the numbers of distractors must be 0 or more; give at least one")


def _variations(
    study: Study,
    parts: Sequence[Part],
    counts: Sequence[int] | None,
    pool: Sequence[str] | None,
    templates: Sequence[str] | None,
) -> list[Variation]:
    """Return all wordings, each part beginning with that of the data set."""
    asked = []
    if "distractors" in parts:
        asked += study.distractors(counts, pool)
    if "paraphrase" in parts:
        asked += [study.own("paraphrase"), *study.paraphrases()]
    if "templates" in parts:
        asked += [study.own("templates"), *study.templates(templates)]
    if "absent" in parts:
        asked += [study.own("absent")]
    return asked


def _evaluate(
    segmenter: Segmenter, one: Variation, folder: Path, options: Mapping[str, Any]
) -> _Evaluation:
    asked = WordedSegmenter(segmenter, "own" if one.title == OWN else f"{one.part}: {one.title}")
    result = evaluate_set(asked, one.data, vocabulary=one.vocabulary, output=folder, **options)
    wanted = {sample.id for sample in one.data.samples[: options["limit"]]}
    records = {r.id: r for r in read_records(folder, result.card) if r.id in wanted}
    return _Evaluation(result, records)


def _conclude(
    study: Study,
    asked: Sequence[Variation],
    found: Mapping[str, _Evaluation | InputError],
) -> Wording:
    """Put the rows and the lists of the study together."""
    own = {v.part: found[v.folder] for v in asked if v.title == OWN}
    first = next(e for e in found.values() if isinstance(e, _Evaluation))
    card = first.result.card
    wording: Wording = {
        "format": FORMAT,
        "code_version": openvocab.__version__,
        "method": card.method,
        "data_set": card.data_set,
        "images": card.n_images,
        "card": {**card.to_json(), "wording": study.lists},
        "notes": study.notes,
        "rows": [_row(v, found[v.folder], own[v.part]) for v in asked if v.part != "absent"],
    }
    if isinstance(whole := own.get("absent"), _Evaluation):
        wording["absent"] = absent_names(list(whole.records.values()), len(whole.result.names))
    return wording


def _row(
    one: Variation, found: _Evaluation | InputError, own: _Evaluation | InputError
) -> WordingRow:
    row: WordingRow = {
        "part": one.part,
        "title": one.title,
        "changed": one.changed,
        "unreadable": list(one.unreadable),
    }
    if isinstance(found, InputError) or isinstance(own, InputError):
        row["reason"] = str(found)
        return row
    interval = found.result.intervals.get("detectron2")
    if interval is None:
        row["reason"] = "none of the classes that count is in these images"
        return row
    row["miou"], row["low"], row["high"] = interval.estimate, interval.low, interval.high
    if one.title != OWN:
        ids = sorted(found.records.keys() & own.records.keys())
        first, second = ([each.records[i].pairs for i in ids] for each in (found, own))
        paired = paired_difference(first, second, len(own.result.names)).interval
        row["difference"] = paired.estimate
        row["difference_low"], row["difference_high"] = paired.low, paired.high
    return row


def absent_names(records: Sequence[ImageRecord], classes: int) -> AbsentNames:
    """Return how often names are found in images that do not show them.

    Args:
        records: of all images.
        classes: K.

    Raises:
        InputError: no images, or none in which a name is absent.
    """
    won, absent, wrong, labeled = [], [], [], []
    for record in records:
        matrix = record.pairs.dense(classes)  # (K, K + 1)
        away = matrix.sum(axis=1) == 0
        pixels = matrix[:, :-1].sum(axis=0)[away]
        won.append(int((pixels > 0).sum()))
        absent.append(int(away.sum()))
        wrong.append(int(pixels.sum()))
        labeled.append(int(matrix.sum()))
    return {
        "names": _share(share_interval(won, absent)),
        "pixels": _share(share_interval(wrong, labeled)),
    }


def _share(interval: Interval) -> Share:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def spread(rows: Sequence[WordingRow], part: Part) -> float | None:
    """Return the highest minus the lowest mIoU of a part; None of fewer than two scores."""
    scores = [row["miou"] for row in rows if row["part"] == part and "miou" in row]
    return max(scores) - min(scores) if len(scores) > 1 else None


def table(wording: Wording) -> str:
    """Return the scores of all wordings as text, with what each changes."""
    lines = [
        f"{wording['method']} on {wording['images']} images of {wording['data_set']}",
        f"{'part':<12}{'wording':<40}{'names':>6}{'mIoU':>8}{'95 % interval':>18}"
        f"{'change':>8}{'95 % interval':>18}",
    ]
    lines += [_line(row) for row in wording["rows"]]
    for part in ("paraphrase", "templates"):
        if (found := spread(wording["rows"], part)) is not None:
            lines.append(f"spread of {part}: {found:.2f} points of mIoU")
    if "absent" in wording:
        names, pixels = wording["absent"]["names"], wording["absent"]["pixels"]
        lines.append(
            f"names that an image does not show: {_percent(names)} of them win pixels in it, "
            f"{_percent(pixels)} of all labeled pixels"
        )
    unreadable = dict.fromkeys(name for row in wording["rows"] for name in row["unreadable"])
    if unreadable:
        more = f" and {len(unreadable) - 10} more" if len(unreadable) > 10 else ""
        shown = ", ".join(repr(name) for name in list(unreadable)[:10])
        lines.append(f"names that this method cannot use, which were not asked: {shown}{more}")
    return "\n".join([*lines, *wording["notes"]])


def _line(row: WordingRow) -> str:
    head = f"{row['part']:<12}{row['title']:<40}{row['changed']:>6}"
    if "reason" in row:
        return f"{head}  not possible: {row['reason']}"
    head += f"{row['miou']:>8.2f}{row['low']:>9.2f} to {row['high']:>5.2f}"
    if "difference" not in row:
        return head
    low, high = row["difference_low"], row["difference_high"]
    return f"{head}{row['difference']:>+8.2f}{low:>+9.2f} to {high:>+5.2f}"


def _percent(share: Share) -> str:
    return f"{share['estimate']:.2f} % ({share['low']:.2f} to {share['high']:.2f})"
