"""detectron2's configs, checkpoints, predictions and data set dicts, without detectron2.

Only `register_datasets` needs it to be installed.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from openvocab.datasets import ALIASES, CATALOG, resolve
from openvocab.datasets.resolver import parse_name
from openvocab.datasets.samples import SampleSet
from openvocab.errors import InputError, shorten_value
from openvocab.files import atomic_path
from openvocab.formats.arithmetic import evaluate_arithmetic
from openvocab.formats.run_length import decode_rle
from openvocab.image import read_label_map
from openvocab.metrics.scores import Ignore, void_values
from openvocab.reading.files import resolved
from openvocab.reading.json_files import read_json_file
from openvocab.reading.yaml_files import PlainLoader, read_yaml_file
from openvocab.vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

BASE_KEY = "_BASE_"
_EVAL_TAG = "tag:yaml.org,2002:python/object/apply:eval"
_TUPLE_TAG = "tag:yaml.org,2002:python/tuple"
_MOST_BASES = 20
_LONGEST_LITERAL = 1000  # characters of text that spells a Python value

# --- configs ------------------------------------------------------------------------------------


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a config with everything it inherits by `_BASE_`.

    The tag `!!python/object/apply:eval` is computed when it is arithmetic; nothing is ever run.
    Text such as `(640,)` is the tuple it spells, as in detectron2.

    Raises:
        InputError: a file is missing or not YAML, inherits from itself, or holds a tag or an
            expression that is not data.
    """
    return _read_chain(Path(path), (), {})


