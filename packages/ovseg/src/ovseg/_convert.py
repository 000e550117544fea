"""Readers of foreign files: detectron2 configurations, official checkpoints, CLIPs and backbones.

Module names give the official state-dict keys, so no tensor is renamed; what is left is reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openvocab.clip._torchscript import is_torchscript
from openvocab.clip.config import Activation, CLIPConfig
from openvocab.clip.weights import build_clip, config_from_state_dict, load_clip, stored_choices
from openvocab.errors import InputError
from openvocab.formats.detectron2 import read_checkpoint
from openvocab.formats.overrides import check_types
from openvocab.weights.state_dict import load_strict, unwrap_state_dict
from ovseg.config import (
    VIT_B_16,
    VIT_L_14,
    InferenceConfig,
    OVSegConfig,
    RegionConfig,
    ResNetConfig,
    SwinConfig,
)
from ovseg.option_keys import ADAPTER, INPUT, MODEL, OPTIONS, REGION, SWIN

CLIP_PREFIX = "clip_adapter.clip_model."
PROMPTS = "visual.mask_embedding"

_CLIPS = {"ViT-B/16": VIT_B_16, "ViT-L/14": VIT_L_14}
_RESNET_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_Table = Mapping[str, tuple[str, Any]]


def config_from_detectron2(
    data: Mapping[str, Any], *, clip: CLIPConfig | None = None
) -> tuple[OVSegConfig, InferenceConfig]:
    """Translate a resolved configuration of the original program.

    Args:
        data: the merged YAML, as `openvocab.formats.detectron2.read_yaml` returns it.
        clip: the CLIP, for a CLIP_MODEL_NAME that is neither "ViT-L/14" nor "ViT-B/16".

    Raises:
        InputError: for a model or an option that cannot be run; see SPEC ovseg 16.1.

    Source: SPEC ovseg 2, also for the values of options that a file leaves out.
    """
    data = check_types(data, OPTIONS, "the configuration")
    architecture = _at(data, "MODEL.META_ARCHITECTURE")
    if architecture not in ("OVSeg", "OVSegDEMO"):
        raise InputError(
            f"META_ARCHITECTURE is {architecture!r}; this program runs OVSeg and OVSegDEMO"
        )
    refuse_options(data)
    name = _at(data, "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME", "ViT-B/16")
    clip = clip or _CLIPS.get(name)
    if clip is None:
        raise InputError(
            f"CLIP_MODEL_NAME is {name!r}, which does not tell CLIP's size; give ViT-L/14 or "
            "ViT-B/16, or weights that contain the CLIP"
        )
    model = data["MODEL"]
    config = OVSegConfig(backbone=_backbone(model), clip=clip, **_fields(model, MODEL))
    inference = _inference(data)
    return config, replace(inference, mode="demo" if architecture == "OVSegDEMO" else "eval")


def override(
    architecture: OVSegConfig, inference: InferenceConfig, data: Mapping[str, Any]
) -> tuple[OVSegConfig, InferenceConfig]:
    """Change only the settings that detectron2's keys in `data` name."""
    data = check_types(data, OPTIONS, "the configuration")
    refuse_options(data)
    return _changed(architecture, data.get("MODEL", {})), _run_otherwise(inference, data)


def _changed(architecture: OVSegConfig, model: Mapping[str, Any]) -> OVSegConfig:
    changes = _fields(model, MODEL, defaults=False)
    swin = _fields(model.get("SWIN", {}), SWIN, defaults=False)
    if swin:
        if not isinstance(architecture.backbone, SwinConfig):
            raise InputError("MODEL.SWIN changes a Swin Transformer; this model has a ResNet")
        changes["backbone"] = replace(architecture.backbone, **swin)
    return replace(architecture, **changes)


def _run_otherwise(inference: InferenceConfig, data: Mapping[str, Any]) -> InferenceConfig:
    adapter = _at(data, "MODEL.CLIP_ADAPTER", {})
    region = replace(inference.region, **_fields(adapter, REGION, defaults=False))
    changes = _fields(adapter, ADAPTER, defaults=False)
    changes |= _fields(data.get("INPUT", {}), INPUT, defaults=False)
    if "TEXT_TEMPLATES" in adapter:
        changes |= _templates(adapter)
    return replace(inference, region=region, **changes)


