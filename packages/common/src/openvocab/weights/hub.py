"""Fetches official weights on first use, and notices when the same name brings another file."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from openvocab.errors import InputError
from openvocab.files import default_cache_dir, sha256_of, write_text

_OFFLINE = (OSError, HfHubHTTPError, LocalEntryNotFoundError, RuntimeError)


def fetch(repository: str, filename: str) -> Path:
    """Return a file of a Hugging Face repository, from the local cache if it is there.

    Its SHA-256 is recorded when it first arrives; a file that later differs is refused.

    Raises:
        InputError: it is not here and cannot be fetched, or it changed.
    """
    try:
        path = Path(hf_hub_download(repository, filename))
    except _OFFLINE as error:
        raise InputError(
            f"{filename} is not in the cache and could not be fetched ({type(error).__name__}); "
            f"download it from the Hugging Face repository {repository} on a machine with a "
            "network, put it anywhere here, and give its path as the weights"
        ) from error
    _check_recorded(f"{repository}/{filename}", path)
    return path


def _check_recorded(name: str, path: Path) -> None:
    """Record a file's SHA-256 on first sight, and compare it afterwards."""
    root = default_cache_dir()
    if root is None:
        return
    record = root / "weights.json"
    known: dict[str, str] = json.loads(record.read_text("utf-8")) if record.is_file() else {}
    digest = sha256_of(path)
    if known.setdefault(name, digest) != digest:
        raise InputError(
            f"{name} has SHA-256 {digest}, but was {known[name]} when it was first fetched; if the "
            f"change is intended, remove its line from {record}"
        )
    write_text(record, json.dumps(known, indent=2) + "\n")
