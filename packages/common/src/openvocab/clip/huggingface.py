"""CLIP as transformers store it, with other names and with separate queries, keys and values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openvocab.errors import InputError
from openvocab.reading.json_files import read_json_file

_MARK = "vision_model.embeddings.patch_embedding.weight"
_WHOLE = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
}
_TRANSPOSED = {
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
}
_NORMS = {  # "pre_layrnorm" is how transformers spell it
    "text_model.final_layer_norm": "ln_final",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
}
_PARTS = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_LAYER = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_POSITIONS = re.compile(r"(?:text|vision)_model\.embeddings\.position_ids")
# What transformers leave out of a config because it is their default.
_DEFAULT_ACTIVATION, _DEFAULT_HEADS = "quick_gelu", {"vision_config": 12, "text_config": 8}


def is_huggingface(state_dict: Mapping[str, Any]) -> bool:
    """Return whether the names of tensors are those of transformers."""
    return _MARK in state_dict


def from_huggingface(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tensors under OpenAI's names.

    Raises:
        InputError: a layer misses its queries, keys or values.
    """
    ours: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        owner, _, kind = name.rpartition(".")
        if name in _WHOLE:
            ours[_WHOLE[name]] = value
        elif name in _TRANSPOSED:
            ours[_TRANSPOSED[name]] = value.mT
        elif owner in _NORMS:
            ours[f"{_NORMS[owner]}.{kind}"] = value
        elif match := _LAYER.fullmatch(name):
            ours |= _of_layer(state_dict, match, value)
        elif not _POSITIONS.fullmatch(name):
            ours[name] = value  # strict loading will name it
    return ours


def _of_layer(
    state_dict: Mapping[str, Tensor], match: re.Match[str], value: Tensor
) -> dict[str, Tensor]:
    tower, number, part, kind = match.groups()
    block = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{number}"
    if part in _PARTS:
        return {f"{block}.{_PARTS[part]}.{kind}": value}
    if part != "self_attn.q_proj":
        known = part in ("self_attn.k_proj", "self_attn.v_proj")  # taken with the queries
        return {} if known else {match[0]: value}
    layer = f"{tower}_model.encoder.layers.{number}.self_attn"
    names = [f"{layer}.{which}_proj.{kind}" for which in "qkv"]
    if missing := [name for name in names if name not in state_dict]:
        raise InputError(
            f"the weights miss {missing[0]}, which belongs to {names[0]}; fetch them again"
        )
    if len({state_dict[name].shape for name in names}) > 1:
        raise InputError(
            f"{names[0]} and the keys and values beside it differ in shape; fetch the weights again"
        )
    return {f"{block}.attn.in_proj_{kind}": torch.cat([state_dict[name] for name in names])}


def config_beside(path: Path) -> tuple[str, tuple[int, int]] | None:
    """Read activation and heads from the `config.json` or `open_clip_config.json` beside weights.

    Returns:
        The activation and the heads of image and text tower; None if there is no config of a CLIP.

    Raises:
        InputError: the config is damaged.
    """
    ours, theirs = path.with_name("open_clip_config.json"), path.with_name("config.json")
    if ours.is_file():
        content = read_json_file(ours, "open_clip's config", most_bytes=1 << 20)
        return _open_clip_choices(content, ours)
    if theirs.is_file():
        content = read_json_file(theirs, "config of a CLIP", most_bytes=1 << 20)
        if isinstance(content, dict) and content.get("model_type") == "clip":
            return _transformers_choices(content, theirs)
    return None


def _transformers_choices(content: Mapping[str, Any], path: Path) -> tuple[str, tuple[int, int]]:
    towers = [_section(content, name, path) for name in ("vision_config", "text_config")]
    activations = {str(tower.get("hidden_act", _DEFAULT_ACTIVATION)) for tower in towers}
    if len(activations) > 1:
        raise InputError(
            f"{path} gives the towers different activations, which is not supported; "
            "use other weights"
        )
    heads = [
        tower.get("num_attention_heads", default)
        for tower, default in zip(towers, _DEFAULT_HEADS.values(), strict=True)
    ]
    return activations.pop(), _heads(heads, path)


def _open_clip_choices(content: Any, path: Path) -> tuple[str, tuple[int, int]] | None:
    model = _section(content, "model_cfg", path)
    vision, text = (_section(model, name, path) for name in ("vision_cfg", "text_cfg"))
    if not isinstance(vision.get("layers"), int) or "heads" not in text:
        return None
    width, per_head = vision.get("width", 768), vision.get("head_width", 64)
    if type(width) is not int or type(per_head) is not int or per_head < 1:
        raise InputError(f"{path} is damaged: its widths are no whole numbers; fetch it again")
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return activation, _heads([width // per_head, text["heads"]], path)


def _section(content: Any, name: str, path: Path) -> Mapping[str, Any]:
    section = content.get(name, {}) if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise InputError(f"{path} has no section {name}; expected the config of a CLIP")
    return section


def _heads(heads: list[Any], path: Path) -> tuple[int, int]:
    if not all(type(count) is int and count > 0 for count in heads):
        raise InputError(f"{path} is damaged: its numbers of heads are {heads}; fetch it again")
    return heads[0], heads[1]
