"""Label maps that hold the official codes of a data set where labels are expected.

The commonest mistakes in preparing data: a conversion was skipped, or its input was saved under
the name of its result. The codes tell themselves, before anybody guesses at single values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from openvocab.datasets.coco_stuff import category_ids
from openvocab.datasets.inspection import TreeInspection
from openvocab.datasets.spec import read_data
from openvocab.metrics.scores import void_values

_RULE = 0.3  # codes in more of the label maps than this are a rule, not an accident
_ADE_FULL_LAST = 3688
_CONTEXT_LAST = 459
_SHOWN = 3


@dataclass(frozen=True)
class Codes:
    """Official codes.

    Args:
        sets: data sets in whose label maps the codes are found by mistake.
        what: they are, and what was done wrong.
        covers: whether all of these values, void left out, are such codes.
        least: so many values that are no class make it certain. One may also be a wrong value for
            void.
        from_one: class k is stored as k + 1, so that K alone is no class. In other codes a K that
            is alone is a wrong value for void.
    """

    sets: tuple[str, ...]
    what: str
    covers: Callable[[Collection[int]], bool]
    least: int = 1
    from_one: bool = False


def _within(*codes: int) -> Callable[[Collection[int]], bool]:
    return frozenset(codes).issuperset


def _instance_ids(values: Collection[int]) -> bool:
    return max(values) >= 1000 and {v // 1000 if v >= 1000 else v for v in values} <= set(range(34))


def _ade_full(values: Collection[int]) -> bool:
    known = {0, *read_data("ade20k_full_ids.json")}
    return max(values) <= _ADE_FULL_LAST and 2 * len(known & set(values)) >= len(values)


def _official() -> tuple[Codes, ...]:
    coco = ("coco-stuff-171", "coco-object-80", "coco-object-81")
    context = ("pascal-context-59", "pascal-context-60")
    return (
        Codes(
            ("cityscapes-19",),
            "Cityscapes' labelIds (0 to 33): labelIds were saved under the name of labelTrainIds",
            _within(*range(34)),
        ),
        Codes(
            ("cityscapes-19",),
            "Cityscapes' instanceIds (id x 1000 + number): they were saved under the name of "
            "labelTrainIds",
            _instance_ids,
        ),
        Codes(
            coco,
            "the raw stuffthingmaps of COCO-Stuff (category id - 1, 0 to 181), not yet converted",
            _within(*(code - 1 for code in category_ids())),
        ),
        Codes(
            coco,
            "COCO's category ids (1 to 182, 0 for nothing), not yet converted to labels",
            _within(0, *category_ids()),
        ),
        Codes(
            ("voc-20",),
            "PASCAL VOC's official masks (0 for background, 1 to 20, 255 for boundaries), not yet "
            "converted: labels of 20 classes begin at 0",
            _within(*range(21)),
            from_one=True,
        ),
        Codes(
            ("ade20k-150",),
            "the official annotations of ADE20K (0 for nothing, 1 to 150), not yet converted; the "
            "labels look as if they started at 1",
            _within(*range(151)),
            from_one=True,
        ),
        Codes(
            context,
            "the official masks of Pascal Context (0 for background, 1 to 59), not yet converted; "
            "the labels look as if they started at 1",
            _within(*range(60)),
            from_one=True,
        ),
        Codes(
            context,
            "Pascal Context's raw LabelMaps of 459 classes (1 to 459), of which 59 were to be "
            "selected",
            _within(*range(_CONTEXT_LAST + 1)),
            least=3,
        ),
        Codes(
            ("ade20k-847", "ade20k-150"),
            "the object index of the full ADE20K (up to 3688), not yet converted to labels",
            _ade_full,
            least=3,
        ),
    )


def official_codes(seen: TreeInspection) -> str:
    """Return a sentence that names the official codes in the label maps, or ""."""
    data = seen.data
    classes = len(data.label_names)
    void = void_values(classes, data.ignore_index) | {255, 65535}
    stored = 1 if data.layout.coding == "from-one" else 0
    values = {value for value in seen.histogram() if value not in void}
    wrong = sorted(value for value in values if not 0 <= value < classes)
    holders = sum(any(value in wrong for value in image.values.tolist()) for image in seen.images)
    if not wrong or holders <= _RULE * len(seen.images):
        return ""
    codes = {value + stored for value in values}
    for known in _official():
        if (
            data.name in known.sets
            and len(wrong) >= known.least
            and min(codes) >= 0
            and (known.from_one or wrong != [classes])
            and known.covers(codes)
        ):
            shown = ", ".join(str(value) for value in wrong[-_SHOWN:])
            return (
                f"The label maps hold {known.what}. Of {len(values)} values, {len(wrong)} are no "
                f"class (0 to {classes - 1}), such as {shown}, in {holders} of "
                f"{len(seen.images)} label maps; the others stand for other classes than their own."
            )
    return ""