def merge_overrides(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a config with `KEY VALUE KEY VALUE ...` from a command line put in.

    >>> merge_overrides({"TEST": {"N": 1}}, ["TEST.N", "2", "MODEL.WEIGHTS", "a.pth"])
    {'TEST': {'N': 2}, 'MODEL': {'WEIGHTS': 'a.pth'}}

    Raises:
        InputError: a key without value, or a key below one that has a value.
    """
    if len(overrides) % 2:
        raise InputError(
            f"overrides come as KEY VALUE pairs, but {overrides[-1]!r} has no value; give one"
        )
    merged = merge({}, config)
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        *parents, last = key.split(".")
        node = merged
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise InputError(
                    f"{key!r} cannot be set: {parent!r} is a value, not a section; "
                    f"set {parent!r} itself"
                )
        node[last] = _decoded(value)
    return merged


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a config by dotted keys, such as `MODEL.CLIP_ADAPTER.MASK_THR`."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


class _ConfigLoader(PlainLoader):
    """Safe YAML with the two Python tags that detectron2 configs use as data."""


def _construct_arithmetic(loader: _ConfigLoader, node: yaml.Node) -> Any:
    values = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
    if len(values) != 1 or not isinstance(values[0], str):
        raise InputError(
            f"the tag !!python/object/apply:eval takes one expression, not {shorten_value(values)}"
        )
    return evaluate_arithmetic(values[0])


def _construct_tuple(loader: _ConfigLoader, node: yaml.Node) -> tuple[Any, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise InputError("the tag !!python/tuple takes a list")
    return tuple(loader.construct_sequence(node, deep=True))


_ConfigLoader.add_constructor(_EVAL_TAG, _construct_arithmetic)
_ConfigLoader.add_constructor(_TUPLE_TAG, _construct_tuple)


def _read_chain(
    path: Path, children: tuple[Path, ...], done: dict[Path, dict[str, Any]]
) -> dict[str, Any]:
    """Read a config with its bases, each once."""
    place = resolved(path, "config")
    if place in children:
        raise InputError(
            f"{path} inherits from itself through {BASE_KEY}; remove one of the {BASE_KEY} lines"
        )
    if place in done:
        return done[place]
    config = _decoded(read_yaml_file(place, "config", _ConfigLoader))
    bases = config.pop(BASE_KEY, ())
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list | tuple) or not all(isinstance(base, str) for base in bases):
        raise InputError(f"{path} has {BASE_KEY}: {shorten_value(bases)}; give the name of a file")
    if len(bases) > _MOST_BASES or len(children) > _MOST_BASES:
        raise InputError(
            f"{path} inherits from more than {_MOST_BASES} configs; "
            f"shorten the chain of {BASE_KEY} lines"
        )
    merged: dict[str, Any] = {}
    for base in bases:
        where = base if base.startswith("~") else place.parent / base
        merged = merge(merged, _read_chain(Path(where), (*children, place), done))
    done[place] = merge(merged, config)
    return done[place]


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with others over them; both are left as they are."""
    merged = {k: merge({}, v) if isinstance(v, Mapping) else v for k, v in base.items()}
    for key, value in over.items():
        if isinstance(value, Mapping):
            below = merged.get(key)
            value = merge(below if isinstance(below, Mapping) else {}, value)
        merged[key] = value
    return merged


def _decoded(value: Any) -> Any:
    """Return text that spells a Python value as that value, in sections too."""
    if isinstance(value, dict):
        return {key: _decoded(inner) for key, inner in value.items()}
    if not isinstance(value, str) or len(value) > _LONGEST_LITERAL:
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


# --- checkpoints --------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of `.pth` files as detectron2 writes them, and of its model zoo's `.pkl`.

    Raises:
        InputError: the file is missing, damaged, or would have to run code; nothing was run.
    """
    from openvocab.reading.checkpoints import read_tensors  # late: it imports torch

    return read_tensors(path)


# --- predictions --------------------------------------------------------------------------------


class PredictedClass(NamedTuple):
    """One class in one image of a `sem_seg_predictions.json`.

    Args:
        file_name: of the image.
        category_id: label of the class, or its id in the data set where that has ids (COCO).
        segmentation: its mask in COCO's run-length format.
    """

    file_name: str
    category_id: int
    segmentation: Mapping[str, Any]


def write_predictions(path: str | Path, predictions: Iterable[PredictedClass]) -> None:
    """Write a `sem_seg_predictions.json`, atomically and one by one."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        separator = "["
        for prediction in predictions:
            file.write(separator + json.dumps(prediction._asdict()))
            separator = ",\n"
        file.write("]\n" if separator != "[" else "[]\n")


def read_predictions(path: str | Path) -> dict[str, list[PredictedClass]]:
    """Read a `sem_seg_predictions.json`, grouped by file name in the order of the file.

    Raises:
        InputError: the file is missing or holds something else.
    """
    content = read_json_file(path, "predictions, a sem_seg_predictions.json")
    grouped: dict[str, list[PredictedClass]] = {}
    for number, entry in enumerate(content if isinstance(content, list) else [content]):
        if not isinstance(entry, dict) or not set(PredictedClass._fields) <= entry.keys():
            raise InputError(
                f"entry {number} of {path} has no {', '.join(PredictedClass._fields)}; expected "
                f"detectron2's sem_seg_predictions.json"
            )
        prediction = PredictedClass(*(entry[field] for field in PredictedClass._fields))
        if not isinstance(prediction.file_name, str) or type(prediction.category_id) is not int:
            raise InputError(
                f"entry {number} of {path} needs text as its file_name and a whole number as its "
                f"category_id, not {shorten_value(prediction[:2])}"
            )
        grouped.setdefault(prediction.file_name, []).append(prediction)
    return grouped


def labels_of_predictions(
    predictions: Sequence[PredictedClass],
    contiguous: Mapping[int, int] | None = None,
    size: tuple[int, int] | None = None,
) -> NDArray[np.int32]:
    """Put the masks of one image together.

    Args:
        predictions: at least one, all of one image.
        contiguous: the label of each category id, where ids are not labels already.
        size: (height, width) of the image, if it is known; masks of another size are refused
            before they are decoded.

    Returns:
        `(H, W)` labels, -1 where no mask is.

    Raises:
        InputError: sizes differ, a category id has no label, or masks of two categories overlap.
    """
    labels: NDArray[np.int32] | None = None
    for prediction in predictions:
        try:
            mask = decode_rle(prediction.segmentation, size)
        except InputError as error:
            raise InputError(f"a mask of {prediction.file_name} is damaged: {error}") from None
        labels = np.full(mask.shape, -1, dtype=np.int32) if labels is None else labels
        if mask.shape != labels.shape:
            raise InputError(
                f"the masks of {prediction.file_name} differ in size; "
                "predict at the size of the image"
            )
        if contiguous is not None and prediction.category_id not in contiguous:
            raise InputError(
                f"{prediction.file_name} has the category {prediction.category_id}, which the data "
                f"set does not know; "
                "predict with the names of this data set"
            )
        label = (contiguous or {}).get(prediction.category_id, prediction.category_id)
        covered = labels[mask]
        if ((covered != -1) & (covered != label)).any():
            raise InputError(
                f"{prediction.file_name} has pixels in the masks of two categories, such as "
                f"{prediction.category_id}; write each pixel into one mask, and each image once"
            )
        labels[mask] = label
    if labels is None:
        raise InputError("there are no predictions to make a label map of; predict the image first")
    return labels


# --- data sets and models in its format ---------------------------------------------------------


def dataset_dicts(data: SampleSet) -> list[dict[str, Any]]:
    """Return the samples of a set as detectron2 lists them.

    Raises:
        InputError: the label maps hold other values than the labels, which detectron2, reading
            them itself, would take for labels.
    """
    samples = data.samples
    if samples and not np.array_equal(
        read_label_map(samples[0].label), data.read_label(samples[0])
    ):
        raise InputError(
            f"the label maps of {data.name} in {samples[0].label.parent} are stored in another "
            f"code than detectron2's; prepare the detectron2 layout of this data set"
        )
    return [
        {"file_name": str(sample.image), "sem_seg_file_name": str(sample.label)}
        for sample in samples
    ]


def dataset_metadata(vocabulary: Vocabulary, ignore_index: Ignore = None) -> dict[str, Any]:
    """Return what detectron2's evaluators and visualizers want to know of a set.

    detectron2 knows one void value; of several the largest is the one in its label maps.
    """
    return {
        "stuff_classes": list(vocabulary.names),
        "ignore_label": max(void_values(len(vocabulary), ignore_index), default=-1),
        "evaluator_type": "sem_seg",
    }


def register_datasets(data_root: str | Path | None = None) -> tuple[str, ...]:
    """Put all our data sets, under all their names, into detectron2's catalogs.

    Names that are there already are left alone. Files are looked for when a set is asked for.

    Args:
        data_root: where data sets lie; None: `$DETECTRON2_DATASETS`, else `./datasets`.

    Returns:
        The names that are new.

    Raises:
        InputError: detectron2 is not installed.
    """
    try:
        from detectron2.data import DatasetCatalog, MetadataCatalog
    except ImportError as error:
        raise InputError(
            f"detectron2 is not installed ({error}); it is on no package index, so follow its "
            f"installation guide, or use openvocab without it"
        ) from None
    known = set(DatasetCatalog.list())
    new = tuple(name for name in (*CATALOG, *ALIASES) if name not in known)
    for name in new:
        DatasetCatalog.register(name, partial(_listing, MetadataCatalog, name, data_root))
        request = parse_name(name)
        vocabulary = Vocabulary.load(request.vocabulary or request.spec.vocabulary)
        MetadataCatalog.get(name).set(**dataset_metadata(vocabulary, request.spec.ignore))
    return new


def _listing(catalog: Any, name: str, data_root: str | Path | None) -> list[dict[str, Any]]:
    """Find a set, and correct its metadata where the layout has an order of classes of its own."""
    data = resolve(name, data_root)
    metadata = dataset_metadata(data.vocabulary, data.ignore_index)
    if catalog.get(name).stuff_classes != metadata["stuff_classes"]:
        catalog.pop(name)  # values that are set cannot be changed
        catalog.get(name).set(**metadata)
    return dataset_dicts(data)
