"""Data sets as they lie on disks: names, layouts, label maps, preparation."""

from __future__ import annotations

from openvocab.datasets.catalog import ALIASES, CATALOG
from openvocab.datasets.labelled_set import LabelledSet
from openvocab.datasets.resolver import resolve
from openvocab.datasets.spec import DatasetSpec, Layout

__all__ = ["ALIASES", "CATALOG", "DatasetSpec", "LabelledSet", "Layout", "resolve"]
