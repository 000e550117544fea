"""How much the routes to Pascal Context's 59 labels disagree on a user's own copy.

The routes are not pixel-identical, and by how much they differ is unpublished (layouts.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from openvocab.datasets.archives import Source
from openvocab.datasets.pascal_context import label_table
from openvocab.datasets.pascal_context_masks import readers
from openvocab.datasets.preparation import IntArray, look_up
from openvocab.datasets.spec import VOID_8_BIT
from openvocab.errors import InputError
from openvocab.vocabulary import Vocabulary

_SHOWN = 5
_BASE = 256


@dataclass
class RouteDifferences:
    """Counts of two routes.

    Args:
        names: the two.
        pixels: all that were compared.
        images: number of images that differ anywhere.
        changes: pixels by (label of the first, label of the second), where they differ.
    """

    names: tuple[str, str]
    pixels: int = 0
    images: int = 0
    changes: Counter[tuple[int, int]] = field(default_factory=Counter)

    def add(self, first: IntArray, second: IntArray) -> None:
        """Count one image, two label maps `(H, W)`."""
        self.pixels += first.size
        differ = first != second
        if not differ.any():
            return
        self.images += 1
        codes, counts = np.unique(first[differ] * _BASE + second[differ], return_counts=True)
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
            self.changes[divmod(code, _BASE)] += count

    def lines(self, vocabulary: Vocabulary) -> list[str]:
        """Return the counts in words, with the most frequent changes."""
        total = sum(self.changes.values())
        share = 100 * total / max(self.pixels, 1)
        first, second = self.names
        head = (
            f"{first} and {second}: {total} of {self.pixels} pixels differ ({share:.4f} %), in "
            f"{self.images} images"
        )
        names = dict(enumerate(vocabulary.names)) | {VOID_8_BIT: "void"}
        return [
            head,
            *(
                f"  {names[a]} -> {names[b]}: {count} pixels"
                for (a, b), count in self.changes.most_common(_SHOWN)
            ),
        ]


def describe_disagreement(source: Source, split: str, routes: Sequence[str]) -> str:
    """Return in words how much routes disagree, over the images that all of them have.

    Raises:
        InputError: fewer than two routes, files of one are missing, or sizes differ.
    """
    if len(set(routes)) < 2:
        raise InputError("comparing needs at least two different routes")
    vocabulary = Vocabulary.load("pascal-context-59")
    table = label_table(vocabulary, VOID_8_BIT, 0)
    plans = {
        route: {stem: (read, arguments) for stem, read, arguments in readers(source, split, route)}
        for route in routes
    }
    common = sorted(set.intersection(*(set(plan) for plan in plans.values())))
    found = [RouteDifferences(pair) for pair in combinations(plans, 2)]
    for stem in common:
        maps = {
            route: look_up(plan[stem][0](*plan[stem][1]), table, VOID_8_BIT, stem)
            for route, plan in plans.items()
        }
        if len({labels.shape for labels in maps.values()}) > 1:
            raise InputError(
                f"{stem} differs in size between {', '.join(maps)}; fetch the annotations again"
            )
        for pair in found:
            pair.add(maps[pair.names[0]], maps[pair.names[1]])
    head = f"{len(common)} images of {split} are in all of {', '.join(plans)}."
    return "\n".join([head, *(line for pair in found for line in pair.lines(vocabulary))])
