"""Pictures of CaR's steps, made while the recurrence runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from car.labels import paint
from car.recurrence import Recurrence, Step
from car.segmenter import CaRSegmenter
from openvocab.drawing.maps import DROPPED, KEPT, Bar, bars, fit_to, heat, number, spotlight
from openvocab.drawing.overlay import draw_overlay, side_by_side
from openvocab.image import ImageArray
from openvocab.methods import Explained
from openvocab.vocabulary import Vocabulary

_MOST_KEPT, _MOST_DROPPED, _MOST_BARS = 8, 4, 16  # names of a step that are drawn
_PHOTO, _SIDE, _PANEL = 320, 480, 160  # pixels of long sides, and of a panel's height


def explain(segmenter: CaRSegmenter, image: ImageArray, vocabulary: Vocabulary) -> list[Explained]:
    """Show every step of the recurrence, the CRF, and the result.

    Args:
        segmenter: looks at the image once more; nothing about it is changed.
        image: (H, W, 3) uint8 RGB.
        vocabulary: names to look for.
    """
    taken: dict[Recurrence, list[Step]] = defaultdict(list)
    watched = segmenter.with_config(segmenter.config)
    watched.on_start = None
    watched.on_step = lambda recurrence, step: taken[recurrence].append(step)
    result = watched.segment(image, vocabulary)
    text = (
        "In each step CLIP looks for every name that is left: the saliency is bright where its "
        "answer comes from, and a mask proposal grows out of it. The mask classifier then sees the "
        "photo with that mask pointed out, and says how well it shows the name."
    )
    pictures = [Explained("The photo", fit_to(image, _PHOTO), text, "Input")]
    passes = (", stuff", ", things") if len(taken) > 1 else ("",)
    for title, (recurrence, steps) in zip(passes, taken.items(), strict=True):
        for count, step in enumerate(steps, start=1):
            pictures += _explain_step(recurrence, step, f"Step {count}{title}")
        pictures += _explain_crf(recurrence, f"The CRF{title}")
    found = ", ".join(result.areas()) or "none of the names"
    pictures.append(
        Explained(
            "The label map",
            draw_overlay(image, result.labels, vocabulary.names, max_side=_SIDE),
            f"Found: {found}. What no name won stays blank, or is the background.",
            "Result",
        )
    )
    return pictures


def _explain_step(recurrence: Recurrence, step: Step, title: str) -> Iterator[Explained]:
    """Yield the scores of one step, and for each name how its score came about."""
    left = len(step.names) - len(step.kept)
    group = f"{title}: {len(step.kept)} of {len(step.names)} names are kept"
    if not left:
        group += ", so that no further step is needed"
    yield _scores(recurrence, step, group)
    order = np.argsort(-step.scores, kind="stable").tolist()
    kept = [place for place in order if place in step.kept]
    dropped = [place for place in order if place not in step.kept]
    empty = [place for place in order if not step.maps.proposals[place].any()]
    seen = [place for place in kept if place not in empty][:_MOST_KEPT]
    seen += [place for place in dropped if place not in empty][:_MOST_DROPPED]
    for place in seen:
        yield _explain_name(recurrence, step, place, group)
    photo = fit_to(recurrence.image.pixels, _PANEL)
    for place in empty:
        yield Explained(_title(recurrence, step, place), photo, group=group, empty=True)


def _scores(recurrence: Recurrence, step: Step, group: str) -> Explained:
    """Draw the scores of a step beside the acceptance threshold, the highest first."""
    order = np.argsort(-step.scores, kind="stable").tolist()
    shown = [
        *[place for place in order if place in step.kept][: _MOST_BARS // 2],
        *[place for place in order if place not in step.kept],
    ][:_MOST_BARS]
    lines = [
        Bar(
            recurrence.names[step.names[place]],
            float(step.scores[place]),
            KEPT if place in step.kept else DROPPED,
        )
        for place in shown
    ]
    threshold = recurrence.config.confidence_threshold
    text = (
        "How sure the mask classifier is that each prompted image shows its own name rather than "
        f"one of the others. Names above the acceptance threshold {number(threshold)} are kept."
    )
    if step.scores.max() <= threshold:
        text += " None is above it; then the best name alone is kept."
    if len(step.names) > len(shown):
        text += f" {len(step.names) - len(shown)} more names are not drawn."
    if len(step.names) > _MOST_KEPT + _MOST_DROPPED:
        text += (
            f" Pictures follow for the best {_MOST_KEPT} kept and {_MOST_DROPPED} dropped names."
        )
    return Explained("Scores", bars(lines, threshold=threshold, width=420), text, group)


def _explain_name(recurrence: Recurrence, step: Step, place: int, group: str) -> Explained:
    """Draw the saliency map, the mask proposal and the prompted image of one name."""
    photo = fit_to(recurrence.image.pixels, _SIDE)
    panels = [
        heat(photo, step.maps.activation[place].cpu().numpy()),
        spotlight(photo, step.maps.proposals[place]),
        step.prompted[place],
    ]
    picture = side_by_side(
        panels, ("saliency", "mask proposal", "what CLIP sees"), height=_PANEL, gap=6
    )
    verdict = "kept" if place in step.kept else "dropped"
    threshold = recurrence.config.confidence_threshold
    text = (
        f"Score {number(step.scores[place])}, acceptance threshold {number(threshold)}: {verdict}."
    )
    if step.maps.foreground_only[place] and recurrence.config.bg_cls:
        text += " Next to the background names it was seen nowhere, so they were left out."
    return Explained(_title(recurrence, step, place), picture, text, group)


def _explain_crf(recurrence: Recurrence, group: str) -> Iterator[Explained]:
    """Yield the labels before the CRF and after it."""
    if recurrence.kept is None or recurrence.result is None:
        return
    texts = (
        ("Before", "At each pixel the highest mask proposal wins, or the background."),
        ("After", "The dense CRF moves the borders to edges in the photo."),
    )
    pixels = recurrence.image.pixels
    for (title, text), labels in zip(
        texts, (labels_before_crf(recurrence), _labels_after_crf(recurrence)), strict=True
    ):
        picture = draw_overlay(pixels, labels, recurrence.names, max_side=_SIDE)
        yield Explained(title, picture, text, group, empty=bool((labels < 0).all()))


def labels_before_crf(recurrence: Recurrence) -> NDArray[np.int32]:
    """Return the best name of each pixel before the CRF: (H, W), -1 without a name."""
    kept = recurrence.kept
    labels = np.full(recurrence.image.pixels.shape[:2], -1, dtype=np.int32)
    if kept is None or not kept.proposals.any():
        return labels
    given = recurrence.crf_input().argmax(dim=-3).cpu().numpy()  # (H, W), or (K, H, W) of 0 and 1
    if recurrence.config.mode == "semantic":
        masks = np.stack([given == label for label in range(1, len(kept.proposals) + 1)])
    else:
        masks = given == 1
    # In faithful mode there may be more masks than names; those behind have none.
    paint(labels, masks[: len(kept.names)], np.maximum(kept.scores, 1e-9), kept.names)
    return labels


def _labels_after_crf(recurrence: Recurrence) -> NDArray[np.int32]:
    labels = np.full(recurrence.image.pixels.shape[:2], -1, dtype=np.int32)
    result = recurrence.result
    if result is not None:
        paint(labels, result.masks, result.scores, range(len(recurrence.names)))
    return labels


def _title(recurrence: Recurrence, step: Step, place: int) -> str:
    name = recurrence.names[step.names[place]]
    return f"{name} ({'kept' if place in step.kept else 'dropped'})"