def refuse_options(data: Mapping[str, Any]) -> None:
    """Raise InputError for options on which the original crashes.

    Source: SPEC ovseg 16.1.
    """
    if not _at(data, "MODEL.CLIP_ADAPTER.REGION_RESIZED", True):
        raise InputError(
            "REGION_RESIZED False cannot work: CLIP takes regions of its input size only; set it "
            "to True"
        )
    if _at(data, "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False):
        raise InputError("PANOPTIC_ON is not supported: OVSeg segments semantically; set it False")
    if _at(data, "MODEL.MASK_FORMER.ENC_LAYERS", 0) or _at(data, "MODEL.MASK_FORMER.PRE_NORM"):
        raise InputError("ENC_LAYERS must be 0 and PRE_NORM False, as in every published OVSeg")


def clip_config_of(state_dict: Mapping[str, Tensor]) -> CLIPConfig | None:
    """Return the architecture of the CLIP in an OVSeg checkpoint, or None if it holds no CLIP."""
    tensors = _clip_tensors(state_dict)
    if f"{CLIP_PREFIX}visual.conv1.weight" not in state_dict:
        return None
    return config_from_state_dict(tensors, "quick_gelu", heads=_heads_of_ovseg(tensors))


def _heads_of_ovseg(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return the numbers of heads of the CLIP in a checkpoint of the original program.

    The original builds every CLIP as OpenAI's code does, with one head for each 64 channels, so
    this is exact, whereas it would be a guess for other CLIPs.

    Source: SPEC ovseg 4.
    """
    widths = len(tensors["visual.conv1.weight"]), tensors["ln_final.weight"].numel()
    return max(widths[0] // 64, 1), max(widths[1] // 64, 1)


def read_mask_clip(
    source: str | Path | Mapping[str, Tensor],
    activation: Activation | None,
    heads: tuple[int, int] | None = None,
) -> tuple[CLIPConfig, dict[str, Tensor], bool]:
    """Read a CLIP with mask prompts from any of the forms that `MaskCLIP.load` takes.

    Args:
        source: weights in any form that `MaskCLIP.load` takes.
        activation: activation function for weights that do not name theirs.
        heads: numbers of heads of the image and the text tower, for weights that do not name
            theirs.

    Returns:
        The architecture, its tensors with `visual.mask_embedding`, and whether the source had
        mask prompts (else they are zeros, not to be used).
    """
    if not isinstance(source, Mapping) and _is_checkpoint(source):
        tensors = read_checkpoint(source)
    elif isinstance(source, Mapping):
        tensors = unwrap_state_dict(source, source="the state dict")
    else:
        tensors = {}
    if not isinstance(source, Mapping):
        activation, stored = stored_choices(source, activation)
        heads = stored or heads
    ours = _clip_tensors(tensors) or {k: v for k, v in tensors.items() if k != "attn_mask"}
    if PROMPTS in ours or f"{CLIP_PREFIX}visual.proj" in tensors:
        # Every published mask-adapted CLIP descends from OpenAI's.
        if {"visual.conv1.weight", "ln_final.weight"} <= ours.keys():
            heads = heads or _heads_of_ovseg(ours)
        config = config_from_state_dict(
            ours, activation or "quick_gelu", heads=heads, origin=str(source)[:200]
        )
    else:
        clip = (
            build_clip(ours, activation, heads=heads, origin=str(source))
            if ours
            else load_clip(source, activation=activation, heads=heads)
        )
        config, ours = clip.config, dict(clip.state_dict())
    prompted = PROMPTS in ours
    if not prompted:
        ours[PROMPTS] = torch.zeros(1, config.vision.grid_size**2, config.vision.width)
    return config, expand_prompts(ours, PROMPTS, config), prompted


def expand_prompts(
    tensors: Mapping[str, Tensor], name: str, config: CLIPConfig
) -> dict[str, Tensor]:
    """Repeat prompts that are shared by all positions, (depth, 1, width), for each of them."""
    result = dict(tensors)
    if name in result and result[name].ndim == 3 and result[name].shape[1] == 1:
        result[name] = result[name].expand(-1, config.vision.grid_size**2, -1).clone()
    return result


def load_backbone(backbone: nn.Module, path: str | Path) -> list[str]:
    """Load an ImageNet-pretrained backbone, with the authors' names or those of detectron2.

    Args:
        backbone: `SwinTransformer` or `ResNet`.
        path: a checkpoint of Swin (`.pth`, `.pkl`) or of detectron2's ResNets (`.pkl`).

    Returns:
        The backbone's tensors that the file does not have, and that keep their values.

    Raises:
        InputError: if a tensor has another shape, or most are missing.
    """
    found = {k.removeprefix("backbone."): v for k, v in read_checkpoint(path).items()}
    own = backbone.state_dict()
    tensors = {k: found.get(k, v) for k, v in own.items()}
    missing = [k for k in own if k not in found]
    if len(missing) > len(own) // 2:
        raise InputError(
            f"{path} is no checkpoint of this backbone: {len(missing)} of {len(own)} tensors are "
            f"missing, such as {missing[0]}; "
            "give weights of this backbone"
        )
    load_strict(backbone, tensors, source=str(path))
    return missing


def _inference(data: Mapping[str, Any]) -> InferenceConfig:
    adapter = _at(data, "MODEL.CLIP_ADAPTER", {})
    return InferenceConfig(
        region=RegionConfig(**_fields(adapter, REGION)),
        **_templates(adapter),
        **_fields(adapter, ADAPTER),
        **_fields(data.get("INPUT", {}), INPUT),
    )


def _templates(adapter: Mapping[str, Any]) -> dict[str, Any]:
    name: str = adapter.get("TEXT_TEMPLATES", "vild")
    if name == "predefined":
        own = adapter.get("PREDEFINED_PROMPT_TEMPLATES", ["a photo of a {}."])
        return {"own_templates": tuple(own)}
    return {"template_set": name}


def _backbone(model: Mapping[str, Any]) -> SwinConfig | ResNetConfig:
    name = _at(model, "BACKBONE.NAME")
    if name == "D2SwinTransformer":
        return SwinConfig(**_fields(model.get("SWIN", {}), SWIN))
    if name == "build_resnet_deeplab_backbone":
        resnet = model.get("RESNETS", {})
        depth = resnet.get("DEPTH", 50)
        if depth not in _RESNET_DEPTHS:
            raise InputError(f"RESNETS.DEPTH is {depth}; give 50, 101 or 152")
        return ResNetConfig(
            depths=_RESNET_DEPTHS[depth],
            stem_channels=resnet.get("STEM_OUT_CHANNELS", 64),
            res2_channels=resnet.get("RES2_OUT_CHANNELS", 256),
            res5_dilations=tuple(resnet.get("RES5_MULTI_GRID", (1, 2, 4))),
            freeze_at=_at(model, "BACKBONE.FREEZE_AT", 2),
        )
    raise InputError(
        f"BACKBONE.NAME is {name!r}; give D2SwinTransformer or build_resnet_deeplab_backbone"
    )


def _fields(data: Mapping[str, Any], table: _Table, *, defaults: bool = True) -> dict[str, Any]:
    """Collect our fields from detectron2's keys; lists become tuples."""
    fields = {}
    for key, (field, default) in table.items():
        value = _at(data, key, default if defaults else None)
        if value is not None:
            fields[field] = tuple(value) if isinstance(value, list) else value
    return fields


def _at(data: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Return the value of a dotted key."""
    value: Any = data
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def _clip_tensors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        k.removeprefix(CLIP_PREFIX): v for k, v in state_dict.items() if k.startswith(CLIP_PREFIX)
    }


def _is_checkpoint(source: str | Path) -> bool:
    return Path(source).is_file() and not is_torchscript(Path(source))
