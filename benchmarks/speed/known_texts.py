"""Lets text embeddings be there already, so that names cost nothing where images are measured."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from openvocab.clip.prompts import TextEncoder


def know_names(encoder: TextEncoder, embeddings: Callable[..., Tensor], templates: int = 1) -> None:
    """Let an encoder return these embeddings, whatever the names mean.

    Args:
        encoder: encoder that is changed.
        embeddings: function that makes embeddings for a shape without the last axis: (K,) or
            (templates, K).
        templates: number of sentences that are made of each name.
    """
    own = vars(encoder)  # attributes of this encoder alone
    own["encode_names"] = lambda names, sets="vild": embeddings(len(names))
    own["names_per_template"] = lambda names, sets="vild": embeddings(templates, len(names))
