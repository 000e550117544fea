"""The model card of a folder of weights, made of the protocol."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData

from openvocab.errors import InputError
from openvocab.methods import find_method

if TYPE_CHECKING:
    from openvocab.evaluation.results import Result
    from openvocab.metrics.calibration import Calibration

_OF_THIS_RUN = ("method", "device", "calibration", "weights_sha256")


def model_card(
    key: str,
    described: Mapping[str, Any],
    trained_on: Sequence[str],
    calibration: Calibration | None,
    results: Sequence[Result],
) -> str:
    """Write a model card in Markdown, with the Hub's metadata before it.

    Args:
        key: of the method.
        described: the lines of its protocol card.
        trained_on: names whose masks were seen in training; empty if unknown.
        calibration: of the confidences.
        results: of evaluations with the same weights.

    Raises:
        InputError: a result was measured with other weights.
    """
    method = find_method(key)
    data = ModelCardData(
        library_name="openvocab-seg",
        pipeline_tag="image-segmentation",
        tags=["open-vocabulary", "semantic-segmentation", key],
    )
    weights = described.get("weights_sha256")
    for result in results:
        if result.card.weights_sha256 != weights:
            raise InputError(
                f"a result on {result.card.data_set or 'a data set'} was measured with other "
                "weights than these; evaluate these weights, or leave the result out"
            )
    sections = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {method.title}: {_safe(described.get('variant', ''))}\n",
        f"{method.summary} Segments photos by names that are given in plain language.\n",
        _usage(key),
        "## Protocol\n\n" + _table(_flat(described, _OF_THIS_RUN)),
        _names_section(trained_on),
        _confidence_section(calibration),
        *(_result_section(result) for result in results),
    ]
    return "\n".join(sections)


def _usage(key: str) -> str:
    return (
        "## Use\n\n"
        "```python\nimport openvocab\n\n"
        f'segmenter = openvocab.load("{key}", "hf:ORG/NAME")  # or the path of this folder\n'
        'segmenter.segment("photo.jpg", ["cat", "sofa"]).save("labels.png")\n```\n'
    )


def _names_section(names: Sequence[str]) -> str:
    known = ", ".join(map(_safe, names)) + "." if names else "The weights do not say which."
    return f"## Names whose masks were seen in training\n\n{known}\n"


def _confidence_section(calibration: Calibration | None) -> str:
    if calibration is None:
        said = "The scores are not calibrated: they are no probabilities."
    else:
        said = (
            f"Calibrated on {calibration.images} images of {_safe(calibration.data_set)} "
            f"({_safe(calibration.split)}): each pixel has the probability that its label is right."
        )
    return f"## Confidence\n\n{said}\n"


def _result_section(result: Result) -> str:
    card = result.card
    where = _safe(" ".join(word for word in (card.data_set, card.split) if word))
    found = result.scores()
    interval = result.intervals.get("detectron2")
    between = f", 95 % interval {interval.low:.2f} to {interval.high:.2f}" if interval else ""
    lines = _flat(card.to_json(), ("settings", "calibration", "device"))
    return f"## Result on {where}\n\nmIoU {found.miou:.2f}{between}, {result.images}.\n\n" + _table(
        {name: value for name, value in lines.items() if value not in ("", "[]")}
    )


def _flat(lines: Mapping[str, Any], without: Sequence[str]) -> dict[str, str]:
    """Return lines as text, those of a mapping one by one."""
    flat: dict[str, str] = {}
    for name, value in lines.items():
        if name in without:
            continue
        if isinstance(value, Mapping):
            flat |= {f"{name}: {inner}": str(of) for inner, of in value.items()}
        else:
            flat[name] = str(value)
    return flat


def _table(lines: Mapping[str, str]) -> str:
    rows = "".join(f"| {_safe(name)} | {_safe(value)} |\n" for name, value in lines.items())
    return f"| | |\n|---|---|\n{rows}"


def _safe(text: object) -> str:
    """Return foreign text as Markdown that shows it as it is, on one line."""
    shown = html.escape(" ".join(str(text).split()), quote=False)
    return "".join(f"\\{c}" if c in r"\`*_[]|~#" else c for c in shown)
