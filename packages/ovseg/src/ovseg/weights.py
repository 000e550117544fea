"""Reading and writing OVSeg checkpoints, and building the models that fit them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from openvocab.computation import Precision, choose_device, plain_arithmetic
from openvocab.config import config_to_dict, load_config
from openvocab.errors import InputError
from openvocab.files import sha256_of
from openvocab.formats.detectron2 import read_yaml
from openvocab.inference.confidence import calibration_file, load_calibration
from openvocab.reading.json_files import parse_json
from openvocab.vocabulary import WORLD
from openvocab.weights.folders import find_pretrained
from openvocab.weights.shipped import read_shared, save_shared, world_file
from openvocab.weights.state_dict import (
    fill,
    read_metadata,
    save_state_dict,
    unfilled,
)
from openvocab.weights.training_names import training_names
from ovseg._convert import (
    CLIP_PREFIX,
    PROMPTS,
    clip_config_of,
    config_from_detectron2,
    expand_prompts,
    override,
)
from ovseg.config import (
    METADATA,
    InferenceConfig,
    OVSegConfig,
    available_configs,
    from_dict,
    load_published,
    to_dict,
)
from ovseg.model import ClassWeights, OVSeg
from ovseg.segmenter import OVSegSegmenter, ProposalSource

_CLASS_WEIGHTS = "criterion.empty_weight"
_BY_WIDTH = {1024: "ovseg_swinB_vitL_bs32_120k", 768: "ovseg_R101c_vitB_bs32_120k"}


def load_ovseg(
    weights: str | Path | None = None,
    *,
    config: str | Path | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    compile: bool = False,
    options: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    proposals: ProposalSource | None = None,
) -> OVSegSegmenter:
    """Load OVSeg with its weights and return a segmenter.

    Args:
        weights: a checkpoint of the original (`.pth`) or of ours (`.safetensors`, `.pth`), a
            folder that `save_pretrained` wrote, `hf:ORG/NAME` for such a folder on the Hub, or
            "world" for the small OVSeg of the embedded world, which this package carries.
        config: name of a published variant, a YAML file of the original or of ours; None: what the
            checkpoint stores, else the published variant that its CLIP belongs to.
        device: "cpu", "cuda", "cuda:1", "mps", ...; "auto" is cuda, then mps, then cpu.
        precision: number format of the two branches: "fp32", "bf16" or "fp16".
        compile: compile the networks with torch.compile; needs a C++ compiler on a CPU.
        options: detectron2's keys, nested, over the configuration.
        settings: fields of `InferenceConfig` by name, such as "region.mask_threshold", over both.
        proposals: function that makes masks in place of MaskFormer.

    Raises:
        InputError: no weights are given, a file is missing, unreadable or does not fit, or there is
            no such device.
    """
    device = choose_device(device)
    weights = find_checkpoint(weights)
    tensors = read_shared(weights)
    architecture, inference = read_config(config, tensors, weights, options or {})
    inference = load_config(
        InferenceConfig, None, {**config_to_dict(inference), **(settings or {})}
    )
    segmenter = OVSegSegmenter(
        load_model(architecture, tensors, source=str(weights)),
        inference,
        device=device,
        precision=precision,
        compile=compile,
        weights_sha256=sha256_of(weights),
        variant=None if config is None else Path(config).stem,
        proposals=proposals,
    )
    segmenter.trained_on = training_names(weights)
    load_calibration(segmenter, calibration_file(weights))
    return segmenter


def find_checkpoint(weights: str | Path | None) -> Path:
    """Return the file behind a path, behind `hf:ORG/NAME`, or behind "world".

    Raises:
        InputError: there is none.
    """
    if weights is None:
        raise InputError(
            f"no weights are given; name an OVSeg checkpoint, or {WORLD} for the small OVSeg of "
            "the embedded world"
        )
    if str(weights) == WORLD:
        return world_file("ovseg")
    if folder := find_pretrained(weights, "ovseg"):
        return folder.weights
    if not Path(weights).is_file():
        raise InputError(
            f"there are no OVSeg weights at '{weights}'; give a checkpoint file, a folder of "
            f"save_pretrained, hf:ORG/NAME, or {WORLD}"
        )
    return Path(weights)


def read_config(
    config: str | Path | None,
    tensors: Mapping[str, Tensor],
    weights: str | Path,
    options: Mapping[str, Any],
) -> tuple[OVSegConfig, InferenceConfig]:
    """Return the architecture of a checkpoint and its rules of inference; see `load_ovseg`."""
    if config is None:
        stored = read_metadata(weights).get(METADATA)
        if stored is not None:
            content = parse_json(stored, f"{METADATA} in {weights}", "a configuration of OVSeg")
            architecture, inference = from_dict(content, source=str(weights))
        else:
            architecture, inference = load_published(_published_name(tensors, weights))
        return override(architecture, inference, options)
    name = Path(config).stem
    if not Path(config).is_file():
        if name not in available_configs():
            raise InputError(
                f"there is no configuration '{config}'; give a YAML file or one of "
                f"{', '.join(available_configs())}"
            )
        architecture, inference = load_published(name)
        return override(architecture, inference, options)
    data = read_yaml(config)
    if "MODEL" not in data:
        architecture, inference = from_dict(data, source=str(config))
        return override(architecture, inference, options)
    architecture, inference = config_from_detectron2(data, clip=clip_config_of(tensors))
    return override(architecture, inference, options)


@plain_arithmetic()
def load_model(config: OVSegConfig, tensors: Mapping[str, Tensor], *, source: str) -> OVSeg:
    """Build a model and load a state dict with the official names strictly.

    Args:
        config: the architecture; the number of training classes is the state dict's.
        tensors: the state dict, which the model takes over. It may be a plain dict: nothing
            depends on version metadata.
        source: description of where the weights come from, for errors.

    Raises:
        InputError: tensors are missing, unexpected or of another shape; the message names them.
    """
    tensors = expand_prompts(tensors, CLIP_PREFIX + PROMPTS, config.clip)
    if _CLASS_WEIGHTS in tensors:
        config = replace(config, num_training_classes=len(tensors[_CLASS_WEIGHTS]) - 1)
    else:  # trained with the no-object class ignored; only a training needs the weights
        weights = ClassWeights(config.num_training_classes, config.no_object_weight)
        tensors[_CLASS_WEIGHTS] = weights.empty_weight
    if CLIP_PREFIX + PROMPTS in tensors:  # a fine-tuned CLIP brings its own number of layers
        config = replace(config, mask_prompt_depth=len(tensors[CLIP_PREFIX + PROMPTS]))
    with unfilled():
        model = OVSeg(config)
    fill(model, tensors, source=source)
    return model.eval()


def save_model(
    model: OVSeg,
    path: str | Path,
    inference: InferenceConfig | None = None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write a checkpoint with the official names, which also stores the configuration.

    Args:
        model: the model to write.
        path: `.pth` or `.safetensors`.
        inference: rules of inference.
        more: further metadata to store, such as the names of the training.
    """
    save_state_dict(path, model.state_dict(), {**metadata_of(model, inference), **more})


def metadata_of(model: OVSeg, inference: InferenceConfig | None) -> dict[str, Any]:
    """Return the metadata with which a checkpoint can be loaded without further information."""
    return {METADATA: to_dict(model.config, inference)}


def save_world_model(model: OVSeg, path: str | Path, inference: InferenceConfig) -> None:
    """Write a model without the world's CLIP, which the package carries anyway."""
    save_shared(path, model.state_dict(), metadata_of(model, inference), prefix=CLIP_PREFIX)


def _published_name(tensors: Mapping[str, Tensor], weights: str | Path) -> str:
    """Return the published variant that has the width of this CLIP."""
    patches = tensors.get(f"{CLIP_PREFIX}visual.conv1.weight")
    name = None if patches is None else _BY_WIDTH.get(len(patches))
    if name is None:
        raise InputError(
            f"{weights} is no published OVSeg and does not store its configuration; give "
            "--config-file"
        )
    return name
