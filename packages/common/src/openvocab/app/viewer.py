"""What the browser needs to draw results: the picture, the labels and the scores, all exact.

The threshold, the opacity and the switches of names work in the browser (`viewer.js`) on the same
whole numbers from which the server makes the files, so that both always agree.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from openvocab.app.engine import Found, whole
from openvocab.drawing.overlay import palette
from openvocab.image import ImageArray
from openvocab.vocabulary import NOTHING_16BIT

_LOSSLESS = 600_000  # pixels up to which a picture travels as PNG


def viewer_file(suffix: str) -> str:
    """Return the template ".html", the style ".css" or the script ".js" of the viewer."""
    return resources.files("openvocab.app").joinpath(f"viewer{suffix}").read_text("utf-8")


def data_url(picture: ImageArray) -> str:
    """Return a picture (H, W, 3) as an address that holds all of it."""
    small = picture.shape[0] * picture.shape[1] <= _LOSSLESS
    kind, options = ("PNG", {}) if small else ("JPEG", {"quality": 90})
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind, **options)
    code = base64.b64encode(stream.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{code}"


def view_of(image: ImageArray, found: Sequence[Found], titles: Sequence[str]) -> dict[str, Any]:
    """Describe results of one picture and the same names as plain data for `viewer.js`.

    Args:
        image: (H, W, 3) uint8.
        found: at least one result, of this image's size.
        titles: of the methods.
    """
    names = found[0].result.vocabulary.names
    return {
        "width": image.shape[1],
        "height": image.shape[0],
        "image": data_url(image),
        "names": list(names),
        "colors": palette(len(names)).tolist(),
        "panels": [
            {
                "title": title,
                "note": _note(one),
                "labels": _packed(
                    np.where(one.result.labels < 0, NOTHING_16BIT, one.result.labels)
                ),
                "method": one.method,
                "score": "confidence" if one.calibrated else "score",
                "scores": None if one.certainty is None else _packed(whole(one.certainty)),
                "named": None if one.result.named is None else _packed(whole(one.result.named)),
            }
            for one, title in zip(found, titles, strict=True)
        ],
    }


def _packed(values: npt.NDArray[Any]) -> str:
    data = np.ascontiguousarray(values, dtype="<u2").tobytes()
    return base64.b64encode(zlib.compress(data, 6)).decode("ascii")


def _note(found: Found) -> str:
    parts = [f"{found.seconds:.2f} s"]
    if found.memory is not None:
        parts.append(f"{found.memory / 2**20:.0f} MB at most")
    return "; ".join([", ".join(parts), f"weights: {found.weights}", *found.notices])
