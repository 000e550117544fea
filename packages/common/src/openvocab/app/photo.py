"""Reading the pictures that visitors upload, and refusing those that cannot be read."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from openvocab.app.limits import Limits
from openvocab.errors import InputError
from openvocab.image import ImageArray, read_image


def photo(limits: Limits, **options: Any) -> gr.Image:
    """Return an input for a picture that is read by `openvocab.image`, with its sentences.

    Args:
        limits: of uploads.
        options: of `gr.Image`.
    """
    component = gr.Image(**options)

    def preprocess(payload: Any) -> ImageArray | None:
        if payload is None:
            return None
        try:
            return read_upload(payload.path, payload.url, limits)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from None

    # In a subclass it would make gradio write a .pyi file beside this one.
    component.preprocess = preprocess
    return component


def read_upload(path: str | None, url: str | None, limits: Limits) -> ImageArray:
    """Read a picture that gradio has stored, or that came as a data address.

    Raises:
        InputError: it is too large, damaged, or no picture.
    """
    if path is not None:
        if not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
            raise InputError("the picture is no upload; send its bytes to this server first")
        data = Path(path).read_bytes()
    else:
        data = bytes_of_data_url(url or "")
    if len(data) > limits.max_bytes:
        raise InputError(
            f"the picture has {len(data)} bytes, more than the limit of {limits.max_bytes}; save "
            "it smaller"
        )
    return read_image(data, max_pixels=limits.max_pixels)


def bytes_of_data_url(url: str) -> bytes:
    """Return what a data address holds.

    Raises:
        InputError: it is another address, or damaged.
    """
    head, comma, code = url.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise InputError("the picture is neither an upload nor a base64 data address; send it so")
    try:
        return base64.b64decode(code, validate=True)
    except binascii.Error:
        raise InputError("the picture's base64 code is damaged; send it again") from None
