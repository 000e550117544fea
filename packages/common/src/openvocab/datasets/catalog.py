"""The data sets of the project by name, and the names that other repositories give them."""

from __future__ import annotations

from openvocab.datasets.ade20k import ADE20K_150
from openvocab.datasets.ade20k_full import ADE20K_847
from openvocab.datasets.cityscapes import CITYSCAPES_19
from openvocab.datasets.coco_object import COCO_OBJECT_80, COCO_OBJECT_81
from openvocab.datasets.coco_stuff import COCO_STUFF_171
from openvocab.datasets.pascal_context import PASCAL_CONTEXT_59, PASCAL_CONTEXT_60
from openvocab.datasets.pascal_context_full import PASCAL_CONTEXT_459
from openvocab.datasets.spec import DatasetSpec, read_data
from openvocab.datasets.voc import VOC_20, VOC_20B, VOC_21

CATALOG: dict[str, DatasetSpec] = {
    "ade20k-150": ADE20K_150,
    "ade20k-847": ADE20K_847,
    "pascal-context-59": PASCAL_CONTEXT_59,
    "pascal-context-60": PASCAL_CONTEXT_60,
    "pascal-context-459": PASCAL_CONTEXT_459,
    "voc-20": VOC_20,
    "voc-20b": VOC_20B,
    "voc-21": VOC_21,
    "coco-stuff-171": COCO_STUFF_171,
    "coco-object-80": COCO_OBJECT_80,
    "coco-object-81": COCO_OBJECT_81,
    "cityscapes-19": CITYSCAPES_19,
}

# name -> {"name": canonical[:split], "layout": looked for first, "vocabulary": other spelling}
ALIASES: dict[str, dict[str, str]] = read_data("aliases.json")
