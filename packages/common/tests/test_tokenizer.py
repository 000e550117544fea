"""Token ids against the recordings of two originals and against open_clip."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openvocab.clip.tokenizer import tokenize
from openvocab.errors import InputError
from openvocab.vocabulary import Vocabulary, available_vocabularies

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("case", ["a", "b"])
def test_tokens_equal_those_recorded_from_san(case: str) -> None:
    golden = np.load(GOLDEN / f"text_san_{case}.npz")
    tokens = tokenize([f"a photo of a {name}." for name in golden["names"].tolist()])
    assert tokens.dtype == torch.int64
    np.testing.assert_array_equal(tokens.numpy(), golden["tokens_template0"])


@pytest.mark.parametrize("case", ["a", "b"])
def test_tokens_equal_those_recorded_from_ovseg(case: str) -> None:
    golden = np.load(GOLDEN / f"tokens_ovseg_{case}.npz")
    for template, expected in zip(golden["templates"].tolist(), golden["tokens"], strict=True):
        tokens = tokenize([template.format(name) for name in golden["class_names"].tolist()])
        np.testing.assert_array_equal(tokens.numpy(), expected)


def test_every_published_name_gets_open_clip_s_tokens() -> None:
    names = sorted(
        {name for key in available_vocabularies() for name in Vocabulary.load(key).words}
    )
    assert len(names) > 1000
    assert torch.equal(tokenize(names), open_clip.tokenize(names))


@given(st.lists(st.text(max_size=40), max_size=4))
def test_any_text_gets_open_clip_s_tokens(texts: list[str]) -> None:
    expected = open_clip.tokenize(texts) if texts else torch.zeros(0, 77, dtype=torch.long)
    assert torch.equal(tokenize(texts, truncate=True), expected)


def test_a_string_is_one_text() -> None:
    assert torch.equal(tokenize("a cat"), tokenize(["a cat"]))


def test_trailing_space_and_case_give_the_same_tokens() -> None:
    same = tokenize(["a photo of a window .", "A photo  of a Window.", "a photo of a window."])
    assert (same == same[0]).all()


def test_a_text_that_fills_the_context_exactly_is_read() -> None:
    tokens = tokenize(["cat " * 75])
    assert tokens.shape == (1, 77)
    assert tokens.argmax() == 76


def test_a_longer_text_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"'cat cat .*' has 76 tokens; CLIP reads 75"):
        tokenize(["short", "cat " * 76])


def test_truncation_keeps_the_end_of_text() -> None:
    long = "cat " * 100
    tokens = tokenize([long], truncate=True)
    assert torch.equal(tokens, open_clip.tokenize([long]))
    assert tokens[0, -1] == tokens.max()


def test_a_shorter_context_is_respected() -> None:
    assert tokenize(["a cat"], context_length=8).shape == (1, 8)
    with pytest.raises(InputError, match="CLIP reads 2 at most"):
        tokenize(["a black cat"], context_length=4)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match="None is a NoneType"):
        tokenize(["cat", None])
