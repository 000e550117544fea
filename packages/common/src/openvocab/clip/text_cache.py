"""A cache of text embeddings, in memory and in files that several processes share.

A folder holds the entries of one key, which stands for everything but the text that decides an
embedding. Each file in it is a safetensors file named by the SHA-256 of its own bytes: a file that
was cut short, damaged or edited does not match its name, and is removed instead of read. Files are
only ever added whole, so writers need no lock.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from openvocab.errors import InputError
from openvocab.files import atomic_path
from openvocab.reading.files import DAMAGE, read_bytes
from openvocab.reading.json_files import MOST_BYTES, parse_json

_FILE_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")  # not the temporary files of other writers
_MANY_FILES = 32


class EmbeddingStore:
    """The embeddings of texts under one key.

    Args:
        key: a SHA-256 in hexadecimal of all that decides an embedding, except the text.
        root: the folder that holds a folder for each key; None for memory only.
    """

    def __init__(self, key: str, root: Path | None) -> None:
        self.key = key
        self.folder = None if root is None else root / key
        self._rows: dict[str, Tensor] = {}
        self._read: set[Path] = set()

    def missing(self, texts: Iterable[str]) -> list[str]:
        """Return the texts that have no entry, each once, in order."""
        absent = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if absent and self._read_new_files():
            absent = [text for text in absent if text not in self._rows]
        return absent

    def get(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings (N, E) of N texts that all have an entry."""
        return torch.stack([self._rows[text] for text in texts])

    def add(self, texts: Sequence[str], embeddings: Tensor) -> None:
        """Store the embeddings (N, E), float32, of N texts, also for other processes.

        If the folder cannot be written, there is one warning, and the embeddings are kept in memory
        only.
        """
        embeddings = embeddings.detach().cpu().contiguous()
        self._rows.update(zip(texts, embeddings, strict=True))
        if self.folder is None:
            return
        try:
            self._read.add(self._write(texts, embeddings))
            if len(self._read) >= _MANY_FILES:
                self._merge()
        except OSError as error:
            warnings.warn(f"text embeddings are not kept on disk: {error}", stacklevel=2)
            self.folder = None

    def _write(self, texts: Sequence[str], embeddings: Tensor) -> Path:
        assert self.folder is not None
        entry = json.dumps({"key": self.key, "texts": list(texts)})
        content = save_safetensors({"embeddings": embeddings}, {"entry": entry})
        path = self.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        return path

    def _read_new_files(self) -> bool:
        """Read the files that other processes have written since; return whether there were any."""
        if self.folder is None:
            return False
        try:
            files = {path for path in self.folder.iterdir() if _FILE_NAME.fullmatch(path.name)}
        except OSError:  # nothing was ever written, or it may not be read
            return False
        found = False
        for path in sorted(files - self._read):
            rows = _verified_rows(path, self.key)
            if rows is not None:
                self._rows.update(rows)
                self._read.add(path)
                found = True
        return found

    def _merge(self) -> None:
        """Write all entries to one file and remove the files that they came from.

        If another process has listed the old files before, it finds them gone and computes their
        texts once more.
        """
        merged = self._write(list(self._rows), torch.stack(list(self._rows.values())))
        for path in self._read - {merged}:
            path.unlink(missing_ok=True)
        self._read = {merged}


def _verified_rows(path: Path, key: str) -> dict[str, Tensor] | None:
    """Read a file of embeddings; remove it if its contents do not match its name.

    Returns:
        Text to embedding (E,); None if the file is gone, unreadable or was removed.
    """
    try:
        content = read_bytes(path, "file of embeddings", most_bytes=MOST_BYTES)
    except InputError:
        return None
    rows = None
    if hashlib.sha256(content).hexdigest() == path.stem:
        rows = _parsed_rows(content, key)
    if rows is None:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            pass  # a folder of somebody else: not read is enough
    return rows


def _parsed_rows(content: bytes, key: str) -> dict[str, Tensor] | None:
    """Return the embedding (E,) of each text in a file's bytes; None if its key is another."""
    try:
        embeddings = load_safetensors(content)["embeddings"]
        size = int.from_bytes(content[:8], "little")
        header = parse_json(content[8 : 8 + size].decode(), "its header", "metadata")
        entry = parse_json(header["__metadata__"]["entry"], "its entry", "texts")
        if entry["key"] != key:
            return None
        return dict(zip(entry["texts"], embeddings, strict=True))
    except (SafetensorError, InputError, *DAMAGE):
        return None  # a whole file, but none of ours
