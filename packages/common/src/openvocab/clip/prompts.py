"""The way from names to CLIP embeddings: ensembles of prompts, each computed once.

Source: SPEC san 6, SPEC ovseg 4; Gu et al. 2022 (ViLD) for the 14 templates, Radford et al. 2021
for the 80.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from openvocab.clip.model import CLIP
from openvocab.clip.template_sets import Templates, resolve_templates
from openvocab.clip.text_cache import EmbeddingStore
from openvocab.clip.tokenizer import tokenize
from openvocab.computation import to_device
from openvocab.errors import InputError, NamesError
from openvocab.files import default_cache_dir

_FORMAT = 1  # of the cache; raise it when the same key should give other values
_TOKENS_PER_BATCH = 4096
_PADDING_PER_BATCH = 32
_NAMES_AT_ONCE = 128
_LISTED = 10  # names in a message
_TEXT_ALONE = ("{}",)


def check_lengths(names: Sequence[str], templates: Templates, context: int = 77) -> None:
    """Check that CLIP reads every name in every template to its end.

    This needs no model, and no tokenizer where all names are short.

    Raises:
        NamesError: CLIP does not read a name to its end; the message lists all such names.
    """
    room = context - 2 - max(len(template.encode()) for template in resolve_templates(templates))
    long = [name for name in names if len(name.encode()) > room]  # a token is a byte or more
    bad = _unusable(long, lambda prompts: tokenize(prompts, context), templates)
    if bad:
        raise NamesError(_list_of_bad_names(bad), bad)


def _unusable(
    names: Sequence[str], use: Callable[[list[str]], object], templates: Templates
) -> dict[str, str]:
    """Return the names that cannot be used, each with the reason."""
    bad: dict[str, str] = {}
    for name in names:
        try:
            use([template.replace("{}", name) for template in resolve_templates(templates)])
        except InputError as error:
            bad[name] = str(error)
    return bad


def _list_of_bad_names(bad: Mapping[str, str]) -> str:
    (first, reason), *_ = bad.items()
    if len(bad) == 1:
        return f"the name {first!r:.80} cannot be used: {reason}"
    names = ", ".join(f"{name!r:.60}" for name in list(bad)[:_LISTED])
    more = f" and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
    return f"{len(bad)} names cannot be used: {names}{more}; the first because {reason}"


def length_batches(
    lengths: Sequence[int],
    tokens_per_batch: int = _TOKENS_PER_BATCH,
    padding_per_batch: int = _PADDING_PER_BATCH,
) -> Iterator[list[int]]:
    """Split texts of different lengths into batches that waste little on padding.

    Args:
        lengths: the tokens of each text, N of them.
        tokens_per_batch: a batch has at most so many tokens with padding, or one text.
        padding_per_batch: a batch has at most so many tokens of padding.

    Yields:
        Indices of texts, shortest first; each of the N once.
    """
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[index]
        padded = (len(batch) + 1) * length
        if batch and (padded > tokens_per_batch or padded - tokens - length > padding_per_batch):
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += length
    if batch:
        yield batch


class TextEncoder:
    """Unit-length text embeddings of a CLIP, each computed once for a given set of weights.

    The key of an entry contains the weights of the text tower, the templates and the text, so after
    a change of any of them no old entry is found. Weights that are changed in place are noticed at
    the next call.

    Args:
        clip: the model; its text tower and device are used.
        cache_dir: folder in which embeddings are kept between runs; None for the user's cache
            folder (see `default_cache_dir`), False for memory only.
    """

    def __init__(self, clip: CLIP, cache_dir: str | Path | Literal[False] | None = None) -> None:
        self.clip = clip
        if cache_dir is None:
            root = default_cache_dir()
        else:
            root = Path(cache_dir) if cache_dir else None
        self._root = None if root is None else root / "text"
        self._stores: dict[str, EmbeddingStore] = {}
        self._seen: tuple[object, ...] | None = None
        self._fingerprint = ""

    def encode_names(self, names: Sequence[str], templates: Templates = "vild") -> Tensor:
        """Embed class names, each as the mean of its prompts.

        Every prompt's embedding is scaled to unit length, and so is their mean.

        Args:
            names: K names, to the letter.
            templates: the name of a template set, or templates with one "{}" each.

        Returns:
            Embeddings (K, E), float32, on the model's device.

        Raises:
            NamesError: names are longer than CLIP reads, or this CLIP does not know their words;
                the message lists all of them.

        Source: SPEC san 6.
        """
        templates = resolve_templates(templates)
        device = self.clip.token_embedding.weight.device
        if not names:
            return torch.zeros(0, self.clip.config.embed_dim, device=device)
        store = self._store(templates)
        with torch.inference_mode(False):  # what is cached may later meet gradients
            missing = sorted(store.missing(names), key=len)  # similar lengths meet in one chunk
            bar = tqdm(
                total=len(missing), desc="encoding names", delay=3, leave=False, disable=None
            )
            with bar:
                for start in range(0, len(missing), _NAMES_AT_ONCE):
                    chunk = missing[start : start + _NAMES_AT_ONCE]
                    store.add(chunk, self._ensemble_or_explain(chunk, missing, templates))
                    bar.update(len(chunk))
            return to_device(store.get(names), device)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed N texts as they are: (N, E), float32, unit length, on the model's device."""
        return self.encode_names(texts, _TEXT_ALONE)

    def names_per_template(self, names: Sequence[str], templates: Templates = "vild") -> Tensor:
        """Embed K names in each of T templates: (T, K, E), unit length, on the model's device.

        Raises:
            NamesError: see `encode_names`.
        """
        templates = resolve_templates(templates)
        prompts = [template.replace("{}", name) for template in templates for name in names]
        shape = (len(templates), len(names), self.clip.config.embed_dim)
        try:
            return self.encode_texts(prompts).reshape(shape)
        except NamesError:
            # The prompts that cannot be used are as many as the templates for each name.
            bad = _unusable(list(dict.fromkeys(names)), self._embed, templates)
            if bad:
                raise NamesError(_list_of_bad_names(bad), bad) from None
            raise

    def _ensemble_or_explain(
        self, names: Sequence[str], missing: Sequence[str], templates: tuple[str, ...]
    ) -> Tensor:
        """Embed some of the missing names; if one cannot be used, list all that cannot."""
        try:
            return self._ensemble(names, templates)
        except InputError:
            bad = _unusable(missing, self._embed, templates)
            if bad:
                raise NamesError(_list_of_bad_names(bad), bad) from None
            raise

    def _ensemble(self, names: Sequence[str], templates: tuple[str, ...]) -> Tensor:
        prompts = [template.replace("{}", name) for template in templates for name in names]
        each = self._embed(prompts).reshape(len(templates), len(names), -1)  # (T, K, E)
        return F.normalize(each.mean(dim=0), dim=-1, eps=0.0)

    @torch.no_grad()
    def _embed(self, texts: Sequence[str]) -> Tensor:
        """Run the text tower on N different or equal texts: (N, E), float32, unit length."""
        unique = list(dict.fromkeys(texts))
        tokens = tokenize(unique, self.clip.config.text.context_length)
        lengths = (tokens.argmax(dim=-1) + 1).tolist()  # up to the end-of-text token
        device = self.clip.token_embedding.weight.device
        out = torch.empty(len(unique), self.clip.config.embed_dim, device=device)
        with torch.autocast(device.type, enabled=False):  # entries have the weights' precision
            for batch in length_batches(lengths):
                rows = torch.tensor(batch)
                out[rows] = self.clip.encode_text(to_device(tokens[rows], device)).float()
        if not out.isfinite().all():
            raise InputError(
                "CLIP's text tower gives values that are not finite; check its weights"
            )
        place = {text: row for row, text in enumerate(unique)}
        rows = torch.tensor([place[text] for text in texts])
        return F.normalize(out, dim=-1, eps=0.0)[rows]

    def _store(self, templates: tuple[str, ...]) -> EmbeddingStore:
        seen = _state(self.clip)
        if seen != self._seen:
            self._seen, self._fingerprint = seen, text_fingerprint(self.clip)
            self._stores.clear()
        parts = json.dumps([_FORMAT, self._fingerprint, _tokenizer_version(), templates])
        key = hashlib.sha256(parts.encode()).hexdigest()
        if key not in self._stores:
            self._stores[key] = EmbeddingStore(key, self._root)
        return self._stores[key]


