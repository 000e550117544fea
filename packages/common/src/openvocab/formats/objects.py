"""Results as objects of other libraries: supervision, FiftyOne and PyTorch; and as a table."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import numpy as np

from openvocab.drawing.overlay import label_shares
from openvocab.errors import import_extra
from openvocab.formats.regions import box_of
from openvocab.formats.run_length import Mask

if TYPE_CHECKING:
    from torch import Tensor

    from openvocab.segmenter import Segmentation


class Table(list[dict[str, Any]]):
    """Rows of a table, which a notebook shows as a table and `pandas.DataFrame` takes as it is."""

    def _cells(self) -> list[list[str]]:
        titles = list(self[0]) if self else []
        return [titles, *([_text(row[title]) for title in titles] for row in self)]

    def __repr__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head, *rows = self._cells()
        lines = [_html_row(head, "th"), *(_html_row(row, "td") for row in rows)]
        return f"<table>{''.join(lines)}</table>"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _html_row(cells: list[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def to_table(found: Segmentation) -> Table:
    """Return a row for each name that was found, with the largest first.

    A row has the `label` (its value in the label map), the `name`, its number of `pixels`, its
    `share` of the image in 0..1, and the `score` where it is known, otherwise None.
    """
    scores = found.label_scores()
    return Table(
        {
            "label": index,
            "name": found.vocabulary.names[index],
            "pixels": round(share * found.labels.size),
            "share": share,
            "score": scores.get(index),
        }
        for index, share in label_shares(found.labels)
    )


def _regions(found: Segmentation) -> tuple[list[int], list[Mask], list[float]]:
    """Return the labels that occur, largest first, their masks, and their scores or nothing."""
    labels = [index for index, _ in label_shares(found.labels)]
    scores = found.label_scores()
    masks = [found.labels == index for index in labels]
    return labels, masks, [scores[index] for index in labels] if scores else []


def _corners(mask: Mask) -> tuple[int, int, int, int]:
    left, top, width, height = box_of(mask)
    return left, top, left + width, top + height


def to_supervision(found: Segmentation) -> Any:
    """Return `supervision.Detections` with one mask for each name, the largest first.

    Raises:
        InputError: supervision is not installed.
    """
    supervision = import_extra("supervision", "supervision", "to_supervision()")
    labels, masks, scores = _regions(found)
    if not labels:
        return supervision.Detections.empty()
    return supervision.Detections(
        xyxy=np.array([_corners(mask) for mask in masks], np.float32),
        mask=np.stack(masks),
        confidence=np.array(scores, np.float32) if scores else None,
        class_id=np.array(labels),
        data={"class_name": np.array([found.vocabulary.names[index] for index in labels])},
    )


def to_fiftyone(found: Segmentation) -> Any:
    """Return `fiftyone.Detections` with one mask for each name, the largest first.

    Raises:
        InputError: FiftyOne is not installed.
    """
    fiftyone = import_extra("fiftyone", "fiftyone", "to_fiftyone()")
    height, width = found.labels.shape
    labels, masks, scores = _regions(found)
    detections = []
    for place, (index, mask) in enumerate(zip(labels, masks, strict=True)):
        left, top, wide, high = box_of(mask)
        detections.append(
            fiftyone.Detection(
                label=found.vocabulary.names[index],
                bounding_box=[left / width, top / height, wide / width, high / height],
                mask=mask[top : top + high, left : left + wide],
                confidence=scores[place] if scores else None,
            )
        )
    return fiftyone.Detections(detections=detections)


def to_torch(found: Segmentation) -> dict[str, Tensor]:
    """Return tensors as torchvision's detection models do, and the label map.

    Returns:
        `label_map` (H, W) int64 with -1 where there is no name, and for N names, largest first,
        `labels` (N,) int64, `masks` (N, H, W) bool, `boxes` (N, 4) float32 as left, top, right and
        bottom in pixels, and `scores` (N,) float32 where they are known.
    """
    import torch  # not needed for anything else here

    labels, masks, scores = _regions(found)
    size = (0, *found.labels.shape)
    tensors = {
        "label_map": torch.from_numpy(found.labels.astype(np.int64)),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.from_numpy(np.stack(masks) if masks else np.zeros(size, np.bool_)),
        "boxes": torch.tensor([_corners(mask) for mask in masks]).float().reshape(-1, 4),
    }
    return {**tensors, "scores": torch.tensor(scores)} if scores or not labels else tensors
