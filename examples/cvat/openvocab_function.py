"""CVAT's auto-annotation with any installed method, for the labels that you choose.

    cvat-cli task auto-annotate 137 --function-file openvocab_function.py \
        -p names=str:"cat,sofa,potted plant" -p method=str:san -p weights=str:world

CVAT's command line calls `create` with the parameters, and then `detect` for each image.
"""

from __future__ import annotations

import cvat_sdk.auto_annotation as cvataa
from cvat_sdk import models
from cvat_sdk.masks import encode_mask
from PIL import Image

from openvocab.formats.outlines import bridged, polygons_of
from openvocab.formats.regions import Region, box_of, result_of
from openvocab.methods import find_method
from openvocab.segmenter import Segmenter
from openvocab.vocabulary import parse_names


class OpenVocabularyFunction:
    """Finds names in images; one mask for each name, or polygons where CVAT asks for them.

    Args:
        segmenter: The method, loaded.
        names: The labels of the task, by their names.
    """

    def __init__(self, segmenter: Segmenter, names: list[str]) -> None:
        self.segmenter, self.names = segmenter, names

    @property
    def spec(self) -> cvataa.DetectionFunctionSpec:
        """Describe the labels to CVAT, which matches them by name with those of the task."""
        labels = [cvataa.label_spec(name, index) for index, name in enumerate(self.names)]
        return cvataa.DetectionFunctionSpec(labels=labels)

    def detect(
        self, context: cvataa.DetectionFunctionContext, image: Image.Image
    ) -> list[models.LabeledShapeRequest]:
        """Return the shapes of one image."""
        lowest = context.conf_threshold
        found = self.segmenter.segment(image, self.names, return_scores=lowest is not None)
        found = found.with_threshold(min_score=lowest)
        regions = result_of(found, context.frame_name).regions
        if context.conv_mask_to_poly:
            return [shape for region in regions for shape in _polygons(region)]
        return [_mask(region) for region in regions]


def _mask(region: Region) -> models.LabeledShapeRequest:
    left, top, width, height = box_of(region.mask)
    box = [left, top, left + width, top + height]
    return cvataa.mask(region.index, encode_mask(region.mask, box))


def _polygons(region: Region) -> list[models.LabeledShapeRequest]:
    """Return a polygon for each part; a hole is joined to the outline by a line without width."""
    rings = (bridged(part) for part in polygons_of(region.mask))
    return [cvataa.polygon(region.index, ring.ravel().tolist()) for ring in rings]


def create(
    names: str, method: str = "san", weights: str = "world", device: str = "cpu"
) -> OpenVocabularyFunction:
    """Load a method, for CVAT's command line.

    Args:
        names: What to look for, separated by commas.
        method: An installed method, such as "san".
        weights: What the method loads.
        device: Where it computes, such as "cpu" or "cuda".

    Raises:
        InputError: There is no such method, or the weights or names cannot be used.
    """
    segmenter = find_method(method).load(weights, device=device)
    return OpenVocabularyFunction(segmenter, list(parse_names([names])))
