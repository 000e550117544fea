"""The nouns of an image: read from a list, or found in its captions.

Source: OVSeg paper section 3.2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openvocab.errors import InputError, shorten_value
from openvocab.reading.files import read_text
from openvocab.reading.json_files import MOST_BYTES, parse_json

_DETERMINERS = frozenset(("a", "an", "the", "this", "that", "some", "his", "her", "its", "their"))


def read_nouns(file: Path) -> dict[str, list[str]]:
    """Read nouns by image: JSON `{"a.jpg": ["dog", ...]}`, or lines `a.jpg<TAB>dog, grass`.

    Raises:
        InputError: the file cannot be read, or is neither.
    """
    text = read_text(file, "file of words", most_bytes=MOST_BYTES)
    if file.suffix == ".json":
        content = parse_json(text, str(file), "images with words")
        if not isinstance(content, dict) or not all(isinstance(v, list) for v in content.values()):
            raise InputError(f"{file} must map image names to lists of nouns")
        return {str(image): _unique(map(str, nouns)) for image, nouns in content.items()}
    lines = _tabbed_lines(text, file, "its nouns")
    return {image: _unique(nouns.split(",")) for image, nouns in lines}


def read_captions(file: Path) -> dict[str, list[str]]:
    """Read captions by image: COCO's JSON, or lines `a.jpg<TAB>A dog runs.`.

    Raises:
        InputError: the file cannot be read, or is neither.
    """
    text = read_text(file, "file of words", most_bytes=MOST_BYTES)
    found: dict[str, list[str]] = defaultdict(list)
    if file.suffix != ".json":
        for image, caption in _tabbed_lines(text, file, "its caption"):
            found[image].append(caption)
        return dict(found)
    content = parse_json(text, str(file), "images with words")
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise InputError(f"{file} is not COCO's captions: it needs images and annotations")
    images = _entries(content["images"], ("id", "file_name"), f"images of {file}")
    names = {str(image["id"]): str(image["file_name"]) for image in images}
    annotations = _entries(
        content["annotations"], ("image_id", "caption"), f"annotations of {file}"
    )
    for number, annotation in enumerate(annotations):
        image = str(annotation["image_id"])
        if image not in names:
            raise InputError(
                f"entry {number} in the annotations of {file} is of the image "
                f"{shorten_value(image)}, which is not among its images; take annotations and "
                "images from one file"
            )
        found[names[image]].append(str(annotation["caption"]))
    return dict(found)


def _entries(value: Any, keys: Sequence[str], where: str) -> list[Mapping[str, Any]]:
    """Return a list of mappings that all have some keys."""
    if not isinstance(value, list):
        raise InputError(f"the {where} are a {type(value).__name__}; expected a list")
    for number, entry in enumerate(value):
        if not isinstance(entry, Mapping) or not set(keys) <= entry.keys():
            raise InputError(f"entry {number} in the {where} needs {' and '.join(keys)}")
    return value


def nouns_of_captions(captions: Mapping[str, Sequence[str]], limit: int) -> dict[str, list[str]]:
    """Find the noun phrases of the first `limit` captions of each image, with spaCy.

    Raises:
        InputError: spaCy or its English model is not installed.
    """
    try:
        import spacy

        parse = spacy.load("en_core_web_sm", disable=["ner"])
    except (ImportError, OSError):
        raise InputError(
            "captions need spaCy and its model en_core_web_sm (pip install spacy, then python -m "
            "spacy download en_core_web_sm); or give the nouns yourself with --nouns FILE"
        ) from None
    texts = [(caption, image) for image, all_ in captions.items() for caption in all_[:limit]]
    found: dict[str, list[str]] = defaultdict(list)
    for document, image in parse.pipe(texts, as_tuples=True):
        found[image] += [without_determiner(chunk.text) for chunk in document.noun_chunks]
    return {image: _unique(nouns) for image, nouns in found.items()}


def without_determiner(phrase: str) -> str:
    """Take "the" and its like off the front of a noun phrase, in lower case."""
    words = phrase.lower().split()
    while words and words[0] in _DETERMINERS:
        words.pop(0)
    return " ".join(words)


def nouns_by_path(
    images: Sequence[Path], folder: Path, nouns: Mapping[str, Sequence[str]]
) -> dict[Path, Sequence[str]]:
    """Find the nouns of each image, by its path in the folder, its file name or its stem.

    Raises:
        InputError: no image has any.
    """
    found: dict[Path, Sequence[str]] = {}
    for path in images:
        inside = path.relative_to(folder).as_posix()
        keys = (inside, path.name, path.stem)
        found[path] = next((nouns[key] for key in keys if nouns.get(key)), ())
    if not any(found.values()):
        known = ", ".join(list(nouns)[:3]) or "none"
        raise InputError(
            f"no image of {folder} has a noun; the names that do are {known}; the list must name "
            "images as their files are called"
        )
    return found


def _tabbed_lines(text: str, file: Path, what: str) -> Iterator[tuple[str, str]]:
    """Yield an image and what stands behind the tab, for each line that is not blank."""
    for number, line in enumerate(text.splitlines(), start=1):
        image, tab, rest = line.partition("\t")
        if line.strip() and not tab:
            raise InputError(f"{file}, line {number}: expected an image, a tab, and {what}")
        if tab:
            yield image, rest


def _unique(nouns: Iterable[str]) -> list[str]:
    stripped = (" ".join(noun.split()) for noun in nouns)
    return list(dict.fromkeys(noun for noun in stripped if noun))
