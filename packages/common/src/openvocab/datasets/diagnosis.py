"""The findings about a data set's files, in words, each with the command that fixes it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openvocab.datasets.inspection import Inspection, TreeInspection
from openvocab.datasets.label_order import order_findings
from openvocab.datasets.labelled_set import LabelledSet
from openvocab.datasets.official_codes import official_codes
from openvocab.datasets.spec import VOID_8_BIT
from openvocab.metrics.scores import void_values

Severity = Literal["error", "warning", "note"]

_SHOWN = 5
_MOST = 0.3  # a wrong value in more of the label maps than this is a rule, not an accident


@dataclass(frozen=True)
class Finding:
    """A finding about a data set.

    Args:
        severity: an error makes results wrong, a warning makes them incomparable.
        text: description in words.
        fix: the command that repairs it, or "".
    """

    severity: Severity
    text: str
    fix: str = ""


def diagnose(seen: TreeInspection, data_root: Path) -> list[Finding]:
    """Return everything that is wrong or worth knowing, the worst first."""
    remake = _remake(seen.data, data_root)
    found = [
        *_counts(seen, data_root),
        *_damage(seen, data_root),
        *_sizes(seen, remake),
        *_values(seen, data_root, remake),
        *(Finding("error", text, remake) for text in order_findings(seen, data_root)),
    ]
    rank = {"error": 0, "warning": 1, "note": 2}
    return sorted(found, key=lambda finding: rank[finding.severity])


def prepare_command(name: str, split: str, data_root: Path) -> str:
    """Return the command that makes the missing part of a label tree."""
    root = shlex.quote(str(data_root))
    return f"python -m openvocab.prepare {name} --split {split} --source DOWNLOADS --output {root}"


def repair_command(data: LabelledSet, data_root: Path, *, first: str = "") -> str:
    """Return the command that repairs a label tree, or makes another one to use instead.

    Args:
        data: the set as it lies there.
        data_root: folder of the data sets.
        first: a command that takes what is wrong out of the way.
    """
    shared = "{split}" not in data.layout.labels  # one folder holds the labels of all splits
    splits = " ".join(data.spec.splits) if shared else data.split
    command = prepare_command(data.name, splits, data_root)
    if data.name == "pascal-context-59" and data.layout.name == "san":
        command += " --route detail"  # the route by which SAN's layout is made
    elif data.labels_folder != _made_folder(data, data_root):
        # Our preparation does not write this layout, so that nothing here needs to be moved.
        return f"{command}  # and then use --dataset {data.name}@{data.spec.made}"
    return f"{first} && {command}" if first else command


def _remake(data: LabelledSet, data_root: Path) -> str:
    folder = data.labels_folder
    aside = folder.with_name(f"{folder.name}.wrong")
    move = f"mv {shlex.quote(str(folder))} {shlex.quote(str(aside))}"
    return repair_command(data, data_root, first=move)


def _reconvert(data: LabelledSet, data_root: Path, remake: str) -> str:
    """Return the command that converts official codes; Cityscapes has them beside the labels."""
    end = data.layout.label_end
    raw = end.replace("labelTrainIds", "labelIds")
    if raw == end or not any(data.labels_folder.rglob(f"*{raw}")):
        return remake
    where = shlex.quote(str(data.labels_folder))
    root = shlex.quote(str(data_root))
    return (
        f"find {where} -name '*{end}' -delete && python -m openvocab.prepare {data.name} "
        f"--split {data.split} --source {root} --output {root}"
    )


def _made_folder(data: LabelledSet, data_root: Path) -> Path:
    layout = next(one for one in data.spec.layouts if one.name == data.spec.made)
    if data.split not in layout.split_names:
        return data_root
    return data_root / layout.roots[0] / layout.fill(layout.labels, data.split)


def _counts(seen: TreeInspection, data_root: Path) -> Iterable[Finding]:
    data = seen.data
    make = repair_command(data, data_root)
    for sentence in data.left_out:
        yield Finding("error", f"{sentence}.", make)
    official, count = data.spec.sizes.get(data.split, ()), len(data.samples)
    if count in official:
        if len(official) > 1:
            known = " or ".join(f"{size:,}" for size in official)
            yield Finding("note", f"{count:,} images; complete is {known}, depending on the list.")
    elif official:
        known = " or ".join(f"{size:,}" for size in official)
        few = f"{max(official) - count:,} are missing" if count < max(official) else "too many"
        yield Finding(
            "warning",
            f"{count:,} images with label maps instead of the official {known} ({few}); scores on "
            f"another number of images are not comparable.",
            make,
        )


def _damage(seen: TreeInspection, data_root: Path) -> Iterable[Finding]:
    data = seen.data
    labels = [image for image in seen.images if image.label_error]
    images = [image for image in seen.images if image.image_error]
    for what, wrong, paths, reasons in (
        ("label maps", labels, [i.sample.label for i in labels], [i.label_error for i in labels]),
        ("images", images, [i.sample.image for i in images], [i.image_error for i in images]),
    ):
        if wrong:
            remove = " ".join(shlex.quote(str(path)) for path in paths[:_SHOWN])
            yield Finding(
                "error",
                f"{len(wrong)} {what} cannot be read: {_several(reasons)}",
                repair_command(data, data_root, first=f"rm {remove}"),
            )


def _sizes(seen: TreeInspection, remake: str) -> Iterable[Finding]:
    wrong = [
        image
        for image in seen.images
        if image.image_size and image.label_size and image.image_size != image.label_size
    ]
    if wrong:
        shown = [
            f"{i.sample.id} (image {_size(i.image_size)}, label map {_size(i.label_size)})"
            for i in wrong
        ]
        yield Finding(
            "error",
            f"{len(wrong)} label maps are not as large as their image: {_several(shown)}. One of "
            f"the two was resized, or they belong to different pictures.",
            remake,
        )


def _values(seen: TreeInspection, data_root: Path, remake: str) -> Iterable[Finding]:
    """Find values that are no class, and say what they probably are."""
    data, histogram = seen.data, seen.histogram()
    classes = len(data.label_names)
    void = void_values(classes, data.ignore_index)
    codes = official_codes(seen)
    if codes:
        yield Finding("error", codes, _reconvert(seen.data, data_root, remake))
        return
    wrong = {v: n for v, n in histogram.items() if not 0 <= v < classes and v not in void}
    for value, pixels in list(wrong.items())[:_SHOWN]:
        holders = [image for image in seen.images if value in image.values]
        yield Finding(
            "error",
            f"The value {value} is no class (0 to {classes - 1}) and not void "
            f"({_words(sorted(void))}): {pixels:,} pixels in {len(holders)} label maps, such as "
            f"{holders[0].sample.label} ({_pixels(holders[0], value):,} pixels). "
            f"{_explanation(seen, value, len(holders), classes)}",
            remake,
        )
    if len(wrong) > _SHOWN:
        yield Finding(
            "error",
            f"{len(wrong) - _SHOWN} more values are no classes, up to {max(wrong)}.",
            remake,
        )
    yield from _suspicious_void(seen, histogram, classes, remake)


def _suspicious_void(
    seen: TreeInspection, histogram: dict[int, int], classes: int, remake: str
) -> Iterable[Finding]:
    """Find 255 in place of the void value where more than 255 classes make 255 a class."""
    if classes <= VOID_8_BIT or any(v in histogram for v in seen.data.ignore_index):
        return
    holders = sum(VOID_8_BIT in image.values for image in seen.images)
    if holders > _MOST * len(seen.images):
        name = seen.data.vocabulary.names[VOID_8_BIT]
        yield Finding(
            "error",
            f"255 is in {holders} of {len(seen.images)} label maps and "
            f"{max(seen.data.ignore_index)} in none. In this set 255 is the class {name!r} and "
            f"void is {max(seen.data.ignore_index)}; whoever made the tree wrote void as 255.",
            remake,
        )


def _explanation(seen: TreeInspection, value: int, holders: int, classes: int) -> str:
    often = holders > _MOST * len(seen.images)
    has_void = any(v in seen.histogram() for v in seen.data.ignore_index)
    if value == classes and not has_void:
        return (
            "The labels look as if they started at 1 (0 would be void): these are the official "
            "label maps, not yet converted."
        )
    if often:
        expected = max(seen.data.ignore_index)
        return (
            f"It is in {holders} of {len(seen.images)} label maps: most likely void was written as "
            f"{value}, where {expected} is expected (a wrong ignore value)."
        )
    return "Only few label maps have it, so that they are most likely damaged or foreign."


def _pixels(image: Inspection, value: int) -> int:
    where = image.values == value
    return int(image.upper[where].sum() + image.lower[where].sum())


def _several(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more


def _size(size: tuple[int, int] | None) -> str:
    return "?" if size is None else f"{size[1]}x{size[0]}"


def _words(values: Sequence[int]) -> str:
    return " or ".join(str(value) for value in values)
