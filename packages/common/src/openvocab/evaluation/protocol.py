"""The protocol card of an evaluation, which lists everything that its numbers depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import openvocab
from openvocab.clip.template_sets import load_templates
from openvocab.errors import InputError
from openvocab.reading.json_files import as_json
from openvocab.segmenter import Segmenter
from openvocab.vocabulary import BACKGROUND_NAME, Vocabulary

_DIFFERENCES = {
    "data_set": "the data set differs",
    "n_images": "the number of images differs",
    "label_tree_hash": "the content of the label maps differs",
    "vocabulary_hash": "the class names differ",
    "n_classes": "the number of classes differs",
    "templates": "the template set differs",
    "templates_hash": "the prompt templates differ",
    "background": "the background policy differs",
    "ignore_index": "the void values differ",
    "weights_sha256": "the weights differ",
    "resize_rule": "the resize rule differs",
    "tta": "the test-time augmentation differs",
    "post_processing": "the post-processing differs",
    "code_version": "the code version differs",
}


@dataclass(frozen=True)
class ProtocolCard:
    """Everything that a number depends on; results can be ranked if their cards are equal.

    Args:
        data_set: name of the data set, or the folder of the images.
        split: part of the data set.
        n_images: number of images that were evaluated.
        label_tree_hash: SHA-256 over names and contents of the label maps.
        vocabulary: key of the vocabulary, or "custom".
        vocabulary_hash: SHA-256 of the names in order.
        n_classes: K, the rows of the confusion matrix.
        templates: name of the template set.
        templates_hash: SHA-256 of its strings.
        background: the policy in words.
        ignore_index: the values that are void.
        method: name of the method that made the label maps.
        variant: name of the method's variant, published or own.
        weights_sha256: fingerprint of the weights.
        resize_rule: rule by which images are brought to the size of the network.
        thresholds: every threshold by name.
        tta: the views of test-time augmentation, or "none".
        post_processing: processing of the labels afterwards, or "none".
        precision: number format of the arithmetic.
        device: device on which the method ran.
        seed: seed of all random numbers.
        code_version: version of this package.
        settings: whatever else the method declares.
    """

    data_set: str = ""
    split: str = ""
    n_images: int = 0
    label_tree_hash: str = ""
    vocabulary: str = "custom"
    vocabulary_hash: str = ""
    n_classes: int = 0
    templates: str = ""
    templates_hash: str = ""
    background: str = "none"
    ignore_index: tuple[int, ...] = ()
    method: str = ""
    variant: str = ""
    weights_sha256: str = ""
    resize_rule: str = ""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    tta: str = "none"
    post_processing: str = "none"
    precision: str = "fp32"
    device: str = "cpu"
    seed: int = 0
    code_version: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ProtocolCard:
        """Read the values that `to_json` returned.

        Raises:
            InputError: a line that cards do not have.
        """
        known = {line.name for line in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise InputError(
                f"the protocol card has the unknown line {unknown[0]!r}; it was written by "
                f"another version of this program"
            )
        return cls(**{**data, "ignore_index": tuple(data.get("ignore_index", ()))})

    def to_json(self) -> dict[str, Any]:
        """Return the card as JSON values, which `from_json` reads back exactly."""
        value: dict[str, Any] = as_json(asdict(self))
        return value


def diff_cards(first: ProtocolCard, second: ProtocolCard) -> list[str]:
    """Return what differs between two protocols in words; empty if their numbers can be ranked."""
    left, right = first.to_json(), second.to_json()
    sentences = []
    for name in left:
        difference = _DIFFERENCES.get(name, f"the {name} differs")
        pairs = {difference: (left[name], right[name])}
        if isinstance(left[name], dict):
            pairs = {
                f"the {name.removesuffix('s')} {key!r} differs": (
                    left[name].get(key, "not set"),
                    right[name].get(key, "not set"),
                )
                for key in sorted({*left[name], *right[name]})
            }
        sentences += [
            f"{what}: {_show(a)} against {_show(b)}" for what, (a, b) in pairs.items() if a != b
        ]
    return sentences


def metric_names(vocabulary: Vocabulary) -> tuple[str, ...]:
    """Return the names of the rows of the confusion matrix.

    Under the policy "remap", all labels from its index on are one class, the background.
    """
    first = vocabulary.background.index
    return vocabulary.names if first is None else (*vocabulary.names[:first], BACKGROUND_NAME)


def protocol_card(
    segmenter: Segmenter, vocabulary: Vocabulary, card: ProtocolCard | None = None
) -> ProtocolCard:
    """Return the card of an evaluation, with the lines that segmenter and vocabulary know.

    Lines of the segmenter's description that the card does not have go to `settings`.
    """
    described = dict(segmenter.describe())
    known = {line.name for line in fields(ProtocolCard)} - {"settings"}
    own = {key: described.pop(key) for key in list(described) if key in known}
    templates = json.dumps(load_templates(vocabulary.templates))
    return replace(
        card or ProtocolCard(),
        vocabulary=vocabulary.key or "custom",
        vocabulary_hash=vocabulary.sha256(),
        templates=vocabulary.templates,
        templates_hash=hashlib.sha256(templates.encode()).hexdigest(),
        background=str(vocabulary.background),
        code_version=openvocab.__version__,
        settings=as_json(described, default=str),
        **own,
    )


def _show(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) == 64 and all(c in "0123456789abcdef" for c in text):
        return text[:12]
    return text or "nothing"
