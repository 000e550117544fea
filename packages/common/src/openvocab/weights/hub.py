"""Fetches official weights on first use, and refuses a file that differs from the recorded one.

What is here already is used without asking anybody. Whether there is a network is asked once, and
the answer takes about a second, not the minutes of retries that clients of the hub take.
"""

from __future__ import annotations

import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from openvocab.errors import InputError
from openvocab.files import default_cache_dir, sha256_of, write_text
from openvocab.reading.json_files import read_json_file

_FAILURES = (OSError, HfHubHTTPError, LocalEntryNotFoundError, RuntimeError, ValueError)
_PATIENCE = 1.5  # seconds in which the hub must begin to answer
_OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def fetch(repository: str, filename: str) -> Path:
    """Return a file of a Hugging Face repository, from the local cache if it is there.

    No SHA-256 of these files is published, so it is recorded when a file first arrives; one that
    later differs is refused.

    Raises:
        InputError: the file is not in the cache and cannot be fetched, or it has changed.
    """
    path = _cached(repository, filename)
    if path is None:
        where = f"the Hugging Face repository {repository}"
        _require_network(constants.ENDPOINT, filename, where)
        try:
            path = Path(hf_hub_download(repository, filename))
        except _FAILURES as error:
            raise _not_fetched(filename, where, type(error).__name__) from error
    _check_recorded(f"{repository}/{filename}", path)
    return path


def fetch_open_clip(known: Mapping[str, Any], name: str) -> Path:
    """Return the weights of a CLIP that open_clip knows by name and tag.

    OpenAI's own files are pinned: their address holds their SHA-256. The others are recorded when
    they first arrive, as by `fetch`.

    Args:
        known: entry of open_clip for these weights.
        name: name of the CLIP with its tag, for messages.

    Raises:
        InputError: they are not here and cannot be fetched, or are not what they should be.
    """
    url = known.get("url") or ""
    repository, _, filename = (known.get("hf_hub") or "").rpartition("/")
    files = (filename,) if filename else _OPEN_CLIP_FILES
    for file in files if repository else ():
        if path := _cached(repository, file):
            _check_recorded(f"{repository}/{file}", path)
            return path
    kept = Path("~/.cache/clip").expanduser() / url.rpartition("/")[2]
    if url and kept.is_file():  # where openai/CLIP and open_clip put it
        return _pinned(kept, url)
    where = f"the Hugging Face repository {repository}" if repository else url
    _require_network(constants.ENDPOINT if repository else url, name, where)
    path = _from_repository(repository, files, name) if repository else _from_url(known, name)
    _check_recorded(f"{repository}/{path.name}" if repository else url, path)
    return path


def fetch_repository(
    repository: str,
    revision: str | None,
    files: Sequence[str],
    complete: Callable[[Path], bool],
    *,
    force_download: bool = False,
    local_files_only: bool = False,
    **options: Any,
) -> Path:
    """Return a folder with files of one state of a repository, from the cache if all are there.

    Args:
        repository: "ORG/NAME" on the Hub.
        revision: branch, tag or commit; None for the newest.
        files: names of the files to fetch; those that the repository lacks are left out.
        complete: tells whether a folder has all that it needs.
        force_download: fetch anew what is in the cache.
        local_files_only: do not ask the Hub.
        options: of `snapshot_download`.

    Raises:
        InputError: it is not here and cannot be fetched, or lacks files that it needs.
    """
    where = f"the Hugging Face repository {repository}"
    asked = {"revision": revision, "allow_patterns": list(files), **options}
    if not force_download:
        try:
            path = Path(snapshot_download(repository, **asked, local_files_only=True))
            if complete(path):
                return path
        except _FAILURES as error:
            if isinstance(error, InputError):
                raise
    if local_files_only:
        raise _not_fetched(repository, where, "only files in the cache were allowed")
    _require_network(constants.ENDPOINT, repository, where)
    try:
        path = Path(snapshot_download(repository, **asked, force_download=force_download))
    except _FAILURES as error:
        raise _not_fetched(repository, where, type(error).__name__) from error
    if not complete(path):
        raise InputError(
            f"{where} lacks files that its config.json lists, or has no config.json; "
            "name another repository"
        )
    return path


