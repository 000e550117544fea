"""Reads the original release's YAML files.

Source: SPEC car 0, 1 and 11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from car.config import CaRConfig
from openvocab.config import near_matches
from openvocab.errors import InputError
from openvocab.formats.detectron2 import read_yaml

# Keys that no code of the original reads.
UNUSED = frozenset(
    "min_area_ratio num_iteration stuff_mask_threshold has_pamr color visualize pretrained_data "
    "semantic_pretrained_data".split()
)
# What the original does where a key is missing and ours would do something else.
_MISSING = {"semantic_templates": None, "bg_cls": ()}
_SECTIONS = ("car", "camcut")  # the latter in its first release
DATASETS = {
    "voc": "voc21",
    "coco": "coco-object",
    "context": "pc60",
    "ade": "ade150",
    "ade_847": "ade847",
    "pascal_459": "pc459",
    "refcoco": "refcoco",
    "refcoco+": "refcoco+",
    "refcocog": "refcocog",
    "gres": "gres",
}


@dataclass(frozen=True)
class OriginalConfig:
    """The contents of a YAML file of the original.

    Attributes:
        values: fields of `CaRConfig`.
        image_path: path of the image of the demonstration.
        image_caption: names of the demonstration.
        test: the section on evaluation.
    """

    values: Mapping[str, Any]
    image_path: Path | None = None
    image_caption: tuple[str, ...] = ()
    test: Mapping[str, Any] = field(default_factory=dict)

    @property
    def named(self) -> str | None:
        """The named configuration of its data set.

        The original's file for RefCOCOg names RefCOCO+ by mistake; its `splitby` tells them apart.
        """
        if self.test.get("splitby") in ("umd", "google"):
            return "refcocog"
        return DATASETS.get(str(self.test.get("ds_name")))


def read_original(path: str | Path) -> OriginalConfig:
    """Read a YAML file of the original, or one of ours.

    Raises:
        InputError: it cannot be read, or has keys that nothing stands for.
    """
    content = read_yaml(path)
    section = next((name for name in _SECTIONS if name in content), None)
    if section is None:
        raise InputError(
            f"{path} has no section 'car'"
            + ("; rename its section 'cam', which is deprecated" if "cam" in content else "")
        )
    clips, test = _mapping(content, "clip", path), _mapping(content, "test", path)
    own = {one.name for one in fields(CaRConfig)}
    values: dict[str, Any] = {}
    given = {**_mapping(content, section, path), **_for_sam(_mapping(content, "sam", path))}
    for key, value in given.items():
        if key in own:
            values[key] = value
        elif key not in UNUSED:
            raise InputError(f"{path} has the unknown setting {key!r}; {near_matches(key, own)}")
    if "clip" in content:  # not in ours
        values = {**_MISSING, **values}
        values["clip"] = clip_source(str(clips.get("clip_model_name", "ViT-B/16")))
        judge = clips.get("semantic_clip_model_name", "ViT-L/14")
        values["classifier_clip"] = clip_source(str(judge))
        values["mode"] = test.get("seg_mode", "refer")
    for key in ("bg_cls", "stuff_visual_prompt_type"):
        if key in values and values[key] is None:
            values[key] = ()
    if isinstance(values.get("visual_prompt_type"), str):
        values["visual_prompt_type"] = values["visual_prompt_type"].split(",")
    return OriginalConfig(values, _image_path(content, Path(path)), _captions(content, path), test)


def clip_source(name: str) -> str:
    """Return the source for `load_clip` of a name in OpenAI's package, such as "ViT-L/14@336px"."""
    found = re.fullmatch(r"ViT-([A-Z])/(\d+)(?:@(\d+)px)?", name)
    if not found:
        return name
    model, patch, side = found.groups()
    return f"ViT-{model}-{patch}{f'-{side}' if side else ''}:openai"


def _for_sam(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of SAM that decide the matching; they override earlier ones."""
    return {key: section[key] for key in ("min_pred_threshold", "iom_thres") if key in section}


def _mapping(content: Mapping[str, Any], key: str, path: str | Path) -> Mapping[str, Any]:
    value = content.get(key, {})
    if not isinstance(value, Mapping):
        raise InputError(f"{path}: {key!r} is {value!r}; expected keys with values")
    return value


def _captions(content: Mapping[str, Any], path: str | Path) -> tuple[str, ...]:
    captions = content.get("image_caption", ())
    if isinstance(captions, str):
        captions = captions.split(",")
    if not isinstance(captions, list | tuple):
        raise InputError(f"{path}: image_caption is {captions!r}; expected a list of names")
    return tuple(str(caption) for caption in captions)


def _image_path(content: Mapping[str, Any], file: Path) -> Path | None:
    """Return the image, relative to where the command runs or to the file."""
    given = content.get("image_path")
    if given is None:
        return None
    beside = file.parent / str(given)
    return beside if beside.exists() and not Path(given).exists() else Path(given)
