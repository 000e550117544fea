"""The limits of what the page accepts from one visitor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What the page takes; beyond it there is one sentence.

    Attributes:
        max_bytes: of an upload.
        max_pixels: of a picture.
        max_names: names and synonyms of one request.
        queue: requests that may wait.
        seconds: that a request may take on the device, waiting included.
    """

    max_bytes: int = 32 << 20
    max_pixels: int = 50_000_000
    max_names: int = 2000
    queue: int = 128
    seconds: float = 300.0
