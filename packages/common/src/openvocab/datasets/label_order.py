"""Three independent checks that the numbers in label maps have the meaning that we expect.

The manifest that our preparation leaves; the physical world (sky is above grass); and label trees
of the same images that share names. A swapped order is no error anywhere else, only wrong numbers.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from openvocab.datasets.inspection import TreeInspection
from openvocab.datasets.labelled_set import LabelledSet
from openvocab.datasets.preparation import MANIFEST
from openvocab.datasets.resolver import find_layouts, load_layout, parse_name
from openvocab.errors import InputError
from openvocab.reading.json_files import read_json_file
from openvocab.vocabulary import Vocabulary

_SKY = ("sky", "sky-other")
_GROUND = ("grass", "road", "road, route", "floor", "ground", "earth, ground", "sidewalk")
_ENOUGH = 0.001  # share of all pixels that makes a class worth a judgement
_COMPARED = 60  # images that are held against another tree
_AGREEMENT = 0.5  # less than this of the pixels with shared names is not two routes, but an order
_SHOWN = 3


def order_findings(seen: TreeInspection, data_root: Path) -> list[str]:
    """Return the evidence against the order of the labels, in words."""
    return [*_by_manifest(seen), *_by_gravity(seen), *_by_siblings(seen, data_root)]


def _by_manifest(seen: TreeInspection) -> Iterator[str]:
    path = seen.data.labels_folder / MANIFEST
    if not path.is_file():
        return
    try:
        names = list(read_json_file(path, "manifest")["names"])
    except (ValueError, KeyError, TypeError):
        yield f"{path} is damaged, so that nobody knows how the label maps were made."
        return
    ours = list(seen.data.spec.vocabulary_of(seen.data.layout).names)
    if seen.data.layout.coding == "from-one" and len(names) > len(ours):
        names = names[1:]  # the tree has the background, which is void to this set
    elif seen.data.layout.coding == "void-is-background":
        ours = ours[1:]
    if names == ours:
        return
    first = next((i for i, (a, b) in enumerate(zip(names, ours, strict=False)) if a != b), 0)
    yield (
        f"The label maps were made for another list of names: their note {MANIFEST} says that "
        f"label {first} is {_name(names, first)!r}, but in this layout it is "
        f"{_name(ours, first)!r}. The order of the labels is swapped."
    )


def _by_gravity(seen: TreeInspection) -> Iterator[str]:
    names = seen.data.label_names
    histogram, above = seen.histogram(), seen.share_above()
    total = sum(histogram.get(label, 0) for label in range(len(names)))
    common = {label for label, n in histogram.items() if n >= _ENOUGH * total}
    skies = [i for i, name in enumerate(names) if name in _SKY and i in common]
    grounds = [i for i, name in enumerate(names) if name in _GROUND and i in common]
    for sky in skies:
        over = [i for i in grounds if above[i] > above[sky]]
        if over and len(over) * 2 > len(grounds):
            yield (
                f"The world is upside down: {100 * above[sky]:.0f} % of the pixels called "
                f"{names[sky]!r} are in the upper half of the images, but "
                f"{100 * above[over[0]]:.0f} % of those called {names[over[0]]!r}. The labels are "
                f"most likely in another order than the names."
            )


def _by_siblings(seen: TreeInspection, data_root: Path) -> Iterator[str]:
    for other in _siblings(seen.data, data_root):
        pairs = _confusion(seen, other)
        shared = set(seen.data.label_names) & set(other.label_names)
        ours, theirs = seen.data.label_names, other.label_names
        counts = {(ours[a], theirs[b]): n for (a, b), n in pairs.items() if theirs[b] in shared}
        total = sum(counts.values())
        agreed = sum(n for (a, b), n in counts.items() if a == b)
        if not total or agreed >= _AGREEMENT * total:
            continue
        swaps = sorted(((n, a, b) for (a, b), n in counts.items() if a != b), reverse=True)
        shown = ", ".join(f"what is {b!r} there is {a!r} here" for _, a, b in swaps[:_SHOWN])
        yield (
            f"The labels contradict those of {other.name} on the same images in "
            f"{other.labels_folder}: only {100 * agreed / total:.0f} % of the pixels of shared "
            f"names agree ({shown}). The order of the labels is swapped in one of the two."
            f"{_hint(seen, counts)}"
        )


def _hint(seen: TreeInspection, counts: dict[tuple[str, str], int]) -> str:
    """Say which other known order fits, if one does."""
    data = seen.data
    ours = data.vocabulary
    for layout in data.spec.layouts:
        candidate: Vocabulary = data.spec.vocabulary_of(layout)
        if candidate.names == ours.names:
            continue
        renamed = dict(zip(ours.names, candidate.names, strict=True))
        fits = sum(n for (a, b), n in counts.items() if renamed[a] == b)
        if fits >= _AGREEMENT * sum(counts.values()):
            return f" Here it fits the order that the layout {layout.name!r} has."
    return ""


def _siblings(data: LabelledSet, data_root: Path) -> Iterator[LabelledSet]:
    for name in dict.fromkeys((data.name, *data.spec.siblings)):
        request = parse_name(f"{name}:{data.split}")
        for layout, root in find_layouts(request, data_root):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # its own visit to the doctor tells
                    other = load_layout(request, layout, root)
            except InputError:
                continue
            if other.labels_folder != data.labels_folder:
                yield other


def _confusion(seen: TreeInspection, other: LabelledSet) -> Counter[tuple[int, int]]:
    """Count pixels of (our label, their label) on the first images that both trees have."""
    theirs = {sample.id: sample for sample in other.samples}
    readable = [i.sample for i in seen.images if not i.label_error and i.sample.id in theirs]
    step = max(1, len(readable) // _COMPARED)
    counts: Counter[tuple[int, int]] = Counter()
    for sample in readable[::step]:
        try:
            a, b = seen.data.read_label(sample), other.read_label(theirs[sample.id])
        except InputError:
            continue
        if a.shape != b.shape:
            continue
        valid = (
            (a >= 0) & (a < len(seen.data.label_names)) & (b >= 0) & (b < len(other.label_names))
        )
        codes, numbers = np.unique(a[valid] * 65536 + b[valid], return_counts=True)
        for code, n in zip(codes.tolist(), numbers.tolist(), strict=True):
            counts[divmod(code, 65536)] += n
    return counts


def _name(names: Iterable[str], index: int) -> str:
    listed = list(names)
    return listed[index] if index < len(listed) else "nothing"
