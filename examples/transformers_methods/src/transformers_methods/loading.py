"""Checkpoints of transformers, by hub name or folder, read without running their code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from openvocab.computation import Precision, choose_device, dtype_of
from openvocab.errors import InputError
from openvocab.image import ImageArray
from openvocab.weights.state_dict import fingerprint

_THINNEST = 8  # of an image that a model sees, the long side is at most so many short sides
_SHOWN = 3  # tensors that an error names


@dataclass(frozen=True)
class Checkpoint:
    """A model that is ready to use.

    Attributes:
        model: frozen, in evaluation mode, on its device.
        processor: prepares images and texts for it.
        source: hub name or folder.
        precision: number format of all parameters.
        weights_sha256: fingerprint of the parameters before the precision was changed.
    """

    model: nn.Module
    processor: Any
    source: str
    precision: Precision
    weights_sha256: str

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return next(self.model.parameters()).device

    def describe(self) -> dict[str, Any]:
        """Return the lines of a protocol card that all these methods share."""
        return {
            "variant": f"{type(self.model).__name__} of {self.source}",
            "weights_sha256": self.weights_sha256,
            "precision": self.precision,
            "device": str(self.device),
        }

    def pixels(self, image: ImageArray, **options: Any) -> dict[str, Any]:
        """Prepare one image (H, W, 3) with the checkpoint's own processor."""
        prepare = getattr(self.processor, "image_processor", self.processor)
        inputs = prepare([image], return_tensors="pt", input_data_format="channels_last", **options)
        return {name: self.place(value) for name, value in inputs.items()}

    def place(self, value: Any) -> Any:
        """Move a tensor to the model; floats get the model's precision."""
        if not isinstance(value, Tensor):
            return value
        dtype = dtype_of(self.precision) if value.is_floating_point() else value.dtype
        return value.to(self.device, dtype)

    def tokens(self, texts: list[str], most: int, **options: Any) -> dict[str, Tensor]:
        """Tokenize texts.

        Args:
            texts: N texts.
            most: tokens that the model reads.
            options: options of the tokenizer.

        Raises:
            InputError: a text is longer, which the tokenizer would otherwise cut in silence.
        """
        tokens = self.processor.tokenizer(texts, return_tensors="pt", **options)
        lengths = tokens["attention_mask"].sum(dim=1)
        if int(lengths.max()) > most:
            text = texts[int(lengths.argmax())]
            raise InputError(
                f"{text!r} is {int(lengths.max())} tokens long and {self.source} reads {most}; "
                "use a shorter name"
            )
        names = ("input_ids", "attention_mask")
        return {name: self.place(tokens[name][:, :most]) for name in names}


def load_checkpoint(
    model_class: str,
    weights: str | Path,
    *,
    device: str = "auto",
    precision: Precision = "fp32",
    compiled: Sequence[str] = (),
) -> Checkpoint:
    """Load a model with its processor.

    Only safetensors are read, and no code that a checkpoint brings along is run.

    Args:
        model_class: class of transformers, such as "CLIPSegForImageSegmentation".
        weights: a folder written by `save_pretrained`, or the name of a repository on the hub.
        device: device to run on, see `openvocab.computation.choose_device`.
        precision: number format of all parameters.
        compiled: submodules to compile with torch.compile ("" is the whole model), which needs a
            C++ compiler on a CPU.

    Raises:
        InputError: transformers is not installed; the checkpoint is not there, cannot be fetched,
            is of another model, or lacks weights.
    """
    transformers = _transformers()
    device, dtype, source = choose_device(device), dtype_of(precision), str(weights)
    try:
        processor = transformers.AutoProcessor.from_pretrained(source, trust_remote_code=False)
        model, report = getattr(transformers, model_class).from_pretrained(
            source, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # the hub's client and the configurations raise dozens of types
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"{model_class} cannot be loaded from {source!r} ({type(error).__name__}: {reason}); "
            "give a folder written by save_pretrained with its processor and safetensors, or a hub "
            "name where there is a network"
        ) from error
    lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lacking:  # transformers would fill them with random numbers
        raise InputError(
            f"{source!r} lacks {len(lacking)} of the weights of {model_class}, such as "
            f"{', '.join(lacking[:_SHOWN])}; it is a checkpoint of another model"
        )
    sha256 = fingerprint(model.state_dict())
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    for part in compiled:
        model.get_submodule(part).compile()
    return Checkpoint(model, processor, source, precision, sha256)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "this method needs the package transformers; pip install 'transformers>=5.24,<6'"
        ) from error
    return transformers


def fitted(image: ImageArray, max_side: int) -> ImageArray:
    """Shrink an image (H, W, 3) to a long side of `max_side`, and widen very thin images.

    The models' processors have no bound on memory for large or thin images. The short side is made
    at least an eighth of the long one.
    """
    height, width = image.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    size = [max(1, round(side * scale)) for side in (height, width)]
    size = [max(side, -(-max(size) // _THINNEST)) for side in size]
    if size == [height, width]:
        return image
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.array(resized)  # writable, as torch wants it


def fit_rule(max_side: int) -> str:
    """Return the line of the protocol card that describes `fitted`."""
    return f"long side <= {max_side}, short side >= 1/{_THINNEST} of it, bicubic"


def enlarged(values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize (..., h, w) to (..., H, W) by taking the value under the center of each new pixel."""
    if values.shape[-2:] == size:
        return values
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(size, values.shape[-2:], strict=True)
    )
    return values[..., rows[:, None], columns]
