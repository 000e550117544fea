"""Label Studio: pre-annotations as brush masks, one JSON file of tasks for a whole run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from openvocab.drawing.overlay import palette
from openvocab.formats.regions import ImageResult, Region
from openvocab.formats.run_length import Mask

_SIZES = (3, 4, 8, 16)  # bits of the lengths of runs; two bits before each say which
_WORD = 8  # bits of a value
_CHANNELS = 4  # Label Studio's masks are RGBA pictures


def labelstudio_task(
    result: ImageResult,
    *,
    image_url: str = "{image}",
    model: str = "openvocab-seg",
    from_name: str = "brush",
    to_name: str = "image",
) -> dict[str, Any]:
    """Describe one image as a task with a prediction, which Label Studio imports as it is.

    Args:
        result: of the image.
        image_url: the address of an image; "{image}" stands for its path.
        model: shown as the version of the model.
        from_name: name of the `BrushLabels` tag in the labeling configuration.
        to_name: name of the `Image` tag.
    """
    return {
        "data": {"image": image_url.replace("{image}", result.image)},
        "predictions": [labelstudio_prediction(result, model, from_name, to_name)],
    }


def labelstudio_prediction(
    result: ImageResult, model: str, from_name: str, to_name: str
) -> dict[str, Any]:
    """Describe one image as a prediction of Label Studio."""
    height, width = result.size
    scores = [region.score for region in result.regions if region.score is not None]
    found: dict[str, Any] = {
        "model_version": model,
        "result": [
            {
                "id": f"name-{region.index}",
                "type": "brushlabels",
                "from_name": from_name,
                "to_name": to_name,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": _value(region),
                **({} if region.score is None else {"score": region.score}),
            }
            for region in result.regions
        ],
    }
    return found if not scores else {**found, "score": sum(scores) / len(scores)}


def _value(region: Region) -> dict[str, Any]:
    codes = encode_brush(region.mask)
    return {"format": "rle", "rle": codes, "brushlabels": [region.name]}


def labeling_config(
    names: Iterable[str], *, from_name: str = "brush", to_name: str = "image"
) -> str:
    """Return a labeling configuration (XML) with a brush in our color for each name."""
    names = tuple(names)
    labels = "".join(
        f'\n    <Label value={quoteattr(name)} background="#{r:02x}{g:02x}{b:02x}"/>'
        for name, (r, g, b) in zip(names, palette(len(names)).tolist(), strict=True)
    )
    return (
        f'<View>\n  <Image name="{to_name}" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="{from_name}" toName="{to_name}">{labels}\n  </BrushLabels>\n'
        "</View>\n"
    )


def encode_brush(mask: Mask) -> list[int]:
    """Encode a mask in Label Studio's run-length format for brushes.

    The format is a stream of bits: the number of values in 32 bits, the bits of a value less one in
    5, four sizes less one in 4 bits each, and then runs. A run is a 1 (all of its values are
    equal), two bits that choose a size, the length less one in that size, and the value.

    Args:
        mask: (H, W), non-zero is inside; every pixel counts as four equal values of 0 or 255.

    Returns:
        The bytes of the stream.
    """
    flat = np.asarray(mask != 0).ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]]) * _CHANNELS
    bits = [f"{flat.size * _CHANNELS:032b}", f"{_WORD - 1:05b}"]
    bits += [f"{size - 1:04b}" for size in _SIZES]
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        value = "1" * _WORD if flat[start // _CHANNELS] else "0" * _WORD
        bits += [_run(length, value) for length in _pieces(end - start)]
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return list(int(stream, 2).to_bytes(len(stream) // 8, "big"))


def _pieces(length: int) -> list[int]:
    """Split a run that is longer than the largest size can say."""
    most = 1 << _SIZES[-1]
    return [most] * (length // most) + ([length % most] if length % most else [])


def _run(length: int, value: str) -> str:
    place = next(i for i, size in enumerate(_SIZES) if length <= 1 << size)
    return f"1{place:02b}{length - 1:0{_SIZES[place]}b}{value}"
