"""The way from text to CLIP's token ids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from openvocab.errors import InputError

CONTEXT_LENGTH = 77


def tokenize(
    texts: str | Sequence[str], context_length: int = CONTEXT_LENGTH, truncate: bool = False
) -> Tensor:
    """Tokenise texts with CLIP's byte-pair encoding.

    Case and repeated white space do not matter.

    Args:
        texts: N texts; a string is one text.
        context_length: the length that the text tower was built for.
        truncate: cut texts that are too long instead of refusing them.

    Returns:
        Token ids (N, context_length), int64: start, text, end (the highest id), zeros.

    Raises:
        InputError: if a text is no string, or too long; the message names it.

    Source: SPEC san 6, SPEC ovseg 4.
    """
    texts = [texts] if isinstance(texts, str) else texts
    bpe = _bpe()
    tokens = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{text!r} is a {type(text).__name__}; CLIP reads text only")
        ids = bpe.encode(text)
        if len(ids) > context_length - 2:
            if not truncate:
                raise InputError(
                    f"the text {_shortened(text)!r} has {len(ids)} tokens; CLIP reads "
                    f"{context_length - 2} at most, so use a shorter one"
                )
            ids = ids[: context_length - 2]
        ids = [bpe.sot_token_id, *ids, bpe.eot_token_id]
        tokens[row, : len(ids)] = torch.tensor(ids)
    return tokens


def decode(tokens: Tensor) -> str:
    """Return the text of token ids (T,), without start, end and padding."""
    bpe = _bpe()
    special = (0, bpe.sot_token_id, bpe.eot_token_id)
    text: str = bpe.decode([token for token in tokens.tolist() if token not in special])
    return text.strip()


def merges() -> list[str]:
    """Return the pairs of parts of words that the encoding joins, the most frequent first."""
    return [" ".join(pair) for pair in _bpe().bpe_ranks]


@cache
def _bpe() -> Any:
    """Return open_clip's tokenizer, which is imported only here since that takes seconds."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def _shortened(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[:length]}..."
