"""Reading CLIP weights in every form in which they are distributed, and building the model.

The activation function belongs to the weights: with the wrong one, a model still computes results,
but wrong ones. It is therefore read from the source of the weights, and has to be given where the
source does not name it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from openvocab.clip._torchscript import (
    is_torchscript,
    read_torchscript,
    torchscript_activation,
)
from openvocab.clip.config import (
    PIXEL_MEAN,
    PIXEL_STD,
    Activation,
    CLIPConfig,
    TextConfig,
    VisionConfig,
)
from openvocab.clip.heads import known_heads
from openvocab.clip.huggingface import config_beside, from_huggingface, is_huggingface
from openvocab.clip.model import CLIP
from openvocab.errors import InputError, shorten_value
from openvocab.reading.json_files import parse_json
from openvocab.vocabulary import WORLD
from openvocab.weights.hub import fetch_open_clip
from openvocab.weights.shipped import world_file
from openvocab.weights.state_dict import (
    fill,
    read_metadata,
    read_state_dict,
    unfilled,
    unwrap_state_dict,
)

Source = str | Path | tuple[str, str] | Mapping[str, Tensor] | nn.Module

_ACTIVATIONS = ("quick_gelu", "gelu")
_FOLDER_FILES = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    *("model.safetensors", "pytorch_model.bin"),
)
_LONGEST_CONTEXT = 4096  # tokens
# Not weights: scalars of OpenAI's archives, and the causal mask that old open_clip models stored.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")


def load_clip(
    source: Source,
    *,
    activation: Activation | None = None,
    heads: tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> CLIP:
    """Load a CLIP, with frozen parameters and in evaluation mode.

    Args:
        source: a name and tag that open_clip knows, `("ViT-B-16", "openai")` or
            `"ViT-B-16:openai"`; "world", the small CLIP of the embedded world; a path
            (safetensors, open_clip checkpoint, OpenAI's TorchScript archive, a file or folder of
            Hugging Face's transformers); a state dict; or a model object of `openai/CLIP` or
            open_clip.
        activation: "quick_gelu" or "gelu", for weights that do not say it themselves.
        heads: numbers of heads of the image and the text tower, for weights of an unpublished
            architecture that do not name theirs.
        device: device of the model.
        dtype: number format of the parameters.

    Raises:
        InputError: unknown name, unreadable or foreign weights, weights that could only be read by
            running their code, an activation that is not known or contradicts the weights.
    """
    if activation not in (None, *_ACTIVATIONS):
        raise InputError(f"activation {activation!r} is unknown; use 'quick_gelu' or 'gelu'")
    if isinstance(source, nn.Module):
        clip = _from_module(source, activation)
    elif isinstance(source, Mapping):
        clip = build_clip(_copied(source), activation, heads=heads, origin="the state dict")
    else:
        clip = _from_name_or_path(source, activation, heads)
    return clip.to(device=device, dtype=dtype).eval().requires_grad_(False)


def build_clip(
    state_dict: Mapping[str, Tensor],
    activation: Activation | None,
    *,
    heads: tuple[int, int] | None = None,
    origin: str,
) -> CLIP:
    """Build the CLIP whose architecture the shapes of a state dict determine, and load it strictly.

    Args:
        state_dict: OpenAI's or open_clip's names; the CLIP takes the tensors over.
        activation: activation function with which the weights were trained.
        heads: numbers of heads of the image and the text tower; None for those of the published
            architecture.
        origin: description of where the weights come from, for errors.
    """
    tensors = _openai_names(state_dict)
    config = config_from_state_dict(tensors, activation, heads=heads, origin=origin)
    return _build(config, tensors, origin=origin)


def config_from_state_dict(
    state_dict: Mapping[str, Tensor],
    activation: Activation | None,
    *,
    heads: tuple[int, int] | None = None,
    origin: str = "the state dict",
) -> CLIPConfig:
    """Return the architecture that the shapes of a state dict with OpenAI's names determine.

    Raises:
        InputError: the tensors are not those of a CLIP with a ViT, or the activation is unknown.
    """
    if "visual.conv1.weight" not in state_dict or "visual.proj" not in state_dict:
        raise InputError(
            f"{origin} is no CLIP with a plain ViT image tower (no visual.conv1.weight and "
            "visual.proj among its tensors); ResNet CLIPs, SigLIP and CoCa are not supported"
        )
    if activation is None:
        raise InputError(
            f"{origin} does not say which activation it was trained with; pass "
            "activation='quick_gelu' (OpenAI, DFN, MetaCLIP) or activation='gelu' (LAION)"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    width, _, patch, _ = _shape(shapes, "visual.conv1.weight", 4, origin)
    stem = _stem(shapes)
    patch <<= len(stem)
    positions, _ = _shape(shapes, "visual.positional_embedding", 2, origin)
    grid = round((positions - 1) ** 0.5)
    vocab_size, text_width = _shape(shapes, "token_embedding.weight", 2, origin)
    context_length, _ = _shape(shapes, "positional_embedding", 2, origin)
    if context_length > _LONGEST_CONTEXT:
        raise InputError(
            f"{origin} is no CLIP: its texts would have {context_length} tokens; "
            "give weights of a CLIP"
        )
    image_layers = _layers(state_dict, "visual.transformer.resblocks", origin)
    text_layers = _layers(state_dict, "transformer.resblocks", origin)
    if heads is None:
        heads = known_heads((width, image_layers), (text_width, text_layers), origin=origin)
    for channels, count in zip((width, text_width), heads, strict=True):
        if count < 1 or channels % count:
            raise InputError(
                f"{origin} cannot have {count} heads: its width is {channels}; "
                "give a number that divides the width"
            )
    mlp = "transformer.resblocks.0.mlp.c_fc.bias"
    return CLIPConfig(
        embed_dim=_shape(shapes, "visual.proj", 2, origin)[1],
        vision=VisionConfig(
            image_size=grid * patch,
            patch_size=patch,
            width=width,
            layers=image_layers,
            heads=heads[0],
            mlp_width=_shape(shapes, f"visual.{mlp}", 1, origin)[0],
            stem=stem,
        ),
        text=TextConfig(
            context_length=context_length,
            vocab_size=vocab_size,
            width=text_width,
            layers=text_layers,
            heads=heads[1],
            mlp_width=_shape(shapes, mlp, 1, origin)[0],
            reduced="token_ids" in shapes,
        ),
        activation=activation,
    )


def _shape(
    shapes: Mapping[str, tuple[int, ...]], name: str, axes: int, origin: str
) -> tuple[int, ...]:
    """Return the shape of a tensor on which the architecture depends.

    Raises:
        InputError: the tensor is missing, empty, or has other axes.
    """
    shape = shapes.get(name, ())
    if len(shape) != axes or 0 in shape:
        found = f"is {shape}" if name in shapes else "is missing"
        raise InputError(
            f"{origin} is no CLIP: its tensor {name} {found}, not of {axes} axes; "
            "give weights of a CLIP"
        )
    return shape


def stored_choices(
    path: str | Path, activation: Activation | None = None
) -> tuple[Activation | None, tuple[int, int] | None]:
    """Return the activation and the heads that a file stores, since shapes do not determine them.

    Args:
        path: path of a file; only our own files hold these settings.
        activation: activation function that the caller asks for.

    Raises:
        InputError: the caller's settings contradict the file.
    """
    if not Path(path).is_file():
        return activation, None
    metadata = read_metadata(path)
    if "activation" not in metadata and "heads" not in metadata:
        beside = config_beside(Path(path))
        if beside is None:
            return activation, None
        return _agree(activation, beside[0], str(path)), beside[1]
    stored, heads = (
        parse_json(metadata.get(key, "null"), f"{key} in {path}", "a value")
        for key in ("activation", "heads")
    )
    whole = isinstance(heads, list) and len(heads) == 2 and all(type(n) is int for n in heads)
    if heads is not None and not whole:
        raise InputError(
            f"{path} is damaged: its numbers of heads are {shorten_value(heads)}; fetch it again"
        )
    return _agree(activation, stored, str(path)), tuple(heads) if heads else None


def choices_of(config: CLIPConfig) -> dict[str, Any]:
    """Return the metadata from which `stored_choices` reads the activation and the heads."""
    return {
        "activation": config.activation,
        "heads": (config.vision.heads, config.text.heads),
    }


def open_clip_config(name: str, activation: Activation) -> CLIPConfig:
    """Return the architecture that open_clip knows by a name, with a given activation.

    Raises:
        InputError: unknown to open_clip, or not a plain ViT with a plain text transformer.
    """
    import open_clip  # here and below: its import takes longer than all the rest of ours

    known = open_clip.get_model_config(name.replace("/", "-"))
    if known is None:
        raise InputError(
            f"CLIP model {name!r} is unknown to open_clip; known are for example ViT-B-32, "
            "ViT-B-16, ViT-L-14, ViT-L-14-336 (all: open_clip.list_models())"
        )
    vision, text = known["vision_cfg"], known["text_cfg"]
    if not isinstance(vision.get("layers"), int) or "hf_model_name" in text:
        raise InputError(f"CLIP model {name!r} has no plain ViT and text transformer; use a ViT")
    width = vision["width"]
    return CLIPConfig(
        embed_dim=known["embed_dim"],
        vision=VisionConfig(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            width=width,
            layers=vision["layers"],
            heads=width // vision.get("head_width", 64),
            mlp_width=int(width * vision.get("mlp_ratio", 4.0)),
        ),
        text=TextConfig(
            context_length=text.get("context_length", 77),
            vocab_size=text.get("vocab_size", 49408),
            width=text["width"],
            layers=text["layers"],
            heads=text["heads"],
            mlp_width=int(text["width"] * text.get("mlp_ratio", 4.0)),
        ),
        activation=activation,
    )


def _from_name_or_path(
    source: str | Path | tuple[str, str],
    activation: Activation | None,
    heads: tuple[int, int] | None,
) -> CLIP:
    if source == WORLD:
        return _from_file(world_file("openvocab.clip"), activation, heads)
    if isinstance(source, (str, Path)) and Path(source).exists():
        return _from_file(_file_in(Path(source)), activation, heads)
    text = ":".join(source) if isinstance(source, tuple) else str(source)
    if match := re.fullmatch(r"([\w/.-]+):([\w.-]+)", text):
        return _from_hub(match[1].replace("/", "-"), match[2], activation)
    raise InputError(
        f"{text!r} is neither a file nor a CLIP name with its tag; give a path or, for example, "
        "ViT-B-16:openai"
    )


def _file_in(path: Path) -> Path:
    """Return a file, or the weights in a folder as transformers and open_clip leave them."""
    if not path.is_dir():
        return path
    for name in _FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise InputError(f"the folder {path} holds none of {', '.join(_FOLDER_FILES)}; give a file")


def _from_file(path: Path, activation: Activation | None, heads: tuple[int, int] | None) -> CLIP:
    if is_torchscript(path):
        told = _agree(activation, torchscript_activation(path), str(path))
        return build_clip(read_torchscript(path), told, heads=heads, origin=str(path))
    told, stored = stored_choices(path, activation)
    if heads and stored and tuple(heads) != stored:
        raise InputError(f"{path} has {stored} heads, not {tuple(heads)}; leave them out")
    return build_clip(read_state_dict(path), told, heads=stored or heads, origin=str(path))


def _from_hub(name: str, tag: str, activation: Activation | None) -> CLIP:
    import open_clip

    weights = open_clip.get_pretrained_cfg(name, tag)
    if not weights:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise InputError(f"open_clip knows no weights {tag!r} for {name!r}; known tags: {tags}")
    if tuple(weights.get("mean", PIXEL_MEAN)) != PIXEL_MEAN or weights.get("std") not in (
        None,
        PIXEL_STD,
    ):
        raise InputError(f"{name}:{tag} expects pixels normalised in its own way; not supported")
    stored: Activation = "quick_gelu" if weights.get("quick_gelu") else "gelu"
    config = open_clip_config(name, _agree(activation, stored, f"{name}:{tag}") or stored)
    path = fetch_open_clip(weights, f"{name}:{tag}")
    tensors = read_torchscript(path) if is_torchscript(path) else read_state_dict(path)
    return _build(config, _openai_names(tensors), origin=f"{name}:{tag}")


def _build(config: CLIPConfig, tensors: Mapping[str, Tensor], *, origin: str) -> CLIP:
    with unfilled():
        clip = CLIP(config)
    fill(clip.float(), tensors, source=origin)
    return clip


def _from_module(module: nn.Module, activation: Activation | None) -> CLIP:
    """Copy a model object of openai/CLIP or open_clip; its classes tell activation and heads."""
    origin = f"the {type(module).__name__} object"
    found = {
        "quick_gelu" if type(part).__name__ == "QuickGELU" else "gelu"
        for part in module.modules()
        if type(part).__name__ in ("QuickGELU", "GELU")
    }
    if len(found) > 1:
        raise InputError(f"{origin} mixes QuickGELU and GELU; its towers must use the same")
    stored = cast("Activation | None", next(iter(found), None))
    blocks = dict(module.named_modules())
    text = "text." if "text.transformer.resblocks.0.attn" in blocks else ""
    towers = [blocks.get(f"{name}transformer.resblocks.0.attn") for name in ("visual.", text)]
    heads: Any = tuple(getattr(a, "num_heads", getattr(a, "heads", None)) for a in towers)
    told = _agree(activation, stored, origin)
    tensors = _copied(module.state_dict())
    return build_clip(tensors, told, heads=heads if None not in heads else None, origin=origin)


def _copied(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the tensors of somebody else, since a model takes over what it is built of."""
    copied = {}
    for name, value in state_dict.items():
        copied[name] = value.clone() if isinstance(value, Tensor) else value
        if isinstance(value, Mapping):  # a wrapper, such as {"model": ...}
            copied[name] = _copied(value)
    return copied


def _agree(asked: Activation | None, stored: Any, origin: str) -> Activation | None:
    """Return the activation that the weights name, or the given one; both must agree."""
    if stored is not None and stored not in _ACTIVATIONS:
        raise InputError(f"{origin} names an unknown activation {stored!r}")
    if asked and stored and asked != stored:
        raise InputError(f"{origin} was trained with {stored}, not with {asked}; leave it out")
    return cast("Activation | None", stored or asked)


def _openai_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove wrappers and the `text.` of open_clip's custom text towers from the names."""
    tensors = unwrap_state_dict(state_dict, source="the state dict")
    tensors = {name.removeprefix("text."): value for name, value in tensors.items()}
    if is_huggingface(tensors):
        tensors = from_huggingface(tensors)
    return {name: value for name, value in tensors.items() if name not in _NOT_WEIGHTS}


def _stem(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the channels of the convolutions before the patch embedding."""
    pattern = re.compile(r"visual\.stem\.(\d+)\.weight")
    found = {int(m[1]): shape[0] for name, shape in shapes.items() if (m := pattern.match(name))}
    return tuple(channels for _, channels in sorted(found.items()))


def _layers(state_dict: Mapping[str, Tensor], prefix: str, origin: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"\.(\d{1,4})\.")
    numbers = {int(m[1]) for name in state_dict if (m := pattern.match(name))}
    if not numbers or max(numbers) >= len(numbers):
        raise InputError(
            f"{origin} is no whole CLIP: some of its layers {prefix} are missing; give a whole one"
        )
    return len(numbers)
