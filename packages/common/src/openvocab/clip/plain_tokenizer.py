"""CLIP's byte-pair encoding in plain Python, for places without open_clip.

The ids are those of `openvocab.clip.tokenizer`, but for one step: open_clip first repairs text that
was decoded with the wrong encoding (library ftfy). Here text is only brought to Unicode's normal
form C, curly quotes become straight, and characters that it would write differently (full-width
letters and ligatures) are refused.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from openvocab.errors import InputError

_END = "</w>"  # of a word
_SUFFIXES = ("'re", "'ve", "'ll", "'s", "'t", "'m", "'d")  # tokens of their own, as in "dog's"
_REPAIRED = ("<wide>", "<narrow>", "<compat>")  # kinds of characters that have a usual form
_QUOTES = str.maketrans("‘’‛“”‟", "'''\"\"\"")


class PlainTokenizer:
    """A tokenizer from texts to token ids.

    Args:
        merges: pairs of parts of words, such as "t h", the most frequent first; their order and the
            256 bytes decide all ids.
    """

    def __init__(self, merges: Sequence[str]) -> None:
        pairs = [(first, second) for first, _, second in (line.partition(" ") for line in merges)]
        letters = list(_letters_of_bytes().values())
        parts = [*letters, *(letter + _END for letter in letters), *(a + b for a, b in pairs)]
        self._ids = {part: number for number, part in enumerate(parts)}
        self._ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self.start, self.end = len(parts), len(parts) + 1

    def encode(self, texts: Sequence[str], context_length: int) -> NDArray[np.int64]:
        """Return token ids (N, context_length): start, text, end, zeros.

        Raises:
            InputError: a text is too long, or has full-width characters or ligatures.
        """
        tokens = np.zeros((len(texts), context_length), np.int64)
        for row, text in enumerate(texts):
            ids = [number for word in _words(_cleaned(text)) for number in self._encode_word(word)]
            if len(ids) > context_length - 2:
                raise InputError(
                    f"the text {text[:60]!r} has {len(ids)} tokens; CLIP reads "
                    f"{context_length - 2} at most, so use a shorter one"
                )
            tokens[row, : len(ids) + 2] = [self.start, *ids, self.end]
        return tokens

    def _encode_word(self, word: str) -> list[int]:
        """Join the most frequent neighbors among a word's bytes until no known pair is left."""
        letters = _letters_of_bytes()
        parts = [letters[byte] for byte in word.encode()]
        parts[-1] += _END
        unknown = len(self._ranks)
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, unknown))
            if best not in self._ranks:
                break
            parts = _join(parts, best)
        return [self._ids[part] for part in parts]


def _join(parts: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    position = 0
    while position < len(parts):
        if tuple(parts[position : position + 2]) == pair:
            joined.append("".join(pair))
            position += 2
        else:
            joined.append(parts[position])
            position += 1
    return joined


def _cleaned(text: str) -> str:
    text = unicodedata.normalize("NFC", text.translate(_QUOTES))
    for character in text:
        if unicodedata.decomposition(character).startswith(_REPAIRED):
            raise InputError(
                f"the text {text[:60]!r} has the unusual character {character!r}; write "
                f"{unicodedata.normalize('NFKC', character)!r} instead"
            )
    text = html.unescape(html.unescape(text)).strip()
    return " ".join(text.split()).lower()


def _words(text: str) -> Iterator[str]:
    """Split text into runs of letters, single digits, and runs of other signs."""
    position = 0
    while position < len(text):
        suffix = next((end for end in _SUFFIXES if text.startswith(end, position)), None)
        kind = _kind(text[position])
        end = position + 1
        if suffix is not None:
            end = position + len(suffix)
        elif kind in ("letter", "sign"):
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != "space":
            yield text[position:end]
        position = end


def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    return {"L": "letter", "N": "digit"}.get(unicodedata.category(character)[0], "sign")


@cache
def _letters_of_bytes() -> dict[int, str]:
    """Return the printable character that stands for each of the 256 bytes, in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + place) for place, byte in enumerate(others)
    }