def _from_repository(repository: str, files: tuple[str, ...], name: str) -> Path:
    where = f"the Hugging Face repository {repository}"
    for file in files:
        try:
            return Path(hf_hub_download(repository, file))
        except EntryNotFoundError:
            continue
        except _FAILURES as error:
            raise _not_fetched(name, where, type(error).__name__) from error
    raise _not_fetched(name, where, f"it has none of {', '.join(files)}")


def _from_url(known: Mapping[str, Any], name: str) -> Path:
    import open_clip  # here, since its import takes long

    try:
        return _pinned(Path(open_clip.download_pretrained(dict(known))), known["url"])
    except _FAILURES as error:
        if isinstance(error, InputError):
            raise
        raise _not_fetched(name, known["url"], type(error).__name__) from error


def _pinned(path: Path, url: str) -> Path:
    """Compare a file with the SHA-256 in its address, if the address contains one."""
    pin = re.search(r"/([0-9a-f]{64})/", url)
    if pin and sha256_of(path) != pin[1]:
        raise InputError(
            f"{path} is not the published file: its SHA-256 is {sha256_of(path)} instead of "
            f"{pin[1]}; delete it, so that it is fetched again"
        )
    return path


def _cached(repository: str, filename: str) -> Path | None:
    try:
        return Path(hf_hub_download(repository, filename, local_files_only=True))
    except _FAILURES:
        return None


def _require_network(address: str, what: str, where: str) -> None:
    """Raise InputError if no server answers at an address."""
    parts = urlsplit(address)
    if constants.HF_HUB_OFFLINE:
        raise _not_fetched(what, where, "HF_HUB_OFFLINE is set")
    if not answers(f"{parts.scheme}://{parts.netloc}"):
        raise _not_fetched(what, where, f"{parts.netloc} does not answer, so there is no network")


@cache
def answers(address: str) -> bool:
    """Return whether a server begins to answer within about a second, asked once for each server.

    `HF_HUB_ETAG_TIMEOUT`, which the hub's own client reads too, gives slow networks more seconds.
    """
    text = os.environ.get("HF_HUB_ETAG_TIMEOUT", "")
    seconds = float(text) if text.isdigit() and int(text) > 0 else _PATIENCE
    found: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=seconds):
                found.append(True)
        except urllib.error.HTTPError:
            found.append(True)  # any answer is one
        except (OSError, ValueError):
            found.append(False)

    # In a thread, since looking up a name cannot be given a time limit.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return bool(found) and found[0]


def _not_fetched(what: str, where: str, why: str) -> InputError:
    return InputError(
        f"{what} is not in the cache and could not be fetched ({why}); --weights world works now, "
        f"without a network, or download it from {where} on another machine, put it anywhere here, "
        "and give the file's path as the weights"
    )


def _check_recorded(name: str, path: Path) -> None:
    """Record a file's SHA-256 on first sight, and compare it afterwards."""
    root = default_cache_dir()
    if root is None:
        return
    record = root / "weights.json"
    known = read_json_file(record, "record of fetched weights") if record.is_file() else {}
    if not isinstance(known, dict):
        raise InputError(f"{record} is damaged; delete it, so that it is written anew")
    digest = sha256_of(path)
    if known.get(name) == digest:
        return
    if name in known:
        raise InputError(
            f"{name} has SHA-256 {digest}, but was {known[name]} when it was first fetched; if the "
            f"change is intended, remove its line from {record}"
        )
    try:
        write_text(record, json.dumps({**known, name: digest}, indent=2) + "\n")
    except OSError:
        pass  # a cache that cannot be written keeps no record