@cache
def _tokenizer_version() -> str:
    return importlib.metadata.version("open_clip_torch")


def text_fingerprint(clip: CLIP) -> str:
    """Return the SHA-256 of everything that a text embedding depends on, in hexadecimal.

    Models that differ only in the image tower or the temperature share it.
    """
    digest = hashlib.sha256(f"{clip.config.text} {clip.config.activation}".encode())
    for name, tensor in _text_tensors(clip):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(content.numpy().data)
    return digest.hexdigest()


def _text_tensors(clip: CLIP) -> list[tuple[str, Tensor]]:
    tensors = [*clip.named_parameters(), *clip.named_buffers()]
    return sorted(
        (name, tensor)
        for name, tensor in tensors
        if not name.startswith("visual.") and name != "logit_scale"
    )


def _state(clip: CLIP) -> tuple[object, ...]:
    """Return a value that changes with the text tower's weights, but costs less than a fingerprint.

    Storage and version of every tensor, and one value each for changes behind autograd's back.
    """
    tensors = [tensor for _, tensor in _text_tensors(clip)]
    versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
    places = [(tensor.data_ptr(), tensor.dtype, tensor.shape) for tensor in tensors]
    probes = [tensor.detach().reshape(-1)[tensor.numel() // 3].float() for tensor in tensors]
    return (*versions, *places, *torch.stack(probes).tolist())
