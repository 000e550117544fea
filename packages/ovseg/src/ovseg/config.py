"""The architecture of OVSeg (`OVSegConfig`) and its rules of inference (`InferenceConfig`).

The published variants are the YAML files in `configs/`, one for each row of the paper's table.

Source: SPEC ovseg 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from typing import Any, Literal, TypeVar

from openvocab.clip.config import CLIPConfig, TextConfig, VisionConfig
from openvocab.errors import InputError
from openvocab.reading.yaml_files import packaged_yaml
from openvocab.vocabulary import WORLD

Mode = Literal["eval", "demo"]
_T = TypeVar("_T")

METADATA = "ovseg"  # under which a checkpoint stores what `to_dict` gives


@dataclass(frozen=True)
class SwinConfig:
    """A Swin Transformer; the defaults are Swin-B with windows of 12."""

    embed_dim: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 12
    drop_path: float = 0.3

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of res2 to res5."""
        return tuple(self.embed_dim * 2**i for i in range(len(self.depths)))


@dataclass(frozen=True)
class ResNetConfig:
    """A bottleneck ResNet with DeepLab's stem; the defaults are ResNet-101c."""

    depths: tuple[int, ...] = (3, 4, 23, 3)
    stem_channels: int = 64
    res2_channels: int = 256
    res5_dilations: tuple[int, ...] = (1, 2, 4)
    freeze_at: int = 2

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of res2 to res5."""
        return tuple(self.res2_channels * 2**i for i in range(len(self.depths)))


VIT_B_16 = CLIPConfig(
    embed_dim=512,
    vision=VisionConfig(224, 16, 768, 12, 12, 3072),
    text=TextConfig(77, 49408, 512, 12, 8, 2048),
    activation="quick_gelu",
)
VIT_L_14 = CLIPConfig(
    embed_dim=768,
    vision=VisionConfig(224, 14, 1024, 24, 16, 4096),
    text=TextConfig(77, 49408, 768, 12, 12, 3072),
    activation="quick_gelu",
)
_CLIPS = {"ViT-B/16": VIT_B_16, "ViT-L/14": VIT_L_14}


@dataclass(frozen=True)
class OVSegConfig:
    """The architecture, which determines all tensors of a checkpoint.

    Source: SPEC ovseg 2, "Shared".
    """

    backbone: SwinConfig | ResNetConfig = field(default_factory=SwinConfig)
    clip: CLIPConfig = VIT_L_14
    convs_dim: int = 256
    mask_dim: int = 256
    hidden_dim: int = 256
    num_queries: int = 100
    heads: int = 8
    feedforward: int = 2048
    decoder_layers: int = 6
    dropout: float = 0.1
    embed_hidden_dim: int = 1024
    embed_layers: int = 2
    mask_prompt_depth: int = 3
    num_training_classes: int = 171
    no_object_weight: float = 0.1
    size_divisibility: int = 32
    pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class RegionConfig:
    """The rules by which a proposal becomes an input of CLIP.

    Attributes:
        mask_threshold: a pixel belongs to a proposal where its probability is above this, 0..1.
        mask_fill: replacement of the background: CLIP's mean color or black.
        expand_ratio: factor by which the tight box grows about its center; at least 1.
        matting: blend with the probabilities themselves instead of the thresholded mask.
        mask_prompts: replace background patches by the learned prompts.
        max_regions: None, or the number of best-scored proposals that CLIP sees (trades accuracy).
        memory_mb: about how much memory a batch of regions may take on its way through CLIP.
    """

    mask_threshold: float = 0.4
    mask_fill: Literal["mean", "zero"] = "mean"
    expand_ratio: float = 1.0
    matting: bool = False
    mask_prompts: bool = True
    max_regions: int | None = None
    memory_mb: int = 96

    def __post_init__(self) -> None:
        if not 0 <= self.mask_threshold <= 1:
            raise InputError(
                f"mask_threshold is {self.mask_threshold}; give a probability between 0 and 1"
            )
        if self.mask_fill not in ("mean", "zero"):
            raise InputError(f"mask_fill is {self.mask_fill!r}; give 'mean' or 'zero'")
        if not self.expand_ratio >= 1:
            raise InputError(f"expand_ratio is {self.expand_ratio}; give a number of at least 1")
        if self.max_regions is not None and self.max_regions < 1:
            raise InputError(f"max_regions is {self.max_regions}; give at least 1, or leave it out")
        if self.memory_mb < 1:
            raise InputError(f"memory_mb is {self.memory_mb}; give at least 1")


@dataclass(frozen=True)
class InferenceConfig:
    """The rules of inference.

    Attributes:
        mode: "eval" sums soft masks weighted by class probabilities; "demo" keeps the best proposal
            of each class and leaves all other pixels blank.
        region: rules by which proposals become inputs of CLIP.
        clip_ensemble: let CLIP name the regions at all.
        ensemble_weight: exponent w of CLIP in p^(1-w) c^w; 0 and below: CLIP alone.
        template_set: name of a set of prompt templates; None: the vocabulary's own.
        own_templates: templates with one "{}" each, instead of a set.
        min_size: the shorter side is resized to this.
        max_size: unless the longer side would be longer than this.
    """

    mode: Mode = "eval"
    region: RegionConfig = field(default_factory=RegionConfig)
    clip_ensemble: bool = True
    ensemble_weight: float = 0.7
    template_set: str | None = None
    own_templates: tuple[str, ...] = ()
    min_size: int = 640
    max_size: int = 2560

    def __post_init__(self) -> None:
        if self.mode not in ("eval", "demo"):
            raise InputError(f"mode is {self.mode!r}; give 'eval' or 'demo'")
        if not self.ensemble_weight <= 1:
            raise InputError(f"ensemble_weight is {self.ensemble_weight}; give a number up to 1")
        if self.min_size < 1 or self.max_size < self.min_size:
            raise InputError(
                f"min_size {self.min_size} and max_size {self.max_size} do not fit; "
                "give positive sizes with max_size at least min_size"
            )


def available_configs() -> tuple[str, ...]:
    """Return the names of the published variants."""
    folder = resources.files("ovseg") / "configs"
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name[0] != "_"))


def load_published(name: str) -> tuple[OVSegConfig, InferenceConfig]:
    """Return a published variant by name, for instance "ovseg_swinB_vitL_bs32_120k".

    Raises:
        InputError: if there is no such variant.
    """
    if name not in available_configs():
        raise InputError(
            f"no published configuration is called {name!r}; there are "
            f"{', '.join(available_configs())}"
        )
    content = packaged_yaml("ovseg", "configs", f"{name}.yaml")
    return from_dict(content, source=f"{name}.yaml")


def ensemble_weights() -> dict[str, float]:
    """Return the published ensemble weight of each test vocabulary.

    Source: SPEC ovseg 2, last line.
    """
    weights: dict[str, float] = packaged_yaml("ovseg", "configs", "_ensemble_weights.yaml")
    return weights


def from_dict(
    data: Mapping[str, Any], *, source: str = "the configuration"
) -> tuple[OVSegConfig, InferenceConfig]:
    """Build both configurations from the sections "model" and "inference" of plain data.

    Raises:
        InputError: for an unknown section or key, with the near ones.
    """
    _check_keys(data, ("model", "inference"), source)
    model = dict(data.get("model") or {})
    if "backbone" in model:
        model["backbone"] = _backbone(model["backbone"], source)
    if "clip" in model:
        model["clip"] = _clip(model["clip"], source)
    inference = dict(data.get("inference") or {})
    if inference.pop("precision", "fp32") != "fp32":  # checkpoints used to store it
        raise InputError(
            f"{source} sets inference.precision; it is no setting of a model any more, so leave it "
            "out and give --precision, or load_ovseg(..., precision=...)"
        )
    region = _build(RegionConfig, inference.pop("region", None) or {}, source)
    return (
        _build(OVSegConfig, model, source),
        replace(_build(InferenceConfig, inference, source), region=region),
    )


def to_dict(config: OVSegConfig, inference: InferenceConfig | None = None) -> dict[str, Any]:
    """Return a configuration as plain data, which `from_dict` reads."""
    model = asdict(config)
    model["backbone"]["name"] = "swin" if isinstance(config.backbone, SwinConfig) else "resnet"
    data: dict[str, Any] = {"model": _plain(model)}
    if inference is not None:
        data["inference"] = _plain(asdict(inference))
    return data


def _backbone(data: Mapping[str, Any], source: str) -> SwinConfig | ResNetConfig:
    values = dict(data)
    name = values.pop("name", None)
    if name not in ("swin", "resnet"):
        raise InputError(f"{source}: backbone.name is {name!r}; give 'swin' or 'resnet'")
    if name == "swin":
        return _build(SwinConfig, values, source)
    return _build(ResNetConfig, values, source)


def _clip(data: str | Mapping[str, Any], source: str) -> CLIPConfig:
    if isinstance(data, str):
        if data == WORLD:
            from openvocab.clip.weights import load_clip  # late: it imports torch

            return load_clip(WORLD).config
        if data not in _CLIPS:
            raise InputError(f"{source}: clip is {data!r}; give one of {', '.join(_CLIPS)}")
        return _CLIPS[data]
    values = dict(data)
    values["vision"] = _build(VisionConfig, values.get("vision") or {}, source)
    values["text"] = _build(TextConfig, values.get("text") or {}, source)
    return _build(CLIPConfig, values, source)


def _build(cls: type[_T], values: Mapping[str, Any], source: str) -> _T:
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    _check_keys(values, names, source)
    frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return cls(**frozen)
    except TypeError as error:  # a field without a default is missing
        raise InputError(f"{source}: {cls.__name__}: {error}") from error


def _check_keys(values: Mapping[str, Any], known: Any, source: str) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known)) or sorted(known)
            raise InputError(f"{source} has an unknown key {key!r}; near ones: {', '.join(near)}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value
